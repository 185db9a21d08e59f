"""Pooling against loops; `tests/oracle/test_dense_ops_torch.py` has PyTorch's."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.ops.pooling import (
    adaptive_max_pool,
    max_pool_with_indices,
    max_unpool,
    spatial_pyramid_pool,
    yolo_spp,
)


def adaptive_numpy(image, bins):
    height, width, channels = image.shape
    out = np.zeros((bins, bins, channels), image.dtype)
    for i, j in np.ndindex(bins, bins):
        top, bottom = i * height // bins, -(-(i + 1) * height // bins)
        left, right = j * width // bins, -(-(j + 1) * width // bins)
        out[i, j] = image[top:bottom, left:right].max((0, 1))
    return out


def test_a_pyramid_of_any_size_compiled_once(rng):
    """Padding may hold anything; images may be smaller than their bins are many."""
    chex.clear_trace_counter()
    pool = jax.jit(chex.assert_max_traces(spatial_pyramid_pool, n=1), static_argnums=1)
    for _ in range(20):
        x = rng.normal(size=(2, 7, 9, 3)).astype(np.float32)
        sizes = np.stack([rng.integers(1, 8, 2), rng.integers(1, 10, 2)], 1)
        actual = pool(x, (4, 2, 1), jnp.asarray(sizes, jnp.int32))
        for image, (h, w), row in zip(x, sizes, actual, strict=True):
            parts = [adaptive_numpy(image[:h, :w], n).ravel() for n in (4, 2, 1)]
            chex.assert_trees_all_equal(row, np.concatenate(parts))


def test_whole_images_need_no_sizes(rng):
    x = rng.normal(size=(2, 7, 9, 3)).astype(np.float32)
    sizes = jnp.array([[7, 9], [7, 9]])
    expected = adaptive_max_pool(x, 4, sizes)
    chex.assert_trees_all_equal(adaptive_max_pool(x, 4), expected)
    gradient = jax.grad(lambda x: adaptive_max_pool(x, 4).sum())(jnp.asarray(x))
    chex.assert_tree_all_finite(gradient)
    assert gradient.sum() == 2 * 16 * 3


def test_yolo_spp_keeps_the_size(rng):
    x = rng.normal(size=(1, 6, 8, 2)).astype(np.float32)
    y = yolo_spp(x, (5, 3))
    chex.assert_shape(y, (1, 6, 8, 6))
    chex.assert_trees_all_equal(y[..., 4:], x)
    chex.assert_trees_all_equal(y[0, 2, 7, :2], x[0, 0:5, 5:].max((0, 1)))
    chex.assert_trees_all_equal(y[0, 0, 0, 2:4], x[0, :2, :2].max((0, 1)))


def test_unpooling_undoes_pooling(rng):
    x = rng.normal(size=(2, 4, 6, 3)).astype(np.float32)
    pooled, where = max_pool_with_indices(x, 2)
    back = max_unpool(pooled, where, (4, 6))
    chex.assert_trees_all_equal(back, jnp.where(back != 0, x, 0))
    assert int((back != 0).sum()) == pooled.size
    again, _ = max_pool_with_indices(jnp.abs(back), 2)
    chex.assert_trees_all_equal(again, jnp.abs(pooled))
    gradient = jax.grad(lambda p: (max_unpool(p, where, (4, 6)) * x).sum())(pooled)
    chex.assert_trees_all_equal(gradient, pooled)


def test_padding_is_never_the_maximum():
    pooled, where = max_pool_with_indices(-jnp.ones((1, 3, 3, 1)), 2, padding=1)
    chex.assert_trees_all_equal(pooled, -jnp.ones((1, 2, 2, 1)))
    assert where.ravel().tolist() == [0, 1, 3, 4]


def test_bad_input_is_refused():
    x = jnp.zeros((1, 3, 4, 2))
    with pytest.raises(ValueError, match=r"bins must be positive, got 0"):
        adaptive_max_pool(x, 0)
    with pytest.raises(ValueError, match=r"at least one"):
        spatial_pyramid_pool(x, ())
    with pytest.raises(ValueError, match=r"windows must be odd, got \(4,\)"):
        yolo_spp(x, (4,))
    with pytest.raises(ValueError, match=r"windows of 2 must fit"):
        max_pool_with_indices(x, 2, padding=2)
    with pytest.raises((ValueError, TypeError), match=r"indices"):
        max_unpool(x, jnp.zeros((1, 3, 4, 1), jnp.int32), (6, 8))
