"""Pooling of regions against loops in float64 and against torchvision's operators."""

import math
from functools import partial
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxml.ops import grids
from jaxml.ops.roi import ps_roi_align, ps_roi_pool, roi_align, roi_pool
from jaxml.parallel import data_mesh

SCALE = 1 / 8


@pytest.fixture(scope="module")
def golden():
    return np.load(Path(__file__).parent / "golden" / "roi.npz")


def sample_numpy(features, y, x):
    height, width, channels = features.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return np.zeros(channels)
    y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
    out = np.zeros(channels)
    for i in range(height):
        for j in range(width):
            weight = max(0, 1 - abs(y - i)) * max(0, 1 - abs(x - j))
            out += weight * features[i, j]
    return out


def align_numpy(features, boxes, size, ratio, aligned=True, scale=SCALE):
    """The definition, bin by bin and sample by sample."""
    out = np.zeros((len(boxes), *size, features.shape[-1]))
    for n, box in enumerate(np.float64(boxes) * scale):
        x0, y0, x1, y1 = box - 0.5 if aligned else box
        h, w = y1 - y0, x1 - x0
        if not aligned:
            h, w = max(h, 1), max(w, 1)
        rows, columns = (
            ratio or math.ceil(side / bins)
            for side, bins in zip((h, w), size, strict=True)
        )
        for i, j in np.ndindex(size):
            for s, t in np.ndindex(max(rows, 0), max(columns, 0)):
                y = y0 + (i + (s + 0.5) / rows) * h / size[0]
                x = x0 + (j + (t + 0.5) / columns) * w / size[1]
                out[n, i, j] += sample_numpy(features, y, x) / (rows * columns)
    return out


def own_channels(pool, features, boxes, size):
    """A position-sensitive kind from the plain one: each bin takes its channel."""
    out = pool(features, boxes, size)
    i, j = np.mgrid[: size[0], : size[1]]
    classes = features.shape[-1] // i.size
    channels = [(c * size[0] + i) * size[1] + j for c in range(classes)]
    return np.stack([out[:, i, j, c] for c in channels], axis=-1)


def mean_numpy(features, boxes, size):
    """The mean of bins of whole pixels, as in R-FCN."""
    height, width, channels = features.shape
    out = np.zeros((len(boxes), *size, channels))
    for n, box in enumerate(np.float64(boxes) * SCALE):
        x0, y0, x1, y1 = np.sign(box) * np.floor(np.abs(box) + 0.5)
        h, w = max(y1 - y0, 1), max(x1 - x0, 1)
        for i, j in np.ndindex(size):
            rows = np.floor(i * h / size[0]) + y0, np.ceil((i + 1) * h / size[0]) + y0
            cols = np.floor(j * w / size[1]) + x0, np.ceil((j + 1) * w / size[1]) + x0
            top, bottom = np.clip(rows, 0, height).astype(int)
            left, right = np.clip(cols, 0, width).astype(int)
            if top < bottom and left < right:
                out[n, i, j] = features[top:bottom, left:right].mean((0, 1))
    return out


# Against torchvision, golden.


CASES = {
    "align": partial(roi_align, sampling_ratio=2),
    "unaligned": partial(roi_align, sampling_ratio=3, aligned=False),
    "adaptive": partial(roi_align, sampling_ratio=0),
    "pool": roi_pool,
    "ps_align": partial(ps_roi_align, sampling_ratio=2),
    "ps_adaptive": partial(ps_roi_align, sampling_ratio=0),
    "ps_pool": ps_roi_pool,
}


@pytest.mark.parametrize("form", ["gather", "matmul"])
@pytest.mark.parametrize("name", CASES)
def test_torchvision(golden, name, form):
    pool = partial(CASES[name], output_size=(2, 3), spatial_scale=SCALE)
    if name == "pool":
        if form == "matmul":
            pytest.skip("a maximum is no product")
    else:
        pool = partial(pool, form=form)
    features, boxes = golden["features"], golden["boxes"]
    features = features if "ps" in name else features[..., :2]
    boxes = boxes[4:] if "adaptive" in name else boxes

    @jax.jit
    def both(features, pull):
        out, transpose = jax.vjp(lambda f: pool(f, boxes), features)
        return out, transpose(pull)[0]

    out, gradient = both(features, golden[f"{name}_pull"])
    chex.assert_trees_all_close(out, golden[f"{name}_out"], atol=1e-5)
    if name != "ps_pool":  # whose backward pass in torchvision is not of its forward
        chex.assert_trees_all_close(gradient, golden[f"{name}_grad"], atol=1e-5)


