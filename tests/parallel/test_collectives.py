"""Collectives: the identity on one device, the global batch on many."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxml.parallel import (
    all_gather,
    data_mesh,
    pmean,
    psum,
    sample_keys,
    sample_positions,
)

MESH = pytest.param(2), pytest.param(8)


def on(devices, function, out_specs, *args):
    mesh = data_mesh(jax.devices()[:devices])
    mapped = jax.shard_map(function, mesh=mesh, in_specs=P("data"), out_specs=out_specs)
    return jax.jit(mapped)(*args)


def test_one_device_needs_no_axis(rng):
    x = jnp.asarray(rng.normal(size=(4, 2)), jnp.float32)
    for collective in (pmean, psum, all_gather):
        chex.assert_trees_all_equal(collective(x, None), x)
    assert sample_positions(4, None).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("devices", MESH)
def test_means_and_sums(rng, devices):
    x = rng.normal(size=(16, 3)).astype(np.float32)
    mean = on(devices, lambda x: pmean({"a": x.mean(0)}, "data"), P(), x)
    chex.assert_trees_all_close(mean["a"], x.mean(0), rtol=1e-6, atol=1e-6)
    total = on(devices, lambda x: psum(x.sum(0), "data"), P(), x)
    chex.assert_trees_all_close(total, x.sum(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("devices", MESH)
def test_gather_is_in_device_order_and_replicated(rng, devices):
    x = rng.normal(size=(16, 3)).astype(np.float32)
    chex.assert_trees_all_equal(
        on(devices, lambda x: all_gather(x, "data"), P(), x), jnp.asarray(x)
    )


@pytest.mark.parametrize("devices", MESH)
def test_gradient_flows_through_the_gather(rng, devices):
    x = rng.normal(size=(16, 3)).astype(np.float32)

    def local(x):
        others = all_gather(x, "data")
        return pmean(jnp.mean(jnp.square(x @ others.T)), "data")

    def sharded(x):
        return on(devices, local, P(), x)

    expected = jax.grad(lambda x: jnp.mean(jnp.square(x @ x.T)))(x)
    chex.assert_trees_all_close(
        jax.device_get(jax.grad(sharded)(x)), np.asarray(expected), rtol=1e-5
    )


@pytest.mark.parametrize("devices", MESH)
def test_keys_do_not_depend_on_the_number_of_devices(devices):
    def draw(positions, axis_name="data"):
        keys = sample_keys(jax.random.key(3), len(positions), axis_name)
        return jax.vmap(jax.random.normal)(keys)

    expected = draw(jnp.arange(16), None)
    actual = on(devices, draw, P("data"), jnp.arange(16))
    chex.assert_trees_all_equal(jax.device_get(actual), jax.device_get(expected))
    assert len(np.unique(expected)) == 16
