"""Dropout: its rate, its scale, and the same noise on any number of devices."""

import chex
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from jaxml.nn import Dropout
from jaxml.parallel import data_mesh


def drop(module, x, train=True, key=0):
    rngs = {"dropout": jax.random.key(key)}
    return module.apply({}, x, train=train, rngs=rngs)


def test_entries_are_dropped_at_the_rate_and_the_mean_stays():
    y = drop(Dropout(0.25), jnp.ones((64, 1000)))
    assert jnp.mean(y == 0) == pytest.approx(0.25, abs=0.01)
    assert jnp.unique(y).tolist() == pytest.approx([0, 1 / 0.75])
    assert jnp.mean(y) == pytest.approx(1, abs=0.02)


def test_whole_samples_are_dropped_in_stochastic_depth():
    y = drop(Dropout(0.5, per_sample=True), jnp.ones((1000, 3, 2)))
    kept = jnp.sum(y, axis=(1, 2)) > 0
    chex.assert_trees_all_close(y, 2.0 * jnp.broadcast_to(kept[:, None, None], y.shape))
    assert jnp.mean(kept) == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("module, train", [(Dropout(0.5), False), (Dropout(0.0), True)])
def test_nothing_happens_in_evaluation_or_at_rate_zero(module, train):
    x = jnp.arange(6.0).reshape(2, 3)
    chex.assert_trees_all_equal(module.apply({}, x, train=train), x)


def test_noise_does_not_depend_on_the_devices():
    x = jnp.ones((16, 5))
    sharded = jax.shard_map(
        lambda x: drop(Dropout(0.5, axis_name="data"), x),
        mesh=data_mesh(),
        in_specs=P("data"),
        out_specs=P("data"),
    )
    expected = drop(Dropout(0.5), x)
    chex.assert_trees_all_equal(
        jax.device_get(jax.jit(sharded)(x)), jax.device_get(expected)
    )
    assert len({tuple(row) for row in expected.tolist()}) > 8  # samples differ


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_rates_outside_the_range_are_refused(rate):
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\)"):
        drop(Dropout(rate), jnp.ones((2, 2)))
