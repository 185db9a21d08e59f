"""The small encoder: shapes at odd sizes, statistics over devices, dtypes."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.nn import ConvNet, apply_module, init_module


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (7, 5)])
def test_one_vector_per_image(rng, size):
    x = rng.uniform(size=(3, *size, 1)).astype(np.float32)
    module = ConvNet((4, 8, 6))
    params, state = init_module(module, jax.random.key(0), x, train=True)
    y, _ = apply_module(module, params, state, x, train=True)
    chex.assert_shape(y, (3, 6))
    chex.assert_tree_all_finite(y)
    assert jnp.all(y >= 0)


def test_a_moved_digit_is_seen_alike_and_images_do_not_mix(rng):
    x = rng.uniform(size=(4, 8, 8, 1)).astype(np.float32)
    module = ConvNet((4, 8))
    params, state = init_module(module, jax.random.key(0), x, train=True)
    whole, _ = apply_module(module, params, state, x, train=False)
    alone, _ = apply_module(module, params, state, x[1:2], train=False)
    chex.assert_trees_all_close(whole[1:2], alone, rtol=1e-5, atol=1e-6)


def test_half_precision(rng):
    x = rng.uniform(size=(4, 8, 8, 1)).astype(np.float32)
    full, half = ConvNet((4, 8)), ConvNet((4, 8), dtype=jnp.bfloat16)
    params, state = init_module(full, jax.random.key(0), x, train=True)
    expected, _ = apply_module(full, params, state, x, train=True)
    actual, _ = apply_module(half, params, state, x, train=True)
    assert actual.dtype == jnp.bfloat16
    chex.assert_trees_all_close(np.float32(actual), np.float32(expected), atol=5e-2)
