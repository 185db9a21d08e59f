"""Patches: loops, the way back, bad input."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.ops import patchify, unpatchify


@pytest.mark.parametrize("shape, side", [((2, 6, 4, 3), 2), ((1, 3, 9, 1), 3)])
def test_patches_are_cut_row_by_row_and_put_back(rng, shape, side):
    images = np.float32(rng.normal(size=shape))
    grid = shape[1] // side, shape[2] // side
    patches = patchify(images, side)
    chex.assert_shape(patches, (shape[0], grid[0] * grid[1], side * side * shape[3]))
    for i in range(grid[0]):
        for j in range(grid[1]):
            cut = images[:, i * side :, j * side :][:, :side, :side]
            chex.assert_trees_all_equal(
                patches[:, i * grid[1] + j], cut.reshape(shape[0], -1)
            )
    chex.assert_trees_all_equal(unpatchify(patches, grid, side), images)


@pytest.mark.parametrize(
    "call",
    [
        lambda: patchify(jnp.ones((1, 5, 4, 1)), 2),
        lambda: patchify(jnp.ones((1, 4, 4, 1)), 0),
        lambda: unpatchify(jnp.ones((1, 3, 4)), (2, 2), 2),
        lambda: unpatchify(jnp.ones((1, 4, 5)), (2, 2), 2),
    ],
)
def test_bad_input_is_refused(call):
    with pytest.raises(ValueError, match=r"must be .*patches|patches must be"):
        call()
