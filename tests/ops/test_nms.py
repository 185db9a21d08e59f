"""Suppression against loops over boxes, and against what torchvision keeps."""

from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from jaxml.ops.nms import batched_nms, nms
from jaxml.ops.soft_nms import soft_nms
from jaxml.parallel import data_mesh

GOLDEN = np.load(Path(__file__).parent / "golden" / "nms.npz")
N = 300  # of most tests, so that few programs are compiled
# Thresholds are traced, and those below are exact in float32.
keep = jax.jit(nms, static_argnums=3)
keep_by_label = jax.jit(batched_nms, static_argnums=4)


def iou_numpy(a, b):
    """Of one box with many, in float32 as the programs have it, 0 / 0 = 0."""
    width = np.minimum(a[2], b[:, 2]) - np.maximum(a[0], b[:, 0])
    height = np.minimum(a[3], b[:, 3]) - np.maximum(a[1], b[:, 1])
    inter = np.maximum(width, 0) * np.maximum(height, 0)
    area = (a[2] - a[0]) * (a[3] - a[1])
    union = area + (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) - inter
    return np.divide(inter, union, out=np.zeros_like(inter), where=inter > 0)


def nms_loop(boxes, scores, threshold, labels=None, mask=None):
    """Box by box, from the definition."""
    boxes, scores = np.float32(boxes), np.float32(scores)
    labels = np.zeros(len(boxes)) if labels is None else labels
    mask = np.ones(len(boxes), bool) if mask is None else mask
    kept = []
    for i in np.argsort(-scores, kind="stable"):
        if not (mask[i] and scores[i] > -np.inf and np.isfinite(boxes[i]).all()):
            continue
        rivals = [j for j in kept if labels[j] == labels[i]]
        # In double precision: 0.3 is the number, not its float32.
        if not (np.float64(iou_numpy(boxes[i], boxes[rivals])) > threshold).any():
            kept.append(i)
    return kept


def chosen(indices, valid, n):
    """The valid indices, which come first; the others must be n."""
    indices, valid = np.asarray(indices), np.asarray(valid)
    assert (np.diff(valid.astype(int)) <= 0).all()
    assert (indices[~valid] == n).all()
    return indices[valid].tolist()


def scene(rng, n=N, size=100.0, objects=20):
    """Clusters of boxes, with scores that repeat."""
    corner = rng.uniform(0, size, (objects, 2))
    of = rng.integers(0, objects, n)
    low = corner[of] + rng.normal(size=(n, 2)) * 3
    boxes = np.concatenate([low, low + rng.uniform(8, 25, (n, 2))], 1)
    return np.float32(boxes), np.float32(rng.integers(1, 50, n) / 50)


@pytest.mark.parametrize("name", ["uniform", "clustered", "ties", "degenerate"])
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_torchvision_keeps_the_same(name, threshold):
    boxes = np.float32(GOLDEN[f"{name}_boxes"]) / 4
    kept = jax.jit(nms, static_argnums=(2, 3))(
        boxes, GOLDEN[f"{name}_scores"], threshold, N
    )
    assert chosen(*kept, N) == GOLDEN[f"{name}_{threshold}"].tolist()


@pytest.mark.parametrize("n, k", [(1, 1), (129, 40), (700, 700), (5, 9)])
def test_any_number_of_boxes(rng, n, k):
    boxes, scores = scene(rng, n)
    for threshold in (0.0, 0.5, 1.0):
        expected = nms_loop(boxes, scores, threshold)
        assert chosen(*keep(boxes, scores, threshold, k), n) == expected[:k]


