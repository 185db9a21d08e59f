"""XGBoost's doors: what they learn, promise and refuse. Parity stands in tests/oracle."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from sklearn.datasets import load_breast_cancer

from jaxml.parallel import data_mesh
from jaxml.trees.bins import make_bins
from jaxml.trees.objectives import Objective
from jaxml.trees.tree import compact
from jaxml.trees.xgboost import (
    Config,
    fit,
    predict,
    predict_proba,
)

KEY = jax.random.key(0)
SMALL = Config(max_depth=2, num_boost_round=4, max_bin=16, eta=0.5)


def problem(rng, n=64):
    x = rng.normal(size=(n, 3)).astype(np.float32)
    return x, (x[:, 0] * (x[:, 1] > 0) + 0.1 * x[:, 2]).astype(np.float32)


def changed(**options):
    return dataclasses.replace(SMALL, **options)


def boosted_numpy(x, y, trees, eta):
    """Margins of squared error by the definition, from the trees' own partitions."""
    margin = np.full(len(y), y.astype(np.float64).mean())
    for tree in trees:
        leaf = np.array([_walk(tree, row) for row in x])
        for node in set(leaf):
            rows = leaf == node
            margin[rows] -= eta * (margin[rows] - y[rows]).sum() / (rows.sum() + 1)
    return margin


def _walk(tree, row):
    node = 0
    while tree.left[node]:
        below = row[tree.feature[node]] < tree.threshold[node]
        node = tree.left[node] + (0 if below else 1)
    return node


def test_margins_are_newton_steps_on_the_leaves(rng):
    x, y = problem(rng)
    model = fit(x, y, SMALL, KEY)
    trees = [compact(jax.tree.map(lambda a, i=i: a[i], model.trees)) for i in range(4)]
    expected = boosted_numpy(x, y, trees, 0.5)
    assert all(len(tree.left) > 3 for tree in trees)
    chex.assert_trees_all_close(
        np.asarray(predict(model, x), np.float64), expected, rtol=1e-5, atol=1e-5
    )


def test_it_learns_real_data():
    x, y = load_breast_cancer(return_X_y=True)
    train, test = np.arange(len(y)) % 4 > 0, np.arange(len(y)) % 4 == 0
    config = Config(
        objective="binary:logistic", max_depth=3, num_boost_round=20, max_bin=32
    )
    model = fit(x[train].astype(np.float32), y[train], config, KEY)
    held = x[test].astype(np.float32)
    p = predict(model, held)
    assert np.mean((np.asarray(p) > 0.5) == y[test]) > 0.94
    both = predict_proba(model, held)
    chex.assert_trees_all_close(both[:, 1], p, atol=1e-6)
    chex.assert_trees_all_close(both.sum(axis=1), np.ones(len(p), np.float32))


def test_many_models_train_in_one_program(rng):
    x, y = problem(rng)
    bins = make_bins(x, 16)
    etas = jnp.array([0.1, 0.5])
    many = jax.vmap(lambda eta: fit(bins, y, changed(eta=eta), KEY))(etas)
    for i, eta in enumerate(etas):
        one = fit(bins, y, changed(eta=eta), KEY)
        margin = jax.tree.map(lambda a, i=i: a[i], many)
        chex.assert_trees_all_close(predict(margin, x), predict(one, x), atol=1e-6)


@pytest.mark.parametrize("tree_method", ["exact", "hist", "approx"])
def test_weights_are_how_often_a_row_is_there(rng, tree_method):
    x, y = problem(rng, 32)
    held, label = problem(rng)[0], np.digitize(y, [-0.2, 0.2])
    softmax = {"objective": "multi:softprob", "num_class": 3, "num_boost_round": 2}
    config = changed(tree_method=tree_method, max_bin=64, **softmax)
    # Exact thresholds lie between neighbours, rows of weight zero among them.
    times = rng.integers(tree_method == "exact", 3, 32)
    weighted = fit(x, label, config, KEY, times.astype(np.float32))
    row = np.repeat(np.arange(32), times)
    repeated = fit(x[row], label[row], config, KEY)
    chex.assert_trees_all_close(predict(weighted, held), predict(repeated, held))


def test_any_loss_written_in_jax_is_boosted(rng):
    x, y = problem(rng)
    goal = Objective(lambda m, y: jnp.logaddexp(m - y, y - m))  # log cosh, nearly
    model = fit(x, y, changed(objective=goal, num_boost_round=8), KEY)
    error = lambda m: float(jnp.mean(jnp.abs(predict(m, x) - y)))
    assert error(model) < 0.6 * error(model[:1])