# Against the definition.


@pytest.mark.parametrize("ratio", [1, 2, 0])
@pytest.mark.parametrize("aligned", [True, False])
def test_align_is_the_definition(golden, ratio, aligned):
    features, boxes = golden["features"][..., :2], golden["boxes"]
    expected = align_numpy(features, boxes, (2, 3), ratio, aligned)
    align = partial(
        roi_align,
        output_size=(2, 3),
        spatial_scale=SCALE,
        sampling_ratio=ratio,
        aligned=aligned,
    )
    out = jax.jit(align)(features, boxes)
    chex.assert_trees_all_close(out, np.float32(expected), atol=1e-5)


def test_position_sensitive_bins_read_their_own_channels(golden):
    features, boxes, size = golden["features"], golden["boxes"], (3, 2)
    align = lambda *args: align_numpy(*args, ratio=2)
    expected = own_channels(align, features, boxes, size)
    out = jax.jit(partial(ps_roi_align, output_size=size, spatial_scale=SCALE))(
        features, boxes
    )
    chex.assert_trees_all_close(out, np.float32(expected), atol=1e-5)
    expected = own_channels(mean_numpy, features, boxes, size)
    out = jax.jit(partial(ps_roi_pool, output_size=size, spatial_scale=SCALE))(
        features, boxes
    )
    chex.assert_trees_all_close(out, np.float32(expected), atol=1e-5)


def test_the_largest_of_a_constant_image_is_the_constant():
    """Also for values below zero, and zero for bins without a pixel."""
    boxes = jnp.array([[0.0, 0, 4, 4], [-90, -90, -80, -80], [3, 3, 3, 3]])
    out = roi_pool(jnp.full((5, 5, 1), -2.0), boxes, 2)[..., 0]
    chex.assert_trees_all_equal(out[0], jnp.full((2, 2), -2.0))
    chex.assert_trees_all_equal(out[1], jnp.zeros((2, 2)))
    chex.assert_trees_all_equal(out[2], jnp.full((2, 2), -2.0))


def test_ties_go_to_the_first_pixel():
    gradient = jax.grad(lambda f: roi_pool(f, jnp.array([[0.0, 0, 2, 1]]), 1).sum())(
        jnp.ones((3, 4, 1))
    )
    chex.assert_trees_all_equal(gradient, jnp.zeros((3, 4, 1)).at[0, 0].set(1))


def test_boxes_larger_than_the_image_are_finite(golden):
    boxes = jnp.array(
        [[-1e9, -1e9, 1e9, 1e9], [jnp.inf] * 4, [-jnp.inf, 0, jnp.inf, 9]]
    )
    for name, pool in CASES.items():
        f = lambda x, pool=pool: pool(x, boxes, output_size=2).sum()
        value, gradient = jax.value_and_grad(f)(golden["features"])
        chex.assert_tree_all_finite((gradient,) if "a" in name else (value, gradient))


# Gradients.


@pytest.mark.parametrize("form", ["gather", "matmul"])
@pytest.mark.parametrize("ratio", [2, 0])
@pytest.mark.parametrize("pool", [roi_align, ps_roi_align])
def test_gradients_reach_features_and_boxes(rng, pool, ratio, form):
    features = jnp.asarray(rng.normal(size=(5, 6, 4)), jnp.float32)
    boxes = jnp.array([[0.31, 0.72, 3.43, 4.12], [-1.23, 1.34, 5.77, 3.97]])
    align = partial(pool, output_size=2, sampling_ratio=ratio, form=form)
    f = jax.jit(lambda *args: jnp.sum(align(*args) ** 2))
    chex.assert_numerical_grads(
        f, (features, boxes), order=1, eps=1e-3, atol=2e-3, modes=["rev"]
    )


# Shapes, types, batches.


