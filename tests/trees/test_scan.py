"""Prefix sums by products: exact on a grid, for every length, and under vmap."""

import jax
import numpy as np
import pytest

from jaxml.trees.scan import BLOCK, prefix_sums


@pytest.mark.parametrize("n", [1, BLOCK - 1, BLOCK, BLOCK + 1, BLOCK**2 + 5])
def test_sums_are_exact_for_every_length(n, rng):
    x = rng.integers(-(2**40), 2**40, n)
    with jax.enable_x64(True):
        told = np.asarray(prefix_sums(x.astype(np.float64)))
    assert told.dtype == np.float64
    np.testing.assert_array_equal(told, np.cumsum(x))


def test_vmap_stays_in_float64(rng):
    x = rng.integers(0, 2**45, (3, 2, 70)).astype(np.float64)
    with jax.enable_x64(True):
        told = jax.jit(jax.vmap(prefix_sums))(x)
        np.testing.assert_array_equal(told, np.cumsum(x, axis=-1))
