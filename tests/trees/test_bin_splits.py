"""The search between bins: all at once or one by one, and against every threshold tried."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.trees import bin_splits, bin_sums, histogram
from jaxml.trees.bins import make_bins
from jaxml.trees.growth import Columns
from jaxml.trees.rule import newton


def problem(rng, n=96, missing=0.0):
    x = np.round(rng.normal(size=(n, 3)) * 4).astype(np.float32) / 4
    x[:, 1] = np.abs(np.round(x[:, 1]))
    x[rng.random(x.shape) < missing] = np.nan
    g = rng.normal(size=n) + np.nan_to_num(x[:, 0]) * np.nan_to_num(x[:, 1])
    return x, np.stack((g, rng.uniform(0.1, 1, n))).astype(np.float32)


@pytest.mark.parametrize("missing", [0.0, 0.3])
@pytest.mark.parametrize(
    "use", [Columns(), Columns(monotone=(1, 0, -1)), Columns(categorical=(1,))]
)
def test_all_bins_at_once_or_one_by_one(rng, monkeypatch, missing, use):
    """Both ways to try the candidates give the same bits."""
    x, channels = problem(rng, missing=missing)
    bins = make_bins(x, 32, categorical=use.categorical)
    trees = []
    for name in ("_best_of_a_loop", "_best_at_once"):
        monkeypatch.setattr(bin_splits, "_best_of_a_loop", getattr(bin_splits, name))
        trees.append(histogram.grow(bins, jnp.asarray(channels), newton(), 3, use=use))
    chex.assert_trees_all_equal(*trees)
    assert trees[0][0].left.any()


@pytest.mark.parametrize("monotone", [(), (1, -1, 1), (-1, 1, -1)])
@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_no_threshold_gains_more(rng, missing, monotone):
    """Of one node: the best of all columns, thresholds and sides of the missing rows."""
    x, channels = problem(rng, missing=missing)
    bins = make_bins(x, 64)
    q = np.round(channels * 2**16).astype(np.int32)
    rule = newton()

    @jax.jit
    def search(q):
        slot = jnp.zeros(q.shape[1], jnp.int32)
        with jax.enable_x64(True):
            total = jnp.sum(q.astype(jnp.int64), axis=1)[:, None]
            unit = jnp.full(2, 2.0**-16, jnp.float64)
        table = bin_sums.sums_by_bin(bins, q, slot, 1)
        bounds = jnp.array([[-jnp.inf, jnp.inf]], jnp.float32) if monotone else None
        use = Columns(monotone)
        level = bin_splits.level_of(bins, table, total, unit, rule, bounds, use)
        allowed = jnp.ones((1, 3), bool)
        splits, cut, left = bin_splits.best_splits(bins, level, allowed)
        return (
            splits,
            left,
            bin_splits.goes_right(bins, slot, splits, cut, allowed[0, :1]),
        )

    splits, left, right = search(jnp.asarray(q))
    g, h = q / 2.0**16
    score = lambda rows: g[rows].sum() ** 2 / (h[rows].sum() + 1)
    value = lambda rows: -g[rows].sum() / (h[rows].sum() + 1)
    gains = []
    for column, sign in zip(x.T, monotone or (0, 0, 0), strict=True):
        for threshold in np.unique(column[~np.isnan(column)]):
            for default_left in (True, False):
                side = np.where(np.isnan(column), default_left, column < threshold)
                ordered = sign * (value(~side) - value(side)) >= 0
                if min(h[side].sum(), h[~side].sum()) >= 1 and ordered:
                    whole = np.ones(len(x), bool)
                    gains.append(score(side) + score(~side) - score(whole))
    np.testing.assert_allclose(splits.gain[0], max(gains), rtol=1e-5)
    goes = np.asarray(right, bool)
    np.testing.assert_array_equal(left[:, 0], q[:, ~goes].sum(axis=1))
    np.testing.assert_allclose(
        score(goes) + score(~goes) - score(np.ones(len(x), bool)), max(gains), rtol=1e-5
    )