def test_no_boxes_and_odd_numbers_of_them(golden, monkeypatch):
    features = golden["features"]
    for pool in CASES.values():
        out = pool(features, jnp.zeros((0, 4)), output_size=(2, 3))
        classes = 2 if pool in (ps_roi_pool, CASES["ps_align"]) else out.shape[-1]
        chex.assert_shape(out, (0, 2, 3, classes))
    boxes = jnp.asarray(golden["boxes"])  # 14: blocks of 5 leave one over
    align = partial(roi_align, output_size=2, spatial_scale=SCALE)
    f = lambda features, boxes: jnp.sum(align(features, boxes) ** 2)
    expected = jax.value_and_grad(f, (0, 1))(features, boxes)
    monkeypatch.setattr(grids, "BINS_PER_BLOCK", 4 * 5)
    actual = jax.value_and_grad(f, (0, 1))(features, boxes)
    chex.assert_trees_all_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_a_batch_is_its_images(golden, name):
    features = jnp.stack([golden["features"], -golden["features"][::-1]])
    boxes = jnp.stack([golden["boxes"], golden["boxes"][::-1]])
    pool = partial(CASES[name], output_size=2, spatial_scale=SCALE)

    def value(features, boxes):
        return jnp.sum(pool(features, boxes) ** 2)

    both = jax.jit(jax.value_and_grad(value, (0, 1)))
    actual = jax.jit(jax.vmap(jax.value_and_grad(value, (0, 1))))(features, boxes)
    for i in range(2):
        one = jax.tree.map(lambda a, i=i: a[i], actual)
        expected = both(features[i], boxes[i])
        chex.assert_trees_all_close(one, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_features_keep_float32_places(golden, name):
    features = jnp.asarray(golden["features"], jnp.bfloat16)
    pool = jax.jit(partial(CASES[name], output_size=2, spatial_scale=SCALE))
    actual = pool(features, golden["boxes"])
    expected = pool(features.astype(jnp.float32), golden["boxes"])
    assert actual.dtype == jnp.bfloat16
    chex.assert_trees_all_close(
        actual.astype(jnp.float32), expected, rtol=8e-3, atol=8e-3
    )
    f = lambda features: jnp.sum(pool(features, golden["boxes"])).astype(jnp.float32)
    assert jax.grad(f)(features).dtype == jnp.bfloat16


def test_one_compilation_for_all_batches(rng):
    chex.clear_trace_counter()
    align = lambda x, boxes: roi_align(x, boxes, 2, sampling_ratio=0)
    align = jax.jit(chex.assert_max_traces(align, n=1))
    features = jnp.asarray(rng.normal(size=(6, 7, 2)), jnp.float32)
    for count in range(20):
        boxes = np.zeros((20, 4), np.float32)
        boxes[:count] = np.sort(rng.uniform(-2, 8, (count, 4)), axis=-1)
        out = align(features, boxes)
        chex.assert_tree_all_finite(out)
        chex.assert_trees_all_equal(out[count:], jnp.zeros_like(out[count:]))


@pytest.mark.parametrize("name", ["align", "adaptive", "pool", "ps_pool"])
def test_devices_share_the_features(golden, name):
    """Boxes on eight devices, features on all: their gradient is the sum."""
    features = jnp.asarray(golden["features"])
    boxes = jnp.asarray(np.resize(golden["boxes"], (16, 4)))
    pool = partial(CASES[name], output_size=2, spatial_scale=SCALE)
    value = lambda features, boxes: jnp.sum(pool(features, boxes) ** 2)
    expected = jax.grad(value)(features, boxes)

    @jax.jit
    @partial(jax.shard_map, mesh=data_mesh(), in_specs=(P(), P("data")), out_specs=P())
    def shared(features, boxes):
        return jax.grad(lambda f: jax.lax.psum(value(f, boxes), "data"))(features)

    chex.assert_trees_all_close(shared(features, boxes), expected, rtol=1e-4, atol=1e-4)


def test_bad_input_is_refused():
    features, boxes = jnp.zeros((4, 5, 6)), jnp.zeros((2, 4))
    with pytest.raises(ValueError, match=r"output_size must be positive, got 0"):
        roi_align(features, boxes, 0)
    with pytest.raises(ValueError, match=r"sampling_ratio must be .* got -1"):
        roi_align(features, boxes, 2, sampling_ratio=-1)
    with pytest.raises(ValueError, match=r"form must be one of"):
        ps_roi_align(features, boxes, (2, 3), form="dense")
    with pytest.raises(ValueError, match=r"channels for each of 4 bins, got 6"):
        ps_roi_pool(features, boxes, 2)
    with pytest.raises((ValueError, TypeError), match=r"boxes"):
        roi_pool(features, jnp.zeros((2, 5)), 2)
    with pytest.raises((ValueError, TypeError), match=r"features"):
        roi_pool(features[None], boxes, 2)
    with pytest.raises(ValueError, match=r"no axis of size 0"):
        roi_pool(features[:0], boxes, 2)
