"""Sets of categories against all of them, tried one by one."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.trees import histogram
from jaxml.trees.bins import make_bins
from jaxml.trees.categories import holds
from jaxml.trees.growth import Columns
from jaxml.trees.rule import newton
from jaxml.trees.tree import compact, leaf_index
from jaxml.trees.xgboost import Config, fit, predict


def problem(rng, n=150, categories=6):
    code = rng.integers(0, categories, n)
    g = rng.normal(size=categories)[code] + 0.3 * rng.normal(size=n)
    x = np.stack((code, rng.normal(size=n)), axis=1).astype(np.float32)
    return x, jnp.asarray(np.stack((g, rng.uniform(0.5, 1, n))), jnp.float32)


def score(channels, rows):
    G, H = np.asarray(channels, np.float64)[:, rows].sum(axis=1)
    return G**2 / (H + 1)


@pytest.mark.parametrize("onehot_below", [6, 7])
@pytest.mark.parametrize("missing", [0.0, 2.0, -2.0, 30.0])
def test_the_best_set_is_found(rng, onehot_below, missing):
    x, channels = problem(rng)
    if missing:  # rows without a category are pulled to one side, then to the other
        x[rng.random(len(x)) < 0.2, 0] = np.nan
        channels = channels.at[0].add(missing * np.isnan(x[:, 0]))
    use = Columns(categorical=(0,), onehot_below=onehot_below)
    bins = make_bins(x, 32, categorical=(0,))
    tree, leaf = jax.jit(lambda bins, c: histogram.grow(bins, c, newton(), 1, use=use))(
        bins, channels
    )
    sizes = (1,) if onehot_below > 6 else range(1, 6)
    gains = []
    for size in sizes:
        for chosen in itertools.combinations(range(6), size):
            for lost in (False, True):
                right = np.isin(x[:, 0], chosen) | (np.isnan(x[:, 0]) & lost)
                gains.append(score(channels, right) + score(channels, ~right))
    best = max(gains) - score(channels, np.ones(len(x), bool))
    assert int(tree.feature[0]) == 0
    assert float(tree.gain[0]) == pytest.approx(best, rel=1e-4)
    assert (leaf_index(tree, x) == leaf).all()
    right = np.asarray(leaf) == 2
    told = score(channels, right) + score(channels, ~right)
    assert told == pytest.approx(max(gains), rel=1e-4)
    for node, rows in ((1, ~right), (2, right)):
        G, H = np.asarray(channels, np.float64)[:, rows].sum(axis=1)
        assert float(tree.value[node, 0]) == pytest.approx(-G / (H + 1), rel=1e-4)
        assert float(tree.cover[node]) == pytest.approx(H, rel=1e-4)


@pytest.mark.parametrize("most", [2, 3, 6, 64])
@pytest.mark.parametrize("least", [1.0, 9.0])
def test_sets_are_the_ends_of_the_order(rng, most, least):
    """Those of fewer than `most` categories; light ones stand where the value is 0."""
    x, channels = problem(rng, categories=12)
    x = x[:, :1]
    x[rng.random(len(x)) < 0.2] = np.nan
    use = Columns(categorical=(0,), most_categories=most)
    bins = make_bins(x, 16, categorical=(0,))
    tree, _ = histogram.grow(bins, channels, newton(min_child_weight=least), 1, use=use)
    code, exact = x[:, 0], np.asarray(channels, np.float64)
    sums = np.array([exact[:, code == c].sum(axis=1) for c in range(12)])
    value = np.where(sums[:, 1] >= least, -sums[:, 0] / (sums[:, 1] + 1), 0)
    assert (value == 0).any() == (least > 1)
    order, best = np.argsort(value, kind="stable"), (-np.inf, None)
    for size in range(1, 12):
        for lost in (False, True):
            if (12 - size if lost else size) >= min(most, 12):
                continue
            right = np.isin(code, order[:size]) | (np.isnan(code) & lost)
            if min(exact[1, right].sum(), exact[1, ~right].sum()) >= least:
                gain = score(channels, right) + score(channels, ~right)
                best = max(best, (gain, sum(1 << int(c) for c in order[:size])))
    gain = best[0] - score(channels, np.ones(len(x), bool))
    assert float(tree.gain[0]) == pytest.approx(gain, rel=1e-4)
    assert int(tree.categories[0, 0]) == best[1]


def test_unseen_categories_go_to_the_first_child(rng):
    x, channels = problem(rng)
    y = np.asarray(channels[0])
    config = Config(categorical=(0,), max_depth=2, num_boost_round=2, max_bin=8)
    model = fit(x, y, config, jax.random.key(0))
    tree = compact(jax.tree.map(lambda a: a[0], model.trees))
    assert tree.categories[0].any()
    left = tree.left[0]
    at = leaf_index(jax.tree.map(jnp.asarray, tree), np.array([[7.0, 0.0]]))
    first = tree.left[left]
    assert int(at[0]) in {left, first, first + 1}
    assert np.isfinite(predict(model, np.array([[900.0, 0.0]], np.float32))).all()


def test_no_set_holds_a_category_behind_its_last_word():
    words = jnp.array([[1], [1]], jnp.uint32)
    slot, code = jnp.array([0, 0, 0, 1]), jnp.array([0, 1, 32, 0])
    assert holds(words, slot, code).tolist() == [True, False, False, True]


def test_bad_categories_are_told(rng):
    x, _ = problem(rng, 16)
    for changed, config, message in (
        (x + 0.5, {}, "must be integers"),
        (x, {"max_bin": 2}, "must be integers in"),
        (x, {"tree_method": "exact"}, "for categories"),
        (x, {"categorical": (5,)}, "columns below 2"),
    ):
        options = {"categorical": (0,), "max_depth": 1, **config}
        with pytest.raises(ValueError, match=message):
            fit(changed, x[:, 1], Config(**options), jax.random.key(0))
