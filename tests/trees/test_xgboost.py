"""XGBoost's doors: what they learn, promise and refuse. Parity stands in tests/oracle."""

import dataclasses
from dataclasses import replace

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


def test_held_out_losses_are_weighted_and_start_where_the_model_does(rng):
    x, y = problem(rng)
    held, label = problem(rng, 20)
    weights = rng.uniform(0, 2, 20)
    config = changed(base_score=3.0)
    model = fit(x, y, config, KEY, evaluation=(held, label, weights))
    assert model.start.tolist() == [3.0]
    for i, loss in enumerate(model.losses):
        error = (np.asarray(predict(model[: i + 1], held)) - label) ** 2 / 2
        assert float(loss) == pytest.approx(
            np.average(error, weights=weights), rel=1e-4
        )


def test_a_margin_of_ones_own_is_where_rows_start(rng):
    x, y = problem(rng)
    margin = rng.normal(size=64).astype(np.float32)
    model = fit(x, y, changed(base_score=0.0), KEY, base_margin=margin)
    rest = fit(x, y - margin, changed(base_score=0.0), KEY)
    np.testing.assert_allclose(
        predict(model, x), predict(rest, x), rtol=1e-4, atol=1e-5
    )


def test_positive_rows_may_weigh_more(rng):
    x, y = problem(rng)
    label, mass = (y > 0.2).astype(np.float32), rng.uniform(0.5, 1.5, 64)
    config = changed(objective="binary:logistic", tree_method="exact")
    model = fit(x, label, replace(config, scale_pos_weight=3.0), KEY, mass)
    scaled = mass * np.where(label == 1, 3, 1)
    # One Newton step from a margin of zero, where h is 1 / 4.
    step = (scaled * (label - 0.5)).sum() / (0.25 * scaled.sum())
    assert float(model.start[0]) == pytest.approx(step, rel=1e-5)
    start = float(model.base_score[0])
    same = fit(x, label, replace(config, base_score=start), KEY, scaled)
    np.testing.assert_allclose(
        predict(model, x), predict(same, x), rtol=1e-4, atol=1e-5
    )


def test_trees_of_one_round_are_of_every_output_in_turn(rng):
    x, y = problem(rng)
    config = changed(
        objective="multi:softprob", num_class=3, num_parallel_tree=2, num_boost_round=2
    )
    label = np.digitize(y, [-0.2, 0.2])
    model = fit(x, label, config, KEY)
    assert model.group.tolist() == 2 * [0, 0, 1, 1, 2, 2]
    assert model.trees_per_round == 6
    assert float(model.eta) == 0.25
    # Two equal trees of half the step are one.
    alone = fit(x, label, replace(config, num_parallel_tree=1), KEY)
    np.testing.assert_allclose(
        predict(model, x), predict(alone, x), rtol=1e-4, atol=1e-5
    )


def test_penalties_and_bounds_reach_the_trees(rng):
    x, y = problem(rng)
    assert not np.asarray(fit(x, y, changed(gamma=1e4), KEY).trees.left).any()
    assert not np.asarray(fit(x, y, changed(reg_alpha=1e4), KEY).trees.left).any()
    clipped = fit(x, y, changed(max_delta_step=0.05), KEY).trees
    largest = np.abs(clipped.value)[np.asarray(clipped.left) == 0].max()
    assert largest == pytest.approx(0.5 * 0.05)
    linear = changed(booster="gblinear", reg_alpha=1e4)
    assert not np.asarray(fit(x, y, linear, KEY).linear[:-1]).any()
    assert np.asarray(fit(x, y, replace(linear, reg_alpha=0.0), KEY).linear).all()


def test_linear_models_of_classes_start_from_the_first_one(rng):
    x, y = problem(rng)
    label = np.digitize(y, [-0.2, 0.2])
    config = changed(booster="gblinear", objective="multi:softprob", num_class=3)
    model = fit(x, label, config, KEY)
    assert len(set(model.base_score.tolist())) > 1
    assert model.start.tolist() == [model.base_score.tolist()[0]] * 3


def test_exact_trees_keep_the_step_of_absolute_errors(rng):
    """In "hist" their leaves are medians; XGBoost's exact ones are not renewed."""
    x, y = problem(rng)
    config = changed(objective="reg:absoluteerror", num_boost_round=1, eta=1.0)
    stepped = fit(x, 100 * y, replace(config, tree_method="exact"), KEY)
    assert np.abs(stepped.trees.value).max() <= 1
    assert np.abs(fit(x, 100 * y, config, KEY).trees.value).max() > 10


def test_cuts_follow_the_weights(rng):
    x, y = problem(rng, 200)
    mass = np.where(x[:, 0] > 1, 20.0, 1.0)
    config = changed(max_bin=4, num_boost_round=1)
    hist, approx, even = (
        np.unique(fit(x, y, replace(config, tree_method=how), KEY, w).trees.threshold)
        for how, w in (("hist", mass), ("approx", mass), ("hist", None))
    )
    assert (
        hist.tolist() == approx.tolist()
    )  # of squared errors the Hessian is the weight
    assert not set(hist) - {0.0} <= set(even)


def test_few_leaves_go_where_the_gain_is(rng):
    """One side of the first split has little to gain, the other much, twice over."""
    x = np.arange(16, dtype=np.float32)[:, None]
    y = np.repeat([9.5, 9.5, 10.5, 10.5, -17, -11, -9, -3], 2)
    config = changed(max_leaves=4, max_depth=4, num_boost_round=1, reg_lambda=0.0)
    trees = [
        compact(jax.tree.map(lambda a: np.asarray(a[0]), fit(x, y, how, KEY).trees))
        for how in (config, replace(config, grow_policy="lossguide"))
    ]
    assert [int((tree.left == 0).sum()) for tree in trees] == [4, 4]
    both_sides = [bool(tree.left[1] and tree.left[2]) for tree in trees]
    assert both_sides == [True, False]


def test_sets_reach_as_far_as_they_may(rng):
    code = rng.integers(0, 12, 300)
    y = rng.normal(size=12)[code]
    config = changed(
        categorical=(0,),
        max_cat_to_onehot=1,
        max_cat_threshold=2,
        max_depth=1,
        num_boost_round=1,
    )
    model = fit(code[:, None].astype(np.float32), y, config, KEY)
    size = int(np.asarray(model.trees.categories)[0, 0, 0]).bit_count()
    assert size in (1, 2, 11)


def test_queries_may_weigh_more(rng):
    x, y = problem(rng)
    query, label = np.repeat(np.arange(8), 8), np.digitize(y, [-0.2, 0.2])
    config = changed(objective="rank:pairwise")
    even = fit(x, label, config, KEY, query=query)
    same = fit(x, label, config, KEY, np.full(8, 3.0), query=query)
    chex.assert_trees_all_close(predict(even, x), predict(same, x), atol=1e-6)
    first = fit(x, label, config, KEY, np.eye(8)[0] + 1e-9, query=query)
    assert not np.allclose(predict(even, x), predict(first, x), atol=1e-2)
    with pytest.raises(ValueError, match="query must come"):
        fit(x, label, config, KEY, query=query, evaluation=(x, label))
    with pytest.raises(ValueError, match="query must come"):
        fit(x, label, SMALL, KEY, query=query)
    with pytest.raises(ValueError, match="query must come"):
        fit(x, label, config, KEY)


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
