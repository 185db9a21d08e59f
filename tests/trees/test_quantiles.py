"""Quantiles against sorting, group by group."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.trees.quantiles import grouped_quantile, quantile


def quantile_numpy(x, alpha):
    """Between order statistics at alpha (n + 1), the first of them at 1."""
    x, n = np.sort(x.astype(np.float64)), len(x)
    place = min(max(alpha * (n + 1), 1), n)
    low = int(place)
    return x[low - 1] + (place - low) * (x[min(low, n - 1)] - x[low - 1])


@pytest.mark.parametrize("alpha", [0.01, 0.1, 0.5, 0.77, 0.99])
@pytest.mark.parametrize("n", [1, 2, 5, 40])
def test_quantiles_are_between_order_statistics(rng, alpha, n):
    x = rng.normal(size=n).astype(np.float32)
    expected = quantile_numpy(x, alpha)
    assert float(quantile(jnp.asarray(x), alpha)) == pytest.approx(expected, abs=1e-6)


def test_quantiles_by_group_weight_and_count(rng):
    x = rng.normal(size=60).astype(np.float32)
    group, weight = rng.integers(0, 3, 60), rng.integers(0, 3, 60).astype(np.float32)
    counted = rng.random(60) < 0.7
    given = jnp.asarray(x), jnp.asarray(group, jnp.int32), 4, 0.3
    plain = np.asarray(grouped_quantile(*given, None, jnp.asarray(counted)))
    heavy = np.asarray(grouped_quantile(*given, jnp.asarray(weight)))
    assert np.isnan(plain[3])
    assert np.isnan(heavy[3])
    for g in range(3):
        rows = x[(group == g) & counted]
        assert plain[g] == pytest.approx(quantile_numpy(rows, 0.3), abs=1e-6)
        order = np.argsort(x[group == g])
        mass = weight[group == g][order].cumsum()
        first = np.searchsorted(mass, np.float32(0.3) * mass[-1] - 1e-4)
        assert heavy[g] == x[group == g][order][first]


def test_a_weight_that_is_reached_exactly_is_reached():
    x = jnp.array([4.0, 1.0, 3.0, 2.0])
    assert float(quantile(x, 0.5, jnp.ones(4))) == 2
    assert float(quantile(x, 0.75, jnp.array([1.0, 2.0, 0.0, 1.0]))) == 2
