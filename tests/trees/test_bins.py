"""Bins against NumPy's searchsorted and sorting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxml.parallel import data_mesh
from jaxml.trees.bins import from_cuts, make_bins


def test_every_distinct_value_has_a_bin_if_there_are_few(rng):
    x = rng.integers(-3, 4, (50, 2)).astype(np.float32)
    x[rng.random(x.shape) < 0.2] = np.nan
    bins = make_bins(x, 16)
    for column, index in zip(x.T, np.asarray(bins.index), strict=True):
        present = ~np.isnan(column)
        assert (index[~present] == 16).all()
        values = np.unique(column[present])
        assert (index[present] == np.searchsorted(values, column[present])).all()


def test_many_values_are_cut_at_quantiles(rng):
    x = rng.normal(size=(1000, 1)).astype(np.float32)
    x[:40] = np.nan
    bins = make_bins(x, 8)
    counts = np.bincount(np.asarray(bins.index[0]), minlength=9)
    assert counts.tolist() == [120] * 8 + [40]
    order = np.sort(x[40:, 0])
    assert np.asarray(bins.cuts[0, :7]).tolist() == order[120::120].tolist()


def test_weights_move_the_cuts(rng):
    x = np.linspace(0, 1, 1000, dtype=np.float32)[:, None]
    weights = jnp.where(jnp.arange(1000) < 500, 3.0, 1.0)
    bins = make_bins(x, 8, weights)
    mass = np.bincount(np.asarray(bins.index[0]), np.asarray(weights))
    assert np.abs(mass - 250).max() <= 6


@pytest.mark.parametrize("max_bin", [8, 64], ids=["quantiles", "each value"])
def test_rows_of_weight_zero_make_no_cuts(rng, max_bin):
    x = rng.normal(size=(60, 2)).astype(np.float32)
    weights = rng.integers(0, 2, 60).astype(np.float32)
    weights[np.argmax(x[:, 0])] = weights[np.argmin(x[:, 1])] = 0
    some = weights > 0
    bins, fewer = (
        make_bins(x, max_bin, weights),
        make_bins(x[some], max_bin, weights[some]),
    )
    np.testing.assert_array_equal(bins.cuts, fewer.cuts)
    np.testing.assert_array_equal(bins.lowest, fewer.lowest)
    np.testing.assert_array_equal(np.asarray(bins.index)[:, some], fewer.index)


def test_bins_and_thresholds_agree(rng):
    """x < cuts[b] if and only if its bin is at most b, also for values out of range."""
    x = rng.standard_t(2, size=(200, 3)).astype(np.float32)
    bins = make_bins(x, 16)
    index, cuts = np.asarray(bins.index), np.asarray(bins.cuts)
    for b in range(16):
        assert ((index <= b) == (cuts[:, b : b + 1] > x.T)).all()
    assert (np.asarray(bins.lowest)[:, None] <= x.T).all()
    assert (np.diff(cuts, axis=1) >= 0).all()


def test_given_cuts_are_kept():
    x = np.array([[-1.0], [0.0], [0.5], [2.0], [np.nan]], np.float32)
    bins = from_cuts(x, [np.array([0.0, 1.0], np.float32)])
    assert bins.index.tolist() == [[0, 1, 1, 1, 2]]  # above the last cut: the last bin
    assert bins.shape == (5, 1)


def test_wide_bins_have_wide_indices(rng):
    x = rng.normal(size=(600, 1)).astype(np.float32)
    x[0] = np.nan
    assert make_bins(x, 255).index.dtype == jnp.uint8
    bins = make_bins(x, 256)
    assert bins.index.dtype == jnp.uint16
    assert int(bins.index.max()) == int(bins.index[0, 0]) == 256


def test_rows_over_devices_have_the_cuts_of_all(rng):
    x = rng.normal(size=(64, 2)).astype(np.float32)
    x[rng.random(x.shape) < 0.1] = np.nan

    @jax.shard_map(
        mesh=data_mesh(), in_specs=P("data"), out_specs=(P(None, "data"), P())
    )
    def on_eight(x):
        bins = make_bins(x, 8, axis_name="data")
        return bins.index, bins.cuts

    index, cuts = jax.jit(on_eight)(x)
    one = make_bins(x, 8)
    assert (np.asarray(index) == np.asarray(one.index)).all()
    assert (np.asarray(cuts) == np.asarray(one.cuts)).all()


@pytest.mark.parametrize("fill", [np.nan, 3.0])
def test_a_constant_or_missing_column_has_one_bin(fill):
    bins = make_bins(np.full((5, 1), fill, np.float32), 4)
    expected = 4 if np.isnan(fill) else 0
    assert set(np.asarray(bins.index[0]).tolist()) == {expected}


def test_bad_cuts_are_told():
    x = np.zeros((3, 1), np.float32)
    with pytest.raises(ValueError, match="max_bin must be in"):
        make_bins(x, 1)
    with pytest.raises(ValueError, match="1 vectors"):
        from_cuts(x, [])
    with pytest.raises(ValueError, match="ascending"):
        from_cuts(x, [np.array([2.0, 1.0])])


def test_given_cuts_without_a_bin_for_missing_values(rng):
    x = rng.normal(size=(50, 2)).astype(np.float32)
    cuts = [np.linspace(-2, 4, 256, dtype=np.float32), np.array([9], np.float32)]
    wide, narrow = (from_cuts(x, cuts, has_missing=m) for m in (True, False))
    assert (wide.stride, narrow.stride) == (257, 256)
    assert (wide.index.dtype, narrow.index.dtype) == (np.uint16, np.uint8)
    np.testing.assert_array_equal(wide.index, narrow.index)