def test_early_stopping_keeps_the_best_round(rng):
    x, _ = problem(rng)
    noise = rng.normal(size=64).astype(np.float32)
    config = changed(early_stopping_rounds=2, num_boost_round=12, eta=1.0)
    model = fit(x, noise, config, KEY, evaluation=(x[::-1], noise))
    losses = np.asarray(model.losses)
    ran = ~np.isnan(losses)
    best = int(np.nanargmin(losses))
    assert ran.sum() == best + 3 < 12
    expected = predict(model, x, iteration_range=(0, best + 1))
    chex.assert_trees_all_equal(predict(model, x), expected)
    chex.assert_trees_all_equal(predict(model.up_to_best(), x), expected)
    told = predict(model[: best + 1], x[::-1])
    assert float(np.mean((told - noise) ** 2) / 2) == pytest.approx(
        losses[best], rel=1e-4
    )
    assert not np.asarray(model.trees.left)[~ran].any()


def test_samples_of_rows_and_columns(rng):
    x, y = problem(rng)
    config = changed(
        subsample=0.5,
        colsample_bytree=0.7,
        colsample_bylevel=0.7,
        colsample_bynode=0.7,
        num_parallel_tree=2,
    )
    one, two = fit(x, y, config, KEY), fit(x, y, config, jax.random.key(1))
    chex.assert_trees_all_equal(one, fit(x, y, config, KEY))
    assert (np.asarray(one.trees.feature) != np.asarray(two.trees.feature)).any()
    cover = np.asarray(one.trees.cover[:, 0])
    assert cover.shape == (8,)
    assert len(set(cover)) > 2
    assert 18 < cover.mean() < 46
    trees = zip(np.asarray(one.trees.feature), np.asarray(one.trees.left), strict=True)
    per_tree = [set(feature[left > 0]) for feature, left in trees]
    assert all(len(used) <= 2 for used in per_tree)  # 0.7 of 3 columns
    chex.assert_tree_all_finite(one.trees.value)


def test_dart_drops_and_rescales(rng):
    x, y = problem(rng)
    config = changed(booster="dart", rate_drop=0.9, one_drop=True, num_boost_round=6)
    model = fit(x, y, config, KEY)
    weight = np.asarray(model.weight)
    assert weight[0] < 1  # with one_drop some tree falls in every round but the first
    assert ((weight > 0) & (weight <= 1)).all()
    assert float(jnp.mean((predict(model, x) - y) ** 2)) < np.var(y)
    alone = fit(x, y, changed(booster="dart", rate_drop=1.0), KEY).trees
    for leaf in jax.tree.leaves(alone):  # where all fall every tree is a first one
        np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))
    plain = fit(x, y, changed(booster="dart"), KEY)
    chex.assert_trees_all_close(
        predict(plain, x), predict(fit(x, y, SMALL, KEY), x), atol=1e-5
    )


def test_quantiles_of_leaves(rng):
    x = rng.integers(0, 2, (200, 1)).astype(np.float32)
    y = (rng.exponential(size=200) * (1 + 4 * x[:, 0])).astype(np.float32)
    config = changed(
        objective="reg:quantileerror", quantile_alpha=(0.1, 0.9), eta=1.0, max_depth=1
    )
    told = np.asarray(predict(fit(x, y, config, KEY), x))
    for group in (0, 1):
        rows = x[:, 0] == group
        low, high = ((y[rows] <= told[rows][0, i]).mean() for i in (0, 1))
        assert abs(low - 0.1) < 0.04
        assert abs(high - 0.9) < 0.04


@pytest.mark.parametrize("devices", [2, 8])
def test_devices_do_not_change_a_bit(rng, devices):
    x, y = problem(rng)
    x[rng.random(x.shape) < 0.1] = np.nan
    config = changed(subsample=0.8)
    expected = fit(x, y, config, KEY)
    split = dataclasses.replace(config, axis_name="data")
    mesh = data_mesh(jax.devices()[:devices])

    @jax.shard_map(mesh=mesh, in_specs=(P("data"), P("data")), out_specs=P())
    def on_all(x, y):
        return fit(x, y, split, KEY)

    actual = jax.jit(on_all)(x, y)
    chex.assert_trees_all_equal(actual.trees, expected.trees)
    chex.assert_trees_all_equal(actual.start, expected.start)


def test_degenerate_data_have_the_right_answer(rng):
    x, y = problem(rng, 16)
    one_row = fit(x[:1], y[:1], SMALL, KEY)
    assert float(predict(one_row, x[:1])[0]) == pytest.approx(float(y[0]), rel=1e-6)
    flat = fit(np.ones((16, 3), np.float32), y, SMALL, KEY)
    chex.assert_trees_all_close(predict(flat, x), np.full(16, y.mean()), rtol=1e-5)
    logistic = changed(objective="binary:logistic")
    one_class = predict(fit(x, np.ones(16), logistic, KEY), x)
    assert (np.asarray(one_class) > 0.99).all()
    empty = fit(np.full((16, 3), np.nan, np.float32), y, SMALL, KEY)
    chex.assert_trees_all_close(predict(empty, x), np.full(16, y.mean()), rtol=1e-5)
