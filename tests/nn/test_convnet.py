"""ConvNet on pictures of 8, 28 and odd numbers of pixels."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.nn.conv import convolve
from jaxml.nn.convnet import ConvNet


@pytest.mark.parametrize("size", [(8, 8, 1), (28, 28, 1), (9, 5, 3)])
def test_one_vector_per_image(size):
    images = jnp.ones((2, *size))
    module = ConvNet((4, 6))
    variables = jax.eval_shape(
        lambda: module.init(jax.random.key(0), images, train=True)
    )
    apply = lambda v: module.apply(v, images, train=False)
    chex.assert_shape(jax.eval_shape(apply, variables), (2, 6))


def test_default_has_93_thousand_parameters():
    init = lambda: ConvNet().init(jax.random.key(0), jnp.ones((1, 8, 8, 1)), train=True)
    count = sum(p.size for p in jax.tree.leaves(jax.eval_shape(init)["params"]))
    assert count == 9 * (32 + 32 * 64 + 64 * 128) + 2 * (32 + 64 + 128)


def test_is_its_layers_in_order(rng):
    images = rng.normal(size=(3, 7, 7, 2)).astype(np.float32)
    module = ConvNet((4, 6))
    variables = module.init(jax.random.key(0), images, train=True)
    params = variables["params"]
    x = jnp.maximum(convolve(images, params["Conv_0"]["kernel"]), 0) / np.sqrt(1 + 1e-5)
    x = convolve(x, params["Conv_1"]["kernel"], stride=2)
    expected = jnp.maximum(x, 0).mean((1, 2)) / np.sqrt(1 + 1e-5)
    actual = module.apply(variables, images, train=False)
    chex.assert_trees_all_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_training_differs_and_moves_the_averages(rng):
    images = rng.normal(size=(4, 8, 8, 1)).astype(np.float32)
    module = ConvNet((4, 6), dtype=jnp.bfloat16)
    variables = module.init(jax.random.key(0), images, train=True)
    trained, state = module.apply(
        variables, images, train=True, mutable=["batch_stats"]
    )
    evaluated = module.apply(variables, images, train=False)
    assert trained.dtype == jnp.bfloat16
    chex.assert_tree_all_finite((trained, state))
    assert jnp.max(jnp.abs(trained - evaluated)) > 0.01
    moved = jax.tree.map(
        lambda a, b: bool(jnp.any(a != b)),
        state["batch_stats"],
        variables["batch_stats"],
    )
    assert all(jax.tree.leaves(moved))
