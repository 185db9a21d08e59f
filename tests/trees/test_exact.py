"""Exact trees against a recursion over all splits, in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.trees.exact import grow, presort
from jaxml.trees.growth import Columns
from jaxml.trees.rule import newton
from jaxml.trees.tree import compact, leaf_index

LAMBDA, LEAST = 0.5, 1.5


def best_split(x, g, h, both_ways):
    """(gain, column, threshold, missing left) of the rows, or None; ties to the first."""
    f32 = np.float32
    best = (f32(1e-6), None, None, None)
    score = lambda rows: f32(g[rows].sum() ** 2 / (h[rows].sum() + LAMBDA))
    every = np.ones(len(g), bool)
    for column in range(x.shape[1]):
        value = x[:, column]
        missing = np.isnan(value)
        distinct = np.unique(value[~missing])
        middles = (distinct[1:] + distinct[:-1]) * f32(0.5)
        ends = []
        if len(distinct):
            gaps = np.abs(distinct) + f32(1e-6)
            ends = [distinct[-1] + gaps[-1], distinct[0] - gaps[0]]
        tries = [(t, False) for t in [*middles, *ends[:1]] if both_ways]
        tries += [(t, True) for t in [*middles[::-1], *ends[1:]]]
        for threshold, missing_left in tries:
            left = (value < threshold) | (missing & missing_left)
            if min(h[left].sum(), h[~left].sum()) < LEAST:
                continue
            gain = f32(f32(score(left) + score(~left)) - score(every))
            if gain > best[0]:
                best = (gain, column, threshold, missing_left)
    return best if best[1] is not None else None


def recurse(x, g, h, depth, both_ways):
    """Nodes in the order of a walk: (column, threshold, missing left, gain) or value."""
    split = best_split(x, g, h, both_ways) if depth else None
    if split is None:
        return [-g.sum() / (h.sum() + LAMBDA)]
    gain, column, threshold, missing_left = split
    value = x[:, column]
    left = (value < threshold) | (np.isnan(value) & missing_left)
    children = [
        recurse(x[side], g[side], h[side], depth - 1, both_ways)
        for side in (left, ~left)
    ]
    return [(column, threshold, missing_left, gain), *children[0], *children[1]]


def walk(tree, node=0):
    if not tree.left[node]:
        return [tree.value[node, 0]]
    mine = (
        tree.feature[node],
        tree.threshold[node],
        tree.default_left[node],
        tree.gain[node],
    )
    left = tree.left[node]
    return [mine, *walk(tree, left), *walk(tree, left + 1)]


@pytest.fixture(scope="module")
def grown():
    def make(x, channels):
        return grow(presort(x), channels, newton(LAMBDA, 0.0, 0.0, LEAST), 3)

    return jax.jit(make)


def problem(rng, n=40, columns=3, missing=0.2, ties=False):
    x = rng.normal(size=(n, columns)).astype(np.float32)
    x = np.round(x * 2) / 2 if ties else x
    x[rng.random(x.shape) < missing] = np.nan
    g = rng.normal(size=n).astype(np.float32)
    h = rng.uniform(0.1, 1, n).astype(np.float32)
    return x, g, h


@pytest.mark.parametrize("missing", [0.0, 0.2, 0.7])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_trees_are_those_of_a_search_over_all_splits(grown, missing, ties, seed):
    rng = np.random.default_rng(seed)
    x, g, h = problem(rng, missing=missing, ties=ties)
    if missing:
        x[0] = np.nan  # in every column some are missing, here as in training
    tree, leaf = grown(x, jnp.stack((g, h)))
    expected = recurse(x, g.astype(np.float64), h.astype(np.float64), 3, missing > 0)
    actual = walk(compact(tree))
    assert len(actual) == len(expected)
    for mine, theirs in zip(actual, expected, strict=True):
        if not isinstance(theirs, tuple):
            assert mine == pytest.approx(theirs, rel=1e-6, abs=1e-7)
            continue
        assert mine[:2] == theirs[:2]
        assert bool(mine[2]) == theirs[2]
        assert mine[3] == pytest.approx(theirs[3], rel=1e-5)
    assert (leaf_index(tree, x) == leaf).all()


def test_covers_and_values_add_up(grown, rng):
    x, g, h = problem(rng)
    tree, _ = grown(x, jnp.stack((g, h)))
    tree = compact(tree)
    (inner,) = np.nonzero(tree.left)
    both = tree.cover[tree.left[inner]] + tree.cover[tree.left[inner] + 1]
    np.testing.assert_allclose(both, tree.cover[inner], rtol=1e-6)
    assert tree.cover[0] == pytest.approx(h.sum(), rel=1e-6)


def test_the_order_of_the_rows_does_not_matter(grown, rng):
    x, g, h = problem(rng, ties=True)
    order = rng.permutation(len(x))
    tree, leaf = grown(x, jnp.stack((g, h)))
    again, moved = grown(x[order], jnp.stack((g, h))[:, order])
    for one, other in zip(jax.tree.leaves(tree), jax.tree.leaves(again), strict=True):
        assert (one == other).all()
    assert (leaf[order] == moved).all()


@pytest.mark.parametrize("case", ["constant", "all missing", "zero gradient"])
def test_nothing_to_split_is_one_leaf(grown, rng, case):
    x, g, h = problem(rng)
    x = {"constant": np.ones_like(x), "all missing": x * np.nan}.get(case, x)
    g = g * 0 if case == "zero gradient" else g
    tree, leaf = grown(x, jnp.stack((g, h)))
    assert not tree.left.any()
    assert not leaf.any()
    assert float(tree.value[0, 0]) == pytest.approx(
        -g.sum() / (h.sum() + 0.5), abs=1e-6
    )


def test_pruning_keeps_poor_splits_above_good_ones(rng):
    """An exclusive or: the first split gains next to nothing, those below it much."""
    x = rng.integers(0, 2, (80, 2)).astype(np.float32)
    y = x[:, 0] != x[:, 1]
    channels = jnp.stack((0.5 - y, jnp.ones(80))).astype(jnp.float32)
    make = lambda gamma: compact(
        grow(presort(x), channels, newton(), 2, gamma=gamma)[0]
    )
    free = make(0.0)
    assert len(free.left) == 7
    first, lowest = free.gain[0], free.gain[1:3].min()
    assert first < lowest
    assert len(make(float(first + lowest) / 2).left) == 7
    assert len(make(1e6).left) == 1


def test_columns_keep_their_constraints(rng):
    x, g, h = problem(rng, n=80, columns=4, missing=0.0)
    channels = jnp.stack((g - x[:, 0] + x[:, 1], h))
    use = Columns(monotone=(1, -1, 0, 0), interaction=((0, 2), (1, 3)))
    tree, _ = grow(presort(x), channels, newton(min_child_weight=0.1), 3, use=use)
    told = lambda x: np.asarray(tree.value[leaf_index(tree, jnp.asarray(x)), 0])
    up, down = x.copy(), x.copy()
    up[:, 0] += 1
    down[:, 1] += 1
    assert (told(up) >= told(x)).all()
    assert (told(down) <= told(x)).all()
    assert (told(up) > told(x)).any() or (told(down) < told(x)).any()

    def paths(node, met):
        if not tree.left[node]:
            yield met
            return
        met = met | {int(tree.feature[node])}
        for child in (0, 1):
            yield from paths(int(tree.left[node]) + child, met)

    assert all(met <= {0, 2} or met <= {1, 3} for met in paths(0, frozenset()))


def test_a_tree_reads_only_available_columns(rng):
    x, g, h = problem(rng, columns=4)
    only = jnp.array([False, True, False, True])
    tree, _ = grow(presort(x), jnp.stack((g, h)), newton(), 3, available=only)
    assert set(np.asarray(tree.feature)[np.asarray(tree.left) > 0]) <= {1, 3}
