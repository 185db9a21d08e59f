"""Deviations of ranges, and medians, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.trees.deviation import medians, range_costs


@pytest.mark.parametrize("ties", [False, True])
def test_costs_of_ranges_are_least(ties, rng):
    n = 37
    y = rng.normal(size=n).astype(np.float32)
    y = np.round(y) if ties else y
    w = rng.integers(0, 4, n).astype(np.float32)
    start = rng.integers(0, n, 60)
    end = np.minimum(start + rng.integers(0, n, 60), n)
    order = np.argsort(y, kind="stable")
    rank = np.argsort(order, kind="stable")

    @jax.jit
    def costs(rank, w, ordered, start, end):
        with jax.enable_x64(True):
            return range_costs(rank, w, ordered, start, end).astype(jnp.float32)

    found = costs(*(jnp.asarray(a) for a in (rank, w, y[order], start, end)))
    for cost, a, b in zip(found, start, end, strict=True):
        part, mass = y[a:b], w[a:b]
        least = min((mass @ np.abs(part - m) for m in part), default=0)
        assert cost == pytest.approx(least, abs=1e-4)


def test_medians_are_in_the_middle_of_the_weight(rng):
    y = rng.normal(size=(41, 2)).astype(np.float32)
    w = rng.integers(0, 4, 41).astype(np.float32)
    group = rng.integers(0, 4, 41)
    found = jax.jit(medians, static_argnums=3)(y, w, group, 5)
    for g in range(4):
        for target in range(2):
            copies = np.repeat(y[group == g, target], w[group == g].astype(int))
            assert found[g, target] == pytest.approx(np.median(copies), abs=1e-6)
    assert np.isnan(found[4]).all()
