"""Soft suppression against the loop that re-scores after every choice."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.ops.soft_nms import soft_nms
from tests.ops.test_nms import chosen, iou_numpy, nms_loop, scene


def soft_loop(boxes, scores, k, method, labels, sigma=0.5, threshold=0.3, least=1e-3):
    """Re-scored after every choice, in float64."""
    left = dict(enumerate(np.float64(scores)))
    found = []
    while left and len(found) < k:
        best = max(left, key=lambda i: (left[i], -i))
        score = left.pop(best)
        if not score >= least:
            break
        found.append((best, score))
        for i in left:
            iou = iou_numpy(np.float64(boxes[best]), np.float64(boxes[i : i + 1]))[0]
            if labels is not None and labels[i] != labels[best]:
                continue
            if method == "gaussian":
                left[i] *= np.exp(-(iou**2) / sigma)
            elif iou > threshold:
                left[i] *= 1 - iou
    return found


@pytest.mark.parametrize("method", ["gaussian", "linear"])
@pytest.mark.parametrize("is_labelled", [False, True])
def test_soft_scores_match_the_loop(rng, method, is_labelled):
    boxes, _ = scene(rng, 60, objects=5)
    scores = np.float32(rng.permutation(60) + 1) / 60
    labels = rng.integers(0, 2, 60) if is_labelled else None
    expected = soft_loop(boxes, scores, 40, method, labels)
    f = jax.jit(partial(soft_nms, max_outputs=40, method=method))
    indices, valid, actual = f(boxes, scores, labels=labels)
    assert chosen(indices, valid, 60) == [i for i, _ in expected]
    soft = np.zeros(40)
    soft[: len(expected)] = [s for _, s in expected]
    chex.assert_trees_all_close(actual, soft, rtol=1e-4, atol=1e-6)
    assert (np.diff(actual) <= 0).all()


def test_soft_leaves_out_padding_and_low_scores(rng):
    boxes, scores = scene(rng, 30)
    scores[3], boxes[4, 1], scores[5] = np.nan, np.inf, -np.inf
    mask = np.arange(30) < 20
    indices, valid, soft = soft_nms(boxes, scores, 30, mask=mask, min_score=0.2)
    kept = chosen(indices, valid, 30)
    assert kept
    assert not {3, 4, 5} & set(kept)
    assert max(kept) < 20
    assert (soft[: len(kept)] >= 0.2).all()
    assert not soft[len(kept) :].any()
    zero = soft_nms(boxes, jnp.zeros(30), 3, min_score=0)
    assert zero[0].tolist() == [0, 1, 2]  # of equal ones the first


def test_a_very_narrow_gaussian_and_a_threshold_of_zero_suppress_all_that_overlaps(rng):
    boxes, _ = scene(rng, 50)
    scores = np.float32(rng.permutation(50) + 1)
    expected = nms_loop(boxes, scores, 0)
    indices, valid, _ = soft_nms(boxes, scores, 50, sigma=1e-12)
    assert chosen(indices, valid, 50) == expected


def test_soft_can_be_mapped(rng):
    boxes, scores = map(np.stack, zip(*[scene(rng, 30) for _ in range(3)], strict=True))
    mapped = jax.vmap(lambda b, s: soft_nms(b, s, 9))(boxes, scores)
    for i in range(3):
        one = soft_nms(boxes[i], scores[i], 9)
        chex.assert_trees_all_close(
            jax.tree.map(lambda x: x[i], mapped), one, rtol=1e-6
        )


def test_nothing_to_choose_from():
    assert soft_nms(jnp.zeros((0, 4)), jnp.zeros(0), 2)[1].tolist() == [False] * 2


def test_bad_arguments_are_named():
    boxes, scores = jnp.ones((2, 4)), jnp.ones(2)
    with pytest.raises(ValueError, match=r"'gaussian' or 'linear', got 'hard'"):
        soft_nms(boxes, scores, 2, method="hard")
    with pytest.raises(ValueError, match="sigma must be positive, got 0"):
        soft_nms(boxes, scores, 2, sigma=0)
    with pytest.raises(ValueError, match=r"iou_threshold must be in \[0, 1\], got 2"):
        soft_nms(boxes, scores, 2, iou_threshold=2)
