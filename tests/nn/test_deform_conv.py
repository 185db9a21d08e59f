"""The layer starts as a convolution, and learns where to look."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxml.nn import DeformConv, convolve


@pytest.mark.parametrize("modulated", [False, True])
def test_it_starts_as_a_convolution(rng, modulated):
    x = jnp.asarray(rng.normal(size=(2, 5, 6, 4)), jnp.float32)
    layer = DeformConv(6, 3, stride=2, groups=2, offset_groups=2, modulated=modulated)
    variables = layer.init(jax.random.key(0), x)
    params = variables["params"]
    chex.assert_shape(params["offset_kernel"], (3, 3, 4, 54 if modulated else 36))
    assert not any(np.any(params[f"offset_{name}"]) for name in ("kernel", "bias"))
    expected = convolve(x, params["kernel"], stride=2, groups=2)
    factor = 0.5 if modulated else 1.0
    actual = layer.apply(variables, x)
    chex.assert_trees_all_close(actual, factor * expected, atol=1e-5)


def test_it_learns_to_look_a_pixel_and_a_half_to_the_right(rng):
    x = jnp.asarray(rng.normal(size=(4, 8, 8, 1)), jnp.float32)
    smooth = convolve(x, jnp.full((5, 5, 1, 1), 0.2))
    target = 0.5 * (jnp.roll(smooth, -1, axis=2) + jnp.roll(smooth, -2, axis=2))
    ones = jax.nn.initializers.ones
    layer = DeformConv(1, 1, modulated=False, kernel_init=ones)
    params = layer.init(jax.random.key(0), smooth)["params"]
    optimizer = optax.adam(0.1)
    state = optimizer.init(params)

    def loss(params):
        y = layer.apply({"params": params}, smooth)
        return jnp.mean((y - target)[:, :, :-2] ** 2)

    @jax.jit
    def step(params, state):
        value, gradient = jax.value_and_grad(loss)(params)
        gradient = gradient | {"kernel": jnp.zeros_like(gradient["kernel"])}
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    first = None
    for _ in range(60):
        params, state, value = step(params, state)
        first = value if first is None else first
    assert value < 0.05 * first
    chex.assert_trees_all_close(params["offset_bias"], jnp.array([0, 1.5]), atol=0.3)


def test_bfloat16_and_bad_input(rng):
    x = jnp.asarray(rng.normal(size=(1, 4, 4, 2)), jnp.float32)
    layer = DeformConv(2, use_bias=True, dtype=jnp.bfloat16)
    y, variables = layer.init_with_output(jax.random.key(0), x)
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    with pytest.raises(ValueError, match=r"kernel_size must be odd, got 2"):
        DeformConv(2, 2).init(jax.random.key(0), x)
    with pytest.raises(
        ValueError, match=r"groups must divide the channels, got 3 for 2"
    ):
        DeformConv(3, groups=3).init(jax.random.key(0), x)
