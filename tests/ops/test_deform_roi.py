"""A bin that moves is the bin of a box that moved, which is proven in test_roi.py."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.ops.deform_roi import deform_roi_pool
from jaxml.ops.roi import ps_roi_align, roi_align

BOXES = np.float32([[8, 6, 40, 50], [-9, 20, 31, 72], [0, 0, 0, 0], [200, 9, 240, 30]])
OPTIONS = {"spatial_scale": 1 / 8, "sampling_ratio": 2}


def shifted(pool, features, offsets, gamma):
    """Bin by bin: the whole box is moved by what this bin moves by."""
    n, rows, columns, _ = offsets.shape
    out = []
    pool = jax.jit(partial(pool, output_size=(rows, columns), **OPTIONS))
    size = (BOXES[:, 2:] - BOXES[:, :2])[:, ::-1]  # (height, width)
    for i, j in np.ndindex(rows, columns):
        dy, dx = (gamma * offsets[:, i, j] * size).T
        moved = BOXES + np.stack([dx, dy, dx, dy], axis=1)
        out.append(pool(features, moved.astype(np.float32))[:, i, j])
    return jnp.stack(out, axis=1).reshape(n, rows, columns, -1)


@pytest.mark.parametrize("form", ["gather", "matmul"])
@pytest.mark.parametrize("position_sensitive", [False, True])
def test_a_bin_moves_as_a_box(rng, position_sensitive, form):
    features = rng.normal(size=(8, 9, 12)).astype(np.float32)
    offsets = rng.normal(size=(4, 2, 3, 2)).astype(np.float32)
    mask = rng.random((4, 2, 3)).astype(np.float32)
    pool = ps_roi_align if position_sensitive else roi_align
    expected = shifted(pool, features, offsets, gamma=0.3) * mask[..., None]
    actual = deform_roi_pool(
        features,
        BOXES,
        offsets,
        mask=mask,
        gamma=0.3,
        position_sensitive=position_sensitive,
        form=form,
        **OPTIONS,
    )
    chex.assert_trees_all_close(actual, expected, atol=2e-5)


@pytest.mark.parametrize("form", ["gather", "matmul"])
def test_classes_move_apart(rng, form):
    """Two classes of offsets for four of scores: each has two of them."""
    features = rng.normal(size=(8, 9, 24)).astype(np.float32)
    offsets = rng.normal(size=(4, 2, 3, 2, 2)).astype(np.float32)
    mask = rng.random((4, 2, 3, 2)).astype(np.float32)
    run = partial(deform_roi_pool, position_sensitive=True, form=form, **OPTIONS)
    actual = run(features, BOXES, offsets, mask=mask)
    for c in range(2):
        part = features[..., 12 * c : 12 * c + 12]
        expected = run(part, BOXES, offsets[..., c, :], mask=mask[..., c])
        chex.assert_trees_all_close(actual[..., 2 * c : 2 * c + 2], expected, atol=2e-5)


@pytest.mark.parametrize("ratio", [2, 0])
def test_gradients_reach_everything(rng, ratio):
    features = jnp.asarray(rng.normal(size=(5, 6, 4)), jnp.float32)
    boxes = jnp.array([[0.31, 0.72, 3.43, 4.12], [-1.23, 1.34, 5.77, 3.97]])
    offsets = jnp.asarray(rng.normal(size=(2, 2, 2, 2)), jnp.float32)
    mask = jnp.asarray(rng.random((2, 2, 2)), jnp.float32)
    pool = partial(deform_roi_pool, position_sensitive=True, sampling_ratio=ratio)
    f = jax.jit(lambda x, b, o, m: jnp.sum(pool(x, b, o, mask=m) ** 2))
    args = (features, boxes, offsets, mask)
    chex.assert_numerical_grads(f, args, order=1, eps=1e-3, atol=2e-3, modes=["rev"])


def test_bad_input_is_refused():
    features, boxes = jnp.zeros((4, 5, 8)), jnp.zeros((2, 4))
    with pytest.raises((ValueError, TypeError), match=r"offsets"):
        deform_roi_pool(features, boxes, jnp.zeros((3, 2, 2, 2)))
    with pytest.raises(ValueError, match=r"need position_sensitive=True"):
        deform_roi_pool(features, boxes, jnp.zeros((2, 2, 2, 2, 2)))
    with pytest.raises((ValueError, TypeError), match=r"mask"):
        deform_roi_pool(
            features, boxes, jnp.zeros((2, 2, 2, 2)), mask=jnp.zeros((2, 2, 3))
        )
    with pytest.raises(ValueError, match=r"for each of 9 bins, got 8"):
        deform_roi_pool(
            features, boxes, jnp.zeros((2, 3, 3, 2)), position_sensitive=True
        )
