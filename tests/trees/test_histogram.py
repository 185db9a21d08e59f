"""Histogram trees against exact ones, row orders and numbers of devices."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxml.parallel import data_mesh
from jaxml.trees import exact, histogram
from jaxml.trees.bins import from_cuts, make_bins
from jaxml.trees.growth import Columns
from jaxml.trees.rule import newton
from jaxml.trees.tree import compact, leaf_index


def problem(rng, n=96, columns=3, missing=0.0):
    x = np.round(rng.normal(size=(n, columns)) * 4).astype(np.float32) / 4
    x[rng.random(x.shape) < missing] = np.nan
    g = rng.normal(size=n) + np.nan_to_num(x[:, 0]) * np.nan_to_num(x[:, 1])
    channels = np.stack((g, rng.uniform(0.1, 1, n)))
    return x, jnp.asarray(channels, jnp.float32)


@partial(jax.jit, static_argnums=2)
def grow(x, channels, depth=3):
    return histogram.grow(make_bins(x, 32), channels, newton(), depth)


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_a_bin_for_every_value_gives_the_exact_partition(rng, missing):
    x, channels = problem(rng, missing=missing)
    tree, leaf = grow(x, channels)
    other, exact_leaf = exact.grow(exact.presort(x), channels, newton(), 3)
    tree, other = compact(tree), compact(other)
    assert len(tree.left) == len(other.left) > 7
    for a, b in ((leaf, exact_leaf), (tree.feature, other.feature)):
        assert (np.asarray(a) == np.asarray(b)).all()
    np.testing.assert_allclose(tree.value, other.value, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(tree.gain, other.gain, rtol=1e-4, atol=1e-4)
    assert (leaf_index(grow(x, channels)[0], x) == leaf).all()


def test_the_order_of_the_rows_does_not_change_a_bit(rng):
    x, channels = problem(rng, missing=0.2)
    order = rng.permutation(len(x))
    tree, leaf = grow(x, channels)
    again, moved = grow(x[order], channels[:, order])
    for a, b in zip(tree, again, strict=True):
        assert (np.asarray(a) == np.asarray(b)).all()
    assert (leaf[order] == moved).all()


@pytest.mark.parametrize("devices, by_kernel", [(2, True), (4, False), (8, False)])
def test_devices_do_not_change_a_bit(rng, plain_products, devices, by_kernel):
    x, channels = problem(rng, missing=0.2)
    how = {"implementation": "mosaic_gpu", "interpret": True} if by_kernel else {}
    mesh = data_mesh(jax.devices()[:devices])

    @jax.shard_map(
        mesh=mesh, in_specs=(P("data"), P(None, "data")), out_specs=(P(), P("data"))
    )
    def split(x, channels):
        bins = make_bins(x, 32, axis_name="data")
        return histogram.grow(bins, channels, newton(), 3, axis_name="data", **how)

    tree, leaf = grow(x, channels)
    again, parts = jax.jit(split)(x, channels)
    for a, b in zip(tree, again, strict=True):
        assert (np.asarray(a) == np.asarray(b)).all()
    assert (np.asarray(leaf) == np.asarray(parts)).all()


def test_a_split_may_part_the_missing_rows_from_all_others(rng):
    x = rng.normal(size=(64, 1)).astype(np.float32)
    x[:20] = np.nan
    g = np.where(np.isnan(x[:, 0]), 1.0, -1.0)
    channels = jnp.asarray(np.stack((g, np.ones(64))), jnp.float32)
    tree, leaf = grow(x, channels, 1)
    assert len(set(np.asarray(leaf[:20]))) == len(set(np.asarray(leaf[20:]))) == 1
    assert leaf[0] != leaf[-1]
    assert (leaf_index(tree, x) == leaf).all()


def test_gamma_cuts_before_growing(rng):
    x, channels = problem(rng)
    bins = make_bins(x, 32)
    free = compact(histogram.grow(bins, channels, newton(), 2)[0])
    gamma = float(free.gain[0]) * 1.01
    assert len(free.left) > 1
    cut = histogram.grow(bins, channels, newton(), 2, gamma=gamma)[0]
    assert len(compact(cut).left) == 1


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_columns_keep_their_constraints(rng, missing):
    x, channels = problem(rng, missing=missing)
    channels = channels.at[0].add(-2 * np.nan_to_num(x[:, 0]))
    use = Columns(monotone=(1, 0, -1), interaction=((0, 1), (2,)))
    tree, leaf = histogram.grow(make_bins(x, 32), channels, newton(), 3, use=use)
    told = lambda x: np.asarray(tree.value[leaf_index(tree, jnp.asarray(x)), 0])
    up, down = x.copy(), x.copy()
    up[:, 0] += 0.5
    down[:, 2] += 0.5
    assert (told(up) >= told(x)).all()
    assert (told(up) > told(x)).any()
    assert (told(down) <= told(x)).all()
    assert (leaf_index(tree, jnp.asarray(x)) == leaf).all()


def test_empty_bins_and_one_row(rng):
    cuts = [np.array([-9, -8, 0, 0, 0, 5], np.float32)]
    x = rng.normal(size=(20, 1)).astype(np.float32)
    channels = jnp.asarray(np.stack((np.sign(x[:, 0]), np.ones(20))), jnp.float32)
    tree, _ = histogram.grow(from_cuts(x, cuts), channels, newton(), 1)
    assert float(tree.threshold[0]) == 0
    tree, leaf = histogram.grow(make_bins(x[:1], 4), channels[:, :1], newton(), 2)
    assert not tree.left.any()
    assert leaf.tolist() == [0]


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_a_tree_of_the_kernel_is_that_of_the_scatter(rng, plain_products, missing):
    x, channels = problem(rng, n=600, missing=missing)
    bins = make_bins(x, 32)
    trees = [
        histogram.grow(bins, channels, newton(), 4, **options)
        for options in ({}, {"implementation": "mosaic_gpu", "interpret": True})
    ]
    chex.assert_trees_all_equal(*trees)
    assert (trees[0][0].left > 0).sum() > 6
