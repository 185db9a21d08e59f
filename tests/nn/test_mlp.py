"""The heads of the papers: which layers have what."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.nn import Mlp


def shapes(module, features=5):
    x = jnp.ones((4, features))
    return jax.tree.map(
        jnp.shape, module.init(jax.random.key(0), x, train=True)["params"]
    )


def test_hidden_layers_are_normalised_and_have_no_bias_of_their_own():
    assert shapes(Mlp([6, 3])) == {
        "Dense_0": {"kernel": (5, 6)},
        "BatchNorm_0": {"scale": (6,), "bias": (6,)},
        "Dense_1": {"kernel": (6, 3), "bias": (3,)},
    }


@pytest.mark.parametrize(
    "options, last",
    [
        ({}, {"scale": (3,), "bias": (3,)}),
        ({"last_bias": False}, {"scale": (3,)}),
        ({"last_bias": False, "last_scale": False}, None),
    ],
)
def test_last_layer_can_be_normalised(options, last):
    params = shapes(Mlp([6, 3], normalize_last=True, **options))
    assert params["Dense_1"] == {"kernel": (6, 3)}
    assert params.get("BatchNorm_1") == last


def test_without_norms_it_is_the_textbook_network(rng):
    x = rng.normal(size=(4, 5)).astype(np.float32)
    module = Mlp([6, 3], normalize=False)
    params = module.init(jax.random.key(0), x, train=False)["params"]
    params = jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), params)
    hidden = np.maximum(x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"], 0)
    expected = hidden @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"]
    actual = module.apply({"params": params}, x, train=False)
    chex.assert_trees_all_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_normalised_output_has_mean_zero_and_variance_one(rng):
    x = rng.normal(size=(64, 5)).astype(np.float32)
    module = Mlp([6, 3], normalize_last=True)
    variables = module.init(jax.random.key(0), x, train=True)
    y, _ = module.apply(variables, x, train=True, mutable=["batch_stats"])
    chex.assert_trees_all_close(y.mean(0), jnp.zeros(3), atol=1e-5)
    chex.assert_trees_all_close(y.std(0), jnp.ones(3), atol=1e-2)


def test_half_precision_keeps_float32_parameters(rng):
    x = jnp.asarray(rng.normal(size=(8, 5)), jnp.bfloat16)
    module = Mlp([6, 3], dtype=jnp.bfloat16)
    variables = module.init(jax.random.key(0), x, train=True)
    y, _ = module.apply(variables, x, train=True, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