def test_overlaps_of_exactly_the_threshold(rng):
    """Whole pixels, in several tiles: hundreds of pairs lie on it, and none is over."""
    low = rng.integers(0, 90, (N, 2)) * 4
    boxes = np.float32(np.concatenate([low, low + rng.integers(1, 4, (N, 2)) * 4], 1))
    boxes[N // 2 :] = boxes[: N // 2] + np.float32([0, 0, 0, 4])
    scores = np.linspace(1, 0, N, dtype=np.float32)
    boxes[:5, 2] -= 20  # turned round
    on_it = 0
    for threshold in (0.25, 0.5, 0.75):
        pairs = [iou_numpy(boxes[i], boxes[:i]) == threshold for i in range(N)]
        on_it += sum(p.any() for p in pairs)
        expected = nms_loop(boxes, scores, threshold)
        assert chosen(*keep(boxes, scores, threshold, N), N) == expected
    assert on_it > 50


def test_a_long_chain_within_a_tile():
    """Each box suppresses the next alone: every other one stays, in 300 rounds."""
    left = np.arange(N, dtype=np.float32)
    boxes = np.stack([left, left * 0, left + 3, left * 0 + 1], 1)
    scores = -left
    expected = list(range(0, N, 2))
    assert nms_loop(boxes, scores, 0.25) == expected
    assert chosen(*keep(boxes, scores, 0.25, N), N) == expected


def test_labels_do_not_meet(rng):
    boxes, scores = scene(rng)
    labels = rng.integers(-2, 5, N) * np.int32(2**29)
    for threshold in (0.25, 0.5):
        expected = nms_loop(boxes, scores, threshold, labels)
        kept = keep_by_label(boxes, scores, labels, threshold, N)
        assert chosen(*kept, N) == expected
    few = keep_by_label(boxes, scores, labels, 0.5, 31)
    assert chosen(*few, N) == expected[:31]
    one = keep_by_label(boxes, scores, np.full(N, 7), 0.5, N)
    chex.assert_trees_all_equal(one, keep(boxes, scores, 0.5, N))


def test_labels_cost_no_precision():
    """Boxes that an offset of a few thousand pixels would make equal."""
    boxes = np.zeros((N, 4), np.float32)
    boxes[:, 2:] = 1e-3
    boxes[:, 0] = np.arange(N) % 2 * 0.6e-3  # IoU 0.4
    labels = np.repeat(np.arange(N // 2), 2)
    kept = keep_by_label(
        boxes, np.linspace(1, 0.5, N, dtype=np.float32), labels, 0.5, N
    )
    assert chosen(*kept, N) == list(range(N))


def test_many_labels_over_several_slabs(rng):
    n = 1500
    boxes, scores = scene(rng, n, size=1e3, objects=900)
    labels = rng.integers(0, 3, n)
    expected = nms_loop(boxes, scores, 0.5, labels)
    assert len(expected) > 1024
    assert chosen(*keep_by_label(boxes, scores, labels, 0.5, n), n) == expected
    assert chosen(*keep(boxes, scores, 0.5, n), n) == nms_loop(boxes, scores, 0.5)


def test_what_is_no_candidate_neither_stays_nor_suppresses(rng):
    boxes, scores = scene(rng)
    mask = rng.random(N) < 0.7
    for i, bad in enumerate((np.nan, np.inf, -np.inf)):
        boxes[i::37, i] = bad
    scores[::41], scores[1::41] = np.nan, -np.inf
    expected = nms_loop(boxes, scores, 0.5, mask=mask)
    assert chosen(*keep(boxes, scores, 0.5, N, mask), N) == expected
    labels = rng.integers(0, 3, N)
    kept = keep_by_label(boxes, scores, labels, 0.5, N, mask)
    assert chosen(*kept, N) == nms_loop(boxes, scores, 0.5, labels, mask)
    none = keep(boxes, scores, 0.5, N, np.zeros(N, bool))
    assert chosen(*none, N) == []


def test_an_infinite_score_is_the_best():
    boxes = jnp.array([[0.0, 0, 4, 4], [0, 0, 4, 4]])
    indices, valid = nms(boxes, jnp.array([1.0, jnp.inf]), 0.5, 2)
    assert chosen(indices, valid, 2) == [1]


def test_nothing_to_choose_from():
    empty = nms(jnp.zeros((0, 4)), jnp.zeros(0), 0.5, 3)
    assert chosen(*empty, 0) == []
    by_label = batched_nms(jnp.zeros((0, 4)), jnp.zeros(0), jnp.zeros(0, int), 0.5, 3)
    assert chosen(*by_label, 0) == []
    boxes, scores = jnp.ones((2, 4)), jnp.ones(2)
    chex.assert_shape(nms(boxes, scores, 0.5, 0), [(0,), (0,)])


def test_batches_and_vmap_are_image_by_image(rng):
    boxes, scores = map(np.stack, zip(*[scene(rng) for _ in range(6)], strict=True))
    scores[2], scores[3, 5:] = np.nan, -np.inf
    labels = rng.integers(0, 3, (6, N))
    one = [keep(b, s, 0.5, 40) for b, s in zip(boxes, scores, strict=True)]
    expected = jax.tree.map(lambda *x: jnp.stack(x), *one)
    chex.assert_trees_all_equal(keep(boxes, scores, 0.5, 40), expected)
    pairs = boxes.reshape(2, 3, N, 4), scores.reshape(2, 3, N)
    mapped = jax.jit(jax.vmap(jax.vmap(lambda b, s: nms(b, s, 0.5, 40))))(*pairs)
    chex.assert_trees_all_equal(mapped[0].reshape(6, 40), expected[0])
    # One set of boxes, several of scores, thresholds and labels.
    f = lambda s, t, l: batched_nms(boxes[0], s, l, t, 40)
    thresholds = jnp.linspace(0.2, 0.7, 6)
    actual = jax.jit(jax.vmap(f))(scores, thresholds, labels)
    for i, t in enumerate(thresholds):
        kept = nms_loop(boxes[0], scores[i], t, labels[i])
        assert chosen(actual[0][i], actual[1][i], N) == kept[:40]


def test_twenty_batches_compile_once(rng):
    chex.clear_trace_counter()
    once = chex.assert_max_traces(lambda b, s, m: nms(b, s, 0.5, 50, m), n=1)
    f = jax.jit(once)
    for i in range(20):
        boxes, scores = scene(rng)
        mask = np.arange(N) < 15 * i
        kept = f(boxes, scores, mask)
        assert chosen(*kept, N) == nms_loop(boxes, scores, 0.5, mask=mask)[:50]


def test_each_device_has_its_images(rng):
    mesh = data_mesh()
    boxes, scores = map(
        np.stack, zip(*[scene(rng) for _ in range(mesh.size)], strict=True)
    )
    expected = keep(boxes, scores, 0.5, 40)
    spec = P("data")

    def both(boxes, scores):
        hard = jax.vmap(lambda b, s: nms(b, s, 0.5, 40))(boxes, scores)
        return hard, jax.vmap(lambda b, s: soft_nms(b, s, 3))(boxes, scores)

    split = jax.jit(
        jax.shard_map(both, mesh=mesh, in_specs=(spec, spec), out_specs=spec)
    )
    hard, soft = split(boxes, scores)
    chex.assert_trees_all_equal(hard, expected)
    chex.assert_shape(soft, (mesh.size, 3))


def test_half_precision_boxes_are_compared_in_float32(rng):
    boxes, scores = scene(rng, size=400.0)
    half = jnp.asarray(boxes, jnp.bfloat16)
    wide = half.astype(jnp.float32)
    expected = keep(wide, scores, 0.5, N)
    chex.assert_trees_all_equal(keep(half, scores, 0.5, N), expected)


def test_it_may_stand_in_a_function_that_is_differentiated(rng):
    boxes, scores = scene(rng, 20)

    def loss(boxes, scores):
        indices, valid = nms(boxes, scores, 0.5, 5)
        picked = scores.at[indices].get(mode="fill", fill_value=0)
        return jnp.sum(jnp.where(valid, picked, 0))

    grad_boxes, grad_scores = jax.jit(jax.grad(loss, (0, 1)))(boxes, scores)
    chex.assert_trees_all_equal(grad_boxes, jnp.zeros_like(boxes))
    expected = np.zeros(20)
    expected[nms_loop(boxes, scores, 0.5)[:5]] = 1
    chex.assert_trees_all_equal(grad_scores, jnp.float32(expected))


whole_boxes = st.tuples(*[st.integers(0, 12)] * 2, *[st.integers(-1, 9)] * 2)


@settings(deadline=None, max_examples=80)
@given(
    st.lists(whole_boxes, min_size=1, max_size=40),
    st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]),
    st.randoms(use_true_random=False),
)
def test_any_boxes(sides, threshold, random):
    """The loop's answer; in another order the same; of its own answer, itself."""
    sides = np.array(sides, np.float32)
    n = len(sides)
    boxes = np.zeros((40, 4), np.float32)
    boxes[:n] = np.concatenate([sides[:, :2], sides[:, :2] + sides[:, 2:]], 1)
    mask = np.arange(40) < n
    ties = np.float32([random.randint(0, 3) for _ in range(40)])
    kept = chosen(*keep(boxes, ties, threshold, 40, mask), 40)
    assert kept == nms_loop(boxes, ties, threshold, mask=mask)

    distinct = np.float32(random.sample(range(1000), 40))
    order = random.sample(range(40), 40)
    kept = chosen(*keep(boxes, distinct, threshold, 40, mask), 40)
    moved = keep(boxes[order], distinct[order], threshold, 40, mask[order])
    assert [order[i] for i in chosen(*moved, 40)] == kept
    again = keep(boxes, distinct, threshold, 40, np.isin(np.arange(40), kept))
    assert chosen(*again, 40) == kept


# Bad input.


def test_bad_arguments_are_named():
    boxes, scores = jnp.ones((2, 4)), jnp.ones(2)
    for threshold in (-0.1, 1.5, float("nan")):
        message = rf"iou_threshold must be in \[0, 1\], got {threshold}"
        with pytest.raises(ValueError, match=message):
            nms(boxes, scores, threshold, 2)
        with pytest.raises(ValueError, match=message):
            batched_nms(boxes, scores, jnp.zeros(2, int), threshold, 2)
    with pytest.raises(ValueError, match="max_outputs must not be negative, got -1"):
        nms(boxes, scores, 0.5, -1)
    with pytest.raises((TypeError, ValueError)):
        nms(boxes, jnp.ones(3), 0.5, 2)
