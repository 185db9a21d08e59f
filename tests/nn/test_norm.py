"""Batch norm against float64, its running averages, groups, and many devices."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxml.nn import BatchNorm
from jaxml.parallel import data_mesh, pmean


def batch_norm_numpy(x, epsilon=1e-5):
    """Algorithm 1 in float64, without scale and bias."""
    x = x.astype(np.float64)
    axes = tuple(range(x.ndim - 1))
    return (x - x.mean(axes)) / np.sqrt(x.var(axes) + epsilon)


def run(module, x, train=True):
    variables = module.init(jax.random.key(0), x, train=train)
    return module.apply(variables, x, train=train, mutable=["batch_stats"])


@pytest.mark.parametrize("shape", [(7, 3), (5, 4, 2), (3, 5, 4, 6)])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_training_matches_numpy_even_far_from_zero(rng, shape, offset):
    x = (rng.normal(size=shape) + offset).astype(np.float32)
    y, _ = run(BatchNorm(), x)
    tolerance = 1e-5 if offset == 0 else 2e-3  # of the float32 input itself
    chex.assert_trees_all_close(y, np.float32(batch_norm_numpy(x)), atol=tolerance)


def test_running_averages_are_torchs(rng):
    """Momentum is the weight of the new batch; the running variance is unbiased."""
    x = rng.normal(size=(6, 4)).astype(np.float32)
    _, updates = run(BatchNorm(momentum=0.3), x)
    mean, var = x.mean(0), x.var(0, ddof=1)
    expected = {"mean": 0.3 * mean, "var": 0.7 + 0.3 * var}
    chex.assert_trees_all_close(updates["batch_stats"], expected, rtol=1e-5)


def test_evaluation_uses_the_running_averages(rng):
    x = rng.normal(size=(6, 4)).astype(np.float32)
    stats = {"mean": np.full(4, 2.0, np.float32), "var": np.full(4, 9.0, np.float32)}
    module = BatchNorm(use_scale=False, use_bias=False)
    y = module.apply({"batch_stats": stats}, x, train=False)
    chex.assert_trees_all_close(y, (x - 2) / np.sqrt(9 + 1e-5), rtol=1e-5)


def test_scale_and_bias_can_be_left_out(rng):
    x = rng.normal(size=(6, 4)).astype(np.float32)
    both = BatchNorm().init(jax.random.key(0), x, train=True)["params"]
    assert both.keys() == {"scale", "bias"}
    none = BatchNorm(use_scale=False, use_bias=False)
    assert "params" not in none.init(jax.random.key(0), x, train=True)


def test_half_precision_is_normalised_in_float32(rng):
    x = jnp.asarray(rng.normal(size=(64, 4)) + 50, jnp.bfloat16)
    y, updates = run(BatchNorm(), x)
    assert y.dtype == jnp.bfloat16
    assert updates["batch_stats"]["var"].dtype == jnp.float32
    expected = batch_norm_numpy(np.asarray(x, np.float32))
    chex.assert_trees_all_close(np.float32(y), np.float32(expected), atol=2e-2)


def test_gradients_are_numerical(rng):
    x = rng.normal(size=(5, 3)).astype(np.float32)
    weight = rng.normal(size=(5, 3)).astype(np.float32)
    chex.assert_numerical_grads(
        lambda x: jnp.sum(weight * run(BatchNorm(), x)[0]), (x,), order=1, eps=1e-2
    )


@pytest.mark.parametrize("groups", [2, 4])
def test_groups_are_normalised_apart(rng, groups):
    x = rng.normal(size=(8, 3)).astype(np.float32)
    y, _ = run(BatchNorm(num_groups=groups), x)
    expected = np.concatenate([batch_norm_numpy(g) for g in np.split(x, groups)])
    chex.assert_trees_all_close(y, np.float32(expected), atol=1e-5)


@pytest.mark.parametrize("devices, groups", [(2, 1), (8, 1), (8, 2), (2, 4), (8, 8)])
def test_many_devices_equal_one(rng, devices, groups):
    x = (rng.normal(size=(16, 3)) + 5).astype(np.float32)
    weight = rng.normal(size=(16, 3)).astype(np.float32)
    one, many = (BatchNorm(num_groups=groups, axis_name=a) for a in (None, "data"))
    variables = one.init(jax.random.key(0), x, train=True)

    def loss(module, axis_name, params, x, weight):
        y, updates = module.apply(
            {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
        )
        return pmean(jnp.mean(weight * y), axis_name), updates

    def sharded(params, x, weight):
        return jax.shard_map(
            lambda *args: loss(many, "data", *args),
            mesh=data_mesh(jax.devices()[:devices]),
            in_specs=(P(), P("data"), P("data")),
            out_specs=P(),
        )(params, x, weight)

    def plain(params, x, weight):
        return loss(one, None, params, x, weight)

    actual, expected = (
        jax.jit(jax.value_and_grad(f, argnums=(0, 1), has_aux=True))(
            variables["params"], x, weight
        )
        for f in (sharded, plain)
    )
    chex.assert_trees_all_close(
        jax.device_get(actual), jax.device_get(expected), rtol=1e-5, atol=1e-6
    )


def test_a_single_value_cannot_be_normalised():
    variables = BatchNorm().init(jax.random.key(0), jnp.ones((2, 3)), train=True)
    with pytest.raises(ValueError, match="more than one value per channel"):
        BatchNorm().apply(
            variables, jnp.ones((1, 3)), train=True, mutable=["batch_stats"]
        )


def test_groups_must_divide():
    variables = BatchNorm().init(jax.random.key(0), jnp.ones((4, 3)), train=True)
    with pytest.raises(ValueError, match="num_groups must divide"):
        BatchNorm(num_groups=3).apply(
            variables, jnp.ones((4, 3)), train=True, mutable=["batch_stats"]
        )
