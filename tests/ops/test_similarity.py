"""Unit rows against NumPy, and their gradient at zero."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.ops import unit


@pytest.mark.parametrize("shape", [(3,), (4, 1), (2, 3, 5)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_rows_have_length_one(rng, shape, scale):
    x = scale * rng.normal(size=shape)
    expected = x / np.linalg.norm(x, axis=-1, keepdims=True)
    actual = unit(x.astype(np.float32))
    chex.assert_trees_all_close(actual, np.float32(expected), rtol=1e-5, atol=1e-6)


def test_zero_rows_stay_zero_with_a_finite_gradient():
    x = jnp.zeros((2, 3))
    chex.assert_trees_all_equal(unit(x), x)
    chex.assert_tree_all_finite(jax.grad(lambda x: unit(x).sum())(x))


def test_half_precision_keeps_its_dtype(rng):
    x = jnp.asarray(100 * rng.normal(size=(4, 64)), jnp.float16)  # squares overflow
    y = unit(x)
    assert y.dtype == jnp.float16
    norms = np.linalg.norm(np.float32(y), axis=-1)
    chex.assert_trees_all_close(norms, np.ones(4, np.float32), atol=1e-2)
