"""Partial dependence against its definition, row by row and cover by cover."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxml.trees.partial_dependence import individual_curves, partial_dependence
from jaxml.trees.tree import compact
from jaxml.trees.xgboost import Config, fit, predict

CONFIG = Config(max_depth=3, num_boost_round=3, max_bin=16)
GRID = np.array([-1.0, np.nan, 0.0, 0.7], np.float32)


def fitted(rng):
    x = rng.normal(size=(80, 3)).astype(np.float32)
    x[rng.random(x.shape) < 0.1] = np.nan
    filled = np.nan_to_num(x)
    y = filled[:, 0] * (filled[:, 1] > 0) + 0.1 * filled[:, 2]
    return x, fit(x, y, CONFIG, jax.random.key(0))


def by_covers(tree, column, value, node=0):
    first = tree.left[node]
    if not first:
        return tree.value[node, 0]
    if tree.feature[node] == column:
        left = value < tree.threshold[node]
        left = tree.default_left[node] if np.isnan(value) else left
        return by_covers(tree, column, value, first + (0 if left else 1))
    cover = tree.cover[[first, first + 1]]
    parts = [by_covers(tree, column, value, first + side) for side in (0, 1)]
    return np.dot(parts, cover) / cover.sum()


def test_both_ways_are_their_definition(rng):
    x, model = fitted(rng)
    curves = individual_curves(model, x, 0, GRID)
    assert curves.shape == (4, 80, 1)
    for i, value in enumerate(GRID):
        moved = x.copy()
        moved[:, 0] = value
        np.testing.assert_allclose(curves[i, :, 0], predict(model, moved), rtol=1e-6)
    brute = partial_dependence(model, x, 0, GRID)
    np.testing.assert_allclose(brute[:, 0], np.mean(curves, axis=(1, 2)), rtol=1e-5)
    trees = [compact(jax.tree.map(lambda a, i=i: a[i], model.trees)) for i in range(3)]
    expected = [
        float(model.start[0]) + sum(by_covers(tree, 0, value) for tree in trees)
        for value in GRID
    ]
    told = partial_dependence(model, None, 0, GRID)
    np.testing.assert_allclose(told[:, 0], expected, rtol=1e-5, atol=1e-6)
    assert np.ptp(expected) > 0.2


ONE = dataclasses.replace(CONFIG, num_boost_round=6, eta=0.8)


@pytest.mark.parametrize(
    "config",
    [
        dataclasses.replace(ONE, categorical=(0,), max_cat_to_onehot=1),
        dataclasses.replace(ONE, booster="dart", rate_drop=0.5),
        dataclasses.replace(ONE, early_stopping_rounds=2),
    ],
    ids=["categories", "dart", "early stopping"],
)
def test_of_one_column_nothing_is_averaged(rng, config):
    x = rng.integers(0, 6, (80, 1)).astype(np.float32)
    x[::9] = np.nan
    y = np.where(np.isnan(x[:, 0]), -1, x[:, 0] % 3) + rng.normal(size=80)
    held = (x, rng.normal(size=80)) if config.early_stopping_rounds else None
    model = fit(x, y, config, jax.random.key(0), evaluation=held)
    thresholds = np.asarray(model.trees.threshold).ravel()
    grid = np.r_[np.arange(6), 40, np.nan, thresholds[np.isfinite(thresholds)]]
    grid = grid.astype(np.float32)
    expected = predict(model, grid[:, None])
    assert np.ptp(expected) > 0.2
    told = partial_dependence(model, None, 0, grid)
    np.testing.assert_allclose(told[:, 0], expected, rtol=1e-5, atol=1e-6)
    if held is not None:
        assert model.best_iteration < 5


@pytest.mark.parametrize("strategy", ["one_output_per_tree", "multi_output_tree"])
def test_every_output_has_its_curve(rng, strategy):
    x = rng.normal(size=(90, 1)).astype(np.float32)
    config = dataclasses.replace(
        CONFIG, objective="multi:softprob", num_class=3, multi_strategy=strategy
    )
    model = fit(x, np.digitize(x[:, 0], [-0.5, 0.5]), config, jax.random.key(0))
    expected = predict(model, GRID[:, None], output_margin=True)
    assert np.ptp(expected, axis=0).min() > 0.2
    told = partial_dependence(model, None, 0, GRID)
    np.testing.assert_allclose(told, expected, rtol=1e-5, atol=1e-6)


def test_a_category_behind_the_last_word_goes_to_the_first_child():
    """Though the last category of that word goes to the second."""
    x = np.repeat(np.arange(32, dtype=np.float32), 4)[:, None]
    config = dataclasses.replace(
        ONE, categorical=(0,), max_bin=32, max_cat_to_onehot=64, num_boost_round=1
    )
    model = fit(x, 9.0 * (x[:, 0] == 31), config, jax.random.key(0))
    grid = np.array([31, 40, 3], np.float32)
    told = np.asarray(partial_dependence(model, None, 0, grid))[:, 0]
    np.testing.assert_allclose(told, predict(model, grid[:, None]), rtol=1e-6)
    assert told[0] > told[1] == told[2]


def test_without_covers_both_sides_count_alike(rng):
    _, model = fitted(rng)
    trees = model.trees._replace(cover=np.zeros_like(model.trees.cover))
    model = dataclasses.replace(model, trees=trees)
    told = partial_dependence(model[:1], None, 0, GRID)
    even = compact(jax.tree.map(lambda a: np.asarray(a[0]), model.trees))
    even = even._replace(cover=np.ones_like(even.cover))
    expected = [float(model.start[0]) + by_covers(even, 0, value) for value in GRID]
    np.testing.assert_allclose(told[:, 0], expected, rtol=1e-5, atol=1e-6)


def test_centred_curves_start_at_zero(rng):
    x, model = fitted(rng)
    curves = np.asarray(individual_curves(model, x, 0, GRID, centred=True))
    assert not curves[0].any()
    assert curves[1:].std(axis=1).max() > 0.05  # rows part: there is an interaction


def test_bad_columns_are_told(rng):
    x, model = fitted(rng)
    for rows in (x, None):
        for column in (3, -1):
            with pytest.raises(ValueError, match="column must be below 3"):
                partial_dependence(model, rows, column, GRID)
    linear = dataclasses.replace(CONFIG, booster="gblinear")
    y = np.nan_to_num(x[:, 0])
    model = fit(x, y, linear, jax.random.key(0))
    with pytest.raises(ValueError, match="must have rows"):
        partial_dependence(model, None, 0, GRID)
