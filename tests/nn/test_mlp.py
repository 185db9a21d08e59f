"""Mlp: the heads it stands for, and the same on eight devices."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxml.nn.mlp import Mlp
from jaxml.parallel.mesh import data_mesh


def shapes(module, features=6):
    init = lambda: module.init(jax.random.key(0), jnp.ones((2, features)), train=True)
    params = jax.eval_shape(init).get("params", {})
    return {name: set(layer) for name, layer in params.items()}


@pytest.mark.parametrize(
    "module, expected",
    [
        (
            Mlp([8, 4], normalize_last=True, last_bias=False),  # SimCLR
            {
                "Dense_0": {"kernel"},
                "BatchNorm_0": {"scale", "bias"},
                "Dense_1": {"kernel"},
                "BatchNorm_1": {"scale"},
            },
        ),
        (
            Mlp([8, 4], normalize=False),  # MoCo v2
            {"Dense_0": {"kernel", "bias"}, "Dense_1": {"kernel", "bias"}},
        ),
        (
            Mlp([8, 4], normalize_last=True, last_scale=False, last_bias=False),
            {  # SimSiam's projector, of two layers
                "Dense_0": {"kernel"},
                "BatchNorm_0": {"scale", "bias"},
                "Dense_1": {"kernel"},
            },
        ),
        (
            Mlp([8, 4]),  # BYOL
            {
                "Dense_0": {"kernel"},
                "BatchNorm_0": {"scale", "bias"},
                "Dense_1": {"kernel", "bias"},
            },
        ),
        (
            Mlp([8, 4], last_bias=False),  # VICReg
            {
                "Dense_0": {"kernel"},
                "BatchNorm_0": {"scale", "bias"},
                "Dense_1": {"kernel"},
            },
        ),
    ],
)
def test_heads_have_the_papers_parameters(module, expected):
    assert shapes(module) == expected


def test_matches_numpy(rng):
    x = rng.normal(size=(5, 3)).astype(np.float32)
    module = Mlp([4, 7, 2])
    variables = module.init(jax.random.key(0), x, train=True)
    variables = jax.tree.map(
        lambda v: jnp.asarray(rng.uniform(0.5, 1.5, v.shape), jnp.float32), variables
    )
    y, state = module.apply(variables, x, train=True, mutable=["batch_stats"])
    params = jax.tree.map(lambda v: np.asarray(v, np.float64), variables["params"])
    h = x.astype(np.float64)
    for i in range(2):
        h = h @ params[f"Dense_{i}"]["kernel"]
        norm = params[f"BatchNorm_{i}"]
        h = (h - h.mean(0)) / np.sqrt(h.var(0) + 1e-5) * norm["scale"] + norm["bias"]
        h = np.maximum(h, 0)
    expected = h @ params["Dense_2"]["kernel"] + params["Dense_2"]["bias"]
    chex.assert_trees_all_close(y, expected, rtol=1e-4, atol=1e-5)
    assert jnp.any(state["batch_stats"]["BatchNorm_1"]["mean"] != 0)
    evaluated = module.apply(variables, x, train=False)
    assert jnp.max(jnp.abs(evaluated - y)) > 0.1


def test_eight_devices_equal_one(rng):
    x = rng.normal(size=(16, 3)).astype(np.float32)
    variables = Mlp([4, 2], normalize_last=True).init(jax.random.key(0), x, train=True)

    def gradient(axis_name):
        module = Mlp([4, 2], normalize_last=True, axis_name=axis_name)

        def objective(params, x):
            y, state = module.apply(
                {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
            )
            value = jnp.mean(jnp.sin(y))
            return (
                value if axis_name is None else jax.lax.pmean(value, axis_name)
            ), state

        return jax.grad(objective, has_aux=True)

    many = jax.shard_map(
        gradient("data"), mesh=data_mesh(), in_specs=(P(), P("data")), out_specs=P()
    )
    expected = jax.jit(gradient(None))(variables["params"], x)
    actual = jax.jit(many)(variables["params"], x)
    chex.assert_trees_all_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_bfloat16_is_close(rng):
    x = rng.normal(size=(64, 8)).astype(np.float32)
    wide = Mlp([32, 4], normalize_last=True)
    narrow = Mlp([32, 4], normalize_last=True, dtype=jnp.bfloat16)
    variables = wide.init(jax.random.key(0), x, train=True)
    expected = wide.apply(variables, x, train=True, mutable=["batch_stats"])[0]
    actual = narrow.apply(variables, x, train=True, mutable=["batch_stats"])[0]
    assert actual.dtype == jnp.bfloat16
    chex.assert_trees_all_close(
        actual.astype(np.float32), expected, rtol=0.05, atol=0.1
    )
