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


@pytest.mark.parametrize("scale", [0.0, 1e-13])
def test_rows_without_a_direction_are_zero_and_get_no_gradient(rng, scale):
    """One dead row must not throw all weights out of bounds."""
    x = jnp.asarray(rng.normal(size=(3, 4)), jnp.float32).at[1].multiply(scale)
    assert (unit(x)[1] == 0).all()
    gradient = jax.grad(lambda x: jnp.sum(unit(x) * jnp.arange(4.0)[None]))(x)
    assert (gradient[1] == 0).all()
    assert (gradient[0] != 0).all()
    chex.assert_tree_all_finite(gradient)


def test_half_precision_keeps_its_dtype(rng):
    x = jnp.asarray(100 * rng.normal(size=(4, 64)), jnp.float16)  # squares overflow
    y = unit(x)
    assert y.dtype == jnp.float16
    norms = np.linalg.norm(np.float32(y), axis=-1)
    chex.assert_trees_all_close(norms, np.ones(4, np.float32), atol=1e-2)
