"""Means over a split: exact however it is cut, and blind to padding."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxml.metrics import Metric, combine, mean_of
from jaxml.parallel import data_mesh


def itself(outputs, batch):
    del batch
    return outputs


MEAN = mean_of("mean", itself)


def run(metric, values, mask, cuts):
    """The metric over a split cut at the given places."""
    total, update = metric.init(), jax.jit(metric.update)
    for part, keep in zip(np.split(values, cuts), np.split(mask, cuts), strict=True):
        total = update(total, part, {"mask": keep})
    return total


@pytest.mark.parametrize("cuts", [[], [1], [3, 4, 9], range(1, 17)], ids=str)
def test_any_cut_gives_the_mean_of_what_the_mask_keeps(rng, cuts):
    values = rng.normal(size=17).astype(np.float32)
    mask = rng.random(17) < 0.6
    expected = np.mean(values.astype(np.float64)[mask])
    values[~mask] = np.nan  # what padding holds is nobody's business
    assert MEAN.compute(run(MEAN, values, mask, cuts)) == {
        "mean": pytest.approx(expected, rel=1e-6)
    }


def test_samples_count_without_a_mask():
    assert MEAN.compute(MEAN.update(MEAN.init(), jnp.arange(4.0), {})) == {"mean": 1.5}


@pytest.mark.parametrize("shape", [(6,), (6, 5), (6, 5, 2)], ids=str)
@pytest.mark.parametrize("mask_axes", [1, 2])
def test_masks_of_samples_and_of_tokens(rng, shape, mask_axes):
    mask_axes = min(mask_axes, len(shape))
    values = rng.normal(size=shape).astype(np.float32)
    mask = rng.random(shape[:mask_axes]) < 0.5
    total = MEAN.update(MEAN.init(), values, {"mask": mask})
    expected = values.astype(np.float64)[mask].mean()
    assert MEAN.compute(total)["mean"] == pytest.approx(expected, rel=1e-5)


def test_numbers_in_masks_keep_what_is_not_zero():
    batch = {"mask": jnp.array([1.0, 0.0, 1.0])}
    total = MEAN.update(MEAN.init(), jnp.array([1.0, 7.0, 2.0]), batch)
    assert MEAN.compute(total) == {"mean": 1.5}


def test_accumulators_add_up(rng):
    values, mask = rng.normal(size=(2, 8)).astype(np.float32), np.ones(8, bool)
    parts = [run(MEAN, v, mask, []) for v in values]
    merged = jax.tree.map(jnp.add, *parts)
    expected = values.astype(np.float64).mean()
    assert MEAN.compute(merged)["mean"] == pytest.approx(expected, rel=1e-6)


def test_eight_devices_count_as_one(rng):
    values = rng.normal(size=16).astype(np.float32)
    mask = np.arange(16) < 13

    def count(values, mask):
        total = MEAN.update(MEAN.init(), values, {"mask": mask})
        return jax.lax.psum(total, "data")

    sharded = jax.shard_map(
        count, mesh=data_mesh(), in_specs=(P("data"), P("data")), out_specs=P()
    )
    expected = values.astype(np.float64)[:13].mean()
    actual = MEAN.compute(jax.jit(sharded)(values, mask))
    assert actual["mean"] == pytest.approx(expected, rel=1e-5)


def test_small_terms_still_count_beside_a_large_sum():
    """2**24 + 1 is 2**24 in float32, so a plain sum would stand still."""
    large = jnp.array([2.0**24, 0.0])
    total = {"sum": large, "count": large}
    ones = jnp.ones((1000, 1))
    step = lambda total, one: (MEAN.update(total, 3 * one, {}), None)
    total, _ = jax.jit(lambda total: jax.lax.scan(step, total, ones))(total)
    expected = (2**24 + 3000) / (2**24 + 1000)
    assert MEAN.compute(total)["mean"] == pytest.approx(expected, rel=1e-12)


def test_bfloat16_values_are_summed_in_float32():
    values = jnp.full(1000, 1.0, jnp.bfloat16).at[0].set(3)
    total = MEAN.update(MEAN.init(), values, {})
    assert MEAN.compute(total)["mean"] == pytest.approx(1.002, rel=1e-6)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_shows(value):
    total = MEAN.update(MEAN.init(), jnp.array([value, 1.0]), {})
    total = MEAN.update(total, jnp.ones(2), {})
    chex.assert_trees_all_equal(MEAN.compute(total)["mean"], float(value))


def test_nothing_counted_is_an_error():
    with pytest.raises(ValueError, match="mean must count a sample, got none"):
        MEAN.compute(MEAN.init())


def test_a_mask_of_other_axes_is_an_error():
    with pytest.raises(ValueError, match=r"mask \(5,\) and values \(6, 5\)"):
        MEAN.update(MEAN.init(), jnp.ones((6, 5)), {"mask": jnp.ones(5, bool)})


def test_combined_metrics_are_computed_in_one_pass():
    def init():
        return jnp.zeros(2)

    def update(total, outputs, batch):
        del batch
        return jnp.stack(
            [jnp.maximum(total[0], outputs.max()), jnp.minimum(total[1], outputs.min())]
        )

    def compute(total):
        return {"high": float(total[0]), "low": float(total[1])}

    both = combine(size=MEAN, range=Metric(init, update, compute))
    total = jax.jit(both.update)(both.init(), jnp.array([-1.0, 5.0]), {})
    assert both.compute(total) == {"size": 2.0, "range/high": 5.0, "range/low": -1.0}


def test_combining_nothing_is_an_error():
    with pytest.raises(ValueError, match="at least one metric"):
        combine()


def test_updates_are_compiled_once():
    update = jax.jit(chex.assert_max_traces(MEAN.update, n=1))
    total = MEAN.init()
    for _ in range(3):
        total = update(total, jnp.ones(4), {"mask": jnp.ones(4, bool)})
    assert MEAN.compute(total) == {"mean": 1.0}
