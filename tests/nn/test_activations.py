"""Activations against `jax.nn`, and their gradients on eight devices."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxml.nn.activations import gelu
from jaxml.parallel import data_mesh


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_gelu_is_that_of_jax(dtype):
    x = jnp.asarray(np.linspace(-9, 9, 181), dtype)
    theirs = lambda x: jax.nn.gelu(x, approximate=False)
    tolerance = 1e-6 if dtype == jnp.float32 else 2e-2
    assert gelu(x).dtype == dtype
    for ours, exact in [
        (gelu, theirs),
        (jax.vmap(jax.grad(gelu)), jax.vmap(jax.grad(theirs))),
    ]:
        chex.assert_trees_all_close(
            ours(x).astype(np.float32),
            exact(x.astype(np.float32)),
            rtol=tolerance,
            atol=tolerance,
        )


def test_gelu_keeps_the_left_tail():
    """Phi(-5) is 2.866516e-7, of which 1 + erf leaves two digits in float32."""
    np.testing.assert_allclose(gelu(jnp.float32(-5)), -5 * 2.866515719e-7, rtol=1e-5)


def test_gelu_twice():
    second = jax.grad(jax.grad(gelu))
    x = 0.7  # (2 - x^2) times the density
    expected = (2 - x**2) * np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(second(jnp.float32(x)), expected, rtol=1e-5)


def test_gelu_has_a_gradient_on_eight_devices(rng):
    x = rng.normal(size=(16, 3)).astype(np.float32)
    gradient = jax.grad(lambda x: jnp.sum(gelu(x) ** 2))
    many = jax.shard_map(
        gradient, mesh=data_mesh(), in_specs=P("data"), out_specs=P("data")
    )
    chex.assert_trees_all_close(jax.jit(many)(x), gradient(x), rtol=1e-5, atol=1e-6)
