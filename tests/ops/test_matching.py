"""Matching and sampling against loops over anchors."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.ops.boxes import encode_boxes
from jaxml.ops.matching import match_anchors, sample_matches

match = jax.jit(match_anchors, static_argnames=("positive", "negative", "low_quality"))
sample = jax.jit(sample_matches, static_argnums=3, static_argnames="positive_fraction")
N, M = 60, 7


def scene(rng, objects=5):
    corner = rng.uniform(0, 60, (M, 2))
    boxes = np.float32(np.concatenate([corner, corner + rng.uniform(8, 30, (M, 2))], 1))
    near = boxes[rng.integers(0, M, N)] + rng.normal(size=(N, 4)) * 5
    near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
    return np.float32(near), boxes, np.arange(M) < objects


def intersection(a, b):
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    return np.prod(np.maximum(sides, 0))


def area(a):
    return np.prod(a[2:] - a[:2])


def match_loop(anchors, boxes, objects, regions, high, low, low_quality):
    """(index, is_positive, is_negative, iou) of every anchor, in float64."""
    anchors, boxes = np.float64(anchors), np.float64(boxes)
    iou = np.zeros((len(anchors), len(boxes)))
    for i, a in enumerate(anchors):
        for j in objects:
            inter = intersection(a, boxes[j])
            iou[i, j] = inter / (area(a) + area(boxes[j]) - inter)
    rows = []
    for i, a in enumerate(anchors):
        best = iou[i].max()
        is_positive = best >= high
        if low_quality:
            tops = [j for j in objects if iou[:, j].max() > 0]
            is_positive |= any(iou[i, j] == iou[:, j].max() for j in tops)
        lies = any(intersection(a, boxes[j]) >= 0.5 * area(a) for j in regions)
        is_negative = best < low and not is_positive and not lies
        rows.append(
            (iou[i].argmax() if is_positive else M, is_positive, is_negative, best)
        )
    return map(np.array, zip(*rows, strict=True))


@pytest.mark.parametrize("low_quality", [False, True])
@pytest.mark.parametrize("high, low", [(0.7, 0.3), (0.5, 0.5)])
def test_matches_are_those_of_the_loop(rng, high, low, low_quality):
    options = {"positive": high, "negative": low, "low_quality": low_quality}
    kinds = set()
    for objects in (5, 0, M):
        anchors, boxes, mask = scene(rng, objects)
        crowd = np.arange(M) % 3 == 2
        real = np.flatnonzero(mask & ~crowd)
        regions = np.flatnonzero(mask & crowd)
        expected = match_loop(anchors, boxes, real, regions, high, low, low_quality)
        actual = match(anchors, boxes, mask, is_ignored=crowd, **options)
        for mine, loop in zip(actual, expected, strict=True):
            chex.assert_trees_all_close(mine, loop, atol=1e-5)
        kinds |= set(zip(*map(np.asarray, actual[1:3]), strict=True))
    assert len(kinds) == 3  # positive, negative, neither


def test_an_image_without_objects_is_all_background(rng):
    anchors, boxes, _ = scene(rng)
    for some, mask in ((boxes, np.zeros(M, bool)), (boxes[:0], np.zeros(0, bool))):
        found = match(anchors, some, mask, is_ignored=mask)
        assert not found.is_positive.any()
        assert found.is_negative.all()
        assert (found.indices == len(some)).all()
        assert not found.iou.any()


def test_padding_and_objects_that_nothing_touches_make_nothing_positive(rng):
    anchors, boxes, mask = scene(rng)
    expected = match(anchors, boxes, mask)
    boxes[5:] = 0  # padding
    far = np.concatenate([boxes, [[900, 900, 950, 950]]]).astype(np.float32)
    actual = match(anchors, far, np.append(mask, True))
    chex.assert_trees_all_equal(actual[1:3], expected[1:3])
    chex.assert_trees_all_close(actual.iou, expected.iou, atol=1e-6)


def test_the_best_anchor_of_an_object_answers_for_its_own_best():
    """It may be another object: the best is by the anchor, as in Detectron."""
    boxes = jnp.array([[0.0, 0, 10, 10], [0, 0, 10, 6]])
    anchors = jnp.array([[0.0, 0, 10, 9], [50, 50, 60, 60]])
    found = match_anchors(anchors, boxes, jnp.ones(2, bool), positive=0.95)
    assert found.indices.tolist() == [0, 2]
    both = match_anchors(anchors[jnp.array([0, 0])], boxes, jnp.ones(2, bool))
    assert both.is_positive.tolist() == [True, True]  # a tie


def test_anchors_may_be_left_out(rng):
    anchors, boxes, mask = scene(rng)
    keep = rng.random(N) < 0.5
    actual = match(anchors, boxes, mask, anchors_mask=keep)
    assert not (actual.is_positive | actual.is_negative)[~keep].any()
    alone = match(anchors[keep], boxes, mask)
    chex.assert_trees_all_close([x[keep] for x in actual], list(alone))


def test_targets_are_finite_and_nothing_has_a_gradient(rng):
    anchors, boxes, mask = scene(rng)
    boxes[5:] = 0

    def loss(anchors, boxes):
        found = match_anchors(anchors, boxes, mask)
        mine = boxes.at[found.indices].get(mode="fill", fill_value=0)
        codes = encode_boxes(mine, anchors)
        return jnp.sum(jnp.where(found.is_positive[:, None], codes, 0)), found.iou

    grads, _ = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(anchors, boxes)
    chex.assert_tree_all_finite(grads)
    through = lambda *args: loss(*args)[1].sum()
    chex.assert_trees_all_equal(
        jax.jit(jax.grad(through, (0, 1)))(anchors, boxes), (0 * anchors, 0 * boxes)
    )


def test_thresholds_must_be_in_order(rng):
    for high, low in ((0.3, 0.7), (1.1, 0.3), (0.5, -0.1)):
        message = rf"negative <= positive <= 1, got {low} and {high}"
        with pytest.raises(ValueError, match=message):
            match_anchors(*scene(rng), positive=high, negative=low)


# Sampling.


def kinds(positives, negatives):
    index = jnp.arange(N)
    return index < positives, index >= N - negatives


@pytest.mark.parametrize(
    "positives, negatives, expected",
    [
        (20, 40, (8, 8)),  # enough of both
        (3, 40, (3, 13)),  # filled up with negatives
        (20, 2, (8, 2)),  # not with positives
        (0, 40, (0, 16)),
        (0, 0, (0, 0)),
        (2, 1, (2, 1)),
    ],
)
def test_how_many_are_drawn(positives, negatives, expected):
    is_positive, is_negative = kinds(positives, negatives)
    for seed in range(3):
        indices, drawn, valid = sample(
            jax.random.key(seed), is_positive, is_negative, 16
        )
        got = np.asarray(indices)[np.asarray(valid)]
        assert len(set(got.tolist())) == len(got)
        num = int(is_positive[got].sum()), int(is_negative[got].sum())
        assert num == expected
        assert drawn.tolist() == [i < expected[0] for i in range(16)]
        assert valid.tolist() == [i < sum(expected) for i in range(16)]
        assert (np.asarray(indices)[~np.asarray(valid)] == N).all()


def test_every_anchor_is_drawn_as_often():
    is_positive, is_negative = kinds(10, 50)
    draw = lambda key: sample_matches(
        key, is_positive, is_negative, 12, positive_fraction=0.25
    )
    keys = jax.random.split(jax.random.key(0), 4000)
    indices, _, valid = jax.jit(jax.vmap(draw))(keys)
    assert valid.all()
    share = np.bincount(np.ravel(indices), minlength=N) / 4000
    np.testing.assert_allclose(share[:10], 3 / 10, atol=0.04)
    np.testing.assert_allclose(share[10:], 9 / 50, atol=0.03)


def test_the_same_key_draws_the_same_and_shapes_are_static(rng):
    chex.clear_trace_counter()
    draw = jax.jit(
        chex.assert_max_traces(lambda k, p, q: sample_matches(k, p, q, 16), n=1)
    )
    for positives in range(20):
        args = (jax.random.key(positives), *kinds(positives, 30))
        chex.assert_trees_all_equal(draw(*args), draw(*args))


def test_more_than_there_are(rng):
    drawn = sample(jax.random.key(0), *kinds(2, 3), 100)
    chex.assert_shape(drawn, [(100,)] * 3)
    assert drawn.valid.sum() == 5


def test_bad_numbers_are_named():
    for num, fraction in ((-1, 0.5), (4, 1.5)):
        with pytest.raises(ValueError, match=f"got {num} and {fraction}"):
            sample_matches(
                jax.random.key(0), *kinds(2, 3), num, positive_fraction=fraction
            )
