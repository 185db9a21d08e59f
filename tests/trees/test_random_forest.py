"""Random forests: the statistics of their draws, and the same forest however it grows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import RandomForestClassifier

from jaxml.parallel import data_mesh
from jaxml.trees import cart, random_forest
from jaxml.trees.random_forest import (
    Config,
    fit,
    out_of_bag,
    permutation_importance,
    predict,
    predict_proba,
)

KEY = jax.random.key(0)
TREE = cart.Config(max_depth=4, max_features=2, num_classes=2)


def problem(rows=60):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 6)).astype(np.float32)
    return x, (x[:, 0] + 0.5 * rng.normal(size=rows) > 0).astype(int)


def assert_equal(one, other):
    for mine, its in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(mine, its)


def test_batches_and_devices_do_not_change_the_forest():
    x, y = problem()
    config = Config(TREE, num_trees=9)
    forest = fit(x, y, config, KEY)
    assert_equal(forest, fit(x, y, dataclasses.replace(config, batch_size=4), KEY))
    assert_equal(forest, fit(x, y, config, KEY, mesh=data_mesh()))
    fewer = fit(x, y, dataclasses.replace(config, num_trees=8), KEY, mesh=data_mesh())
    nodes = fewer.tree.left.shape[1]
    assert_equal(fewer.tree.gain, forest.tree.gain[:8, :nodes])
    other = fit(x, y, config, jax.random.key(1))
    assert (other.tree.feature[:, 0] != forest.tree.feature[:, 0]).any()
    assert len({float(t) for t in forest.tree.threshold[:, 0]}) > 4


def test_votes_are_soft_means_of_the_trees():
    x, y = problem()
    forest = fit(x, y, Config(TREE, num_trees=9), KEY)
    trees = [
        dataclasses.replace(forest, tree=jax.tree.map(lambda a: a[i], forest.tree))
        for i in range(9)
    ]
    mean = np.mean([cart.predict_proba(tree, x) for tree in trees], axis=0)
    np.testing.assert_allclose(predict_proba(forest, x), mean, rtol=1e-5, atol=1e-6)
    assert (predict(forest, x) == mean.argmax(axis=1)).all()
    each = np.mean([cart.feature_importances(tree) for tree in trees], axis=0)
    np.testing.assert_allclose(cart.feature_importances(forest), each, rtol=1e-5)
    assert each.argmax() == 0


def test_bootstrap_counts_are_draws_with_replacement():
    draws = np.int32(60), np.int32(60)
    keys = jax.random.split(KEY, 400)
    counts = np.asarray(
        jax.vmap(lambda key: random_forest._sample(key, 64, draws))(keys)
    )
    assert (counts.sum(axis=1) == 60).all()
    assert not counts[:, 60:].any()
    assert np.mean(counts[:, :60] > 0) == pytest.approx(
        1 - (1 - 1 / 60) ** 60, abs=0.01
    )
    assert counts[:, :60].mean(axis=0) == pytest.approx(1, abs=0.25)


def test_rows_of_weight_zero_are_not_learned_from():
    x, y = problem()
    weights = np.where(np.arange(60) < 20, 0.0, 1.0).astype(np.float32)
    config = Config(TREE, num_trees=4)
    forest = fit(x, y, config, KEY, weights)
    other = np.where(weights > 0, y, 1 - y)
    assert_equal(forest, fit(x, other, config, KEY, weights))
    assert (predict(forest, x) == y)[20:].mean() > 0.9


def test_nodes_draw_columns_uniformly_and_anew():
    """All columns are copies: which one splits a node is the first one drawn."""
    x = np.repeat(np.random.default_rng(0).normal(size=(64, 1)), 6, axis=1)
    y = np.arange(64) % 2
    tree = cart.Config(max_depth=4, max_features=2, num_classes=2)
    forest = fit(x, y, Config(tree, num_trees=128), KEY)
    inner = np.asarray(forest.tree.left) > 0
    share = np.bincount(np.asarray(forest.tree.feature)[inner], minlength=6)
    assert share / inner.sum() == pytest.approx(1 / 6, abs=0.04)
    assert any(
        len(set(f[i].tolist())) > 2
        for f, i in zip(np.asarray(forest.tree.feature), inner, strict=True)
    )


def test_constant_columns_are_drawn_again():
    x, y = problem()
    x[:, 1:] = 3.0
    one = dataclasses.replace(TREE, max_features=1)
    forest = fit(x, y, Config(one, num_trees=9), KEY)
    assert (forest.tree.left[:, 0] > 0).all()
    assert not forest.tree.feature.any()


def test_rows_out_of_the_bag_judge_as_in_scikit_learn():
    x, y = load_breast_cancer(return_X_y=True)
    x = x.astype(np.float32)
    config = Config(cart.Config(max_features="sqrt"), num_trees=40)
    forest = fit(x, y, config, KEY)
    told = np.asarray(out_of_bag(forest, x, config, KEY))[:, 0]
    assert not np.isnan(told).any()
    score = np.mean(told.argmax(axis=1) == y)
    peers = [
        RandomForestClassifier(40, oob_score=True, random_state=seed).fit(x, y)
        for seed in range(3)
    ]
    theirs = [peer.oob_score_ for peer in peers]
    assert score == pytest.approx(np.mean(theirs), abs=0.02)
    assert (predict(forest, x) == y).mean() > 0.99 > score
    nodes = (np.asarray(forest.tree.left) > 0).sum() * 2 / 40 + 1
    their_nodes = np.mean([t.tree_.node_count for p in peers for t in p.estimators_])
    assert nodes == pytest.approx(their_nodes, rel=0.1)


def test_shuffling_a_column_that_matters_costs_score():
    x, y = problem()
    forest = fit(x, y, Config(TREE, num_trees=9), KEY)
    score = lambda x: jnp.mean((predict(forest, x) == y).astype(jnp.float32))
    falls = permutation_importance(score, x, KEY, repeats=2)
    assert falls.shape == (6, 2)
    assert falls[0].min() > 0.1
    assert falls.mean(axis=1).argmax() == 0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Config(TREE, num_trees=0), "num_trees must be positive"),
        (Config(TREE, max_samples=1.5), "max_samples must be"),
        (Config(TREE, max_samples=61), "max_samples must be"),
    ],
)
def test_bad_configurations_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        fit(*problem(), config, KEY)


def test_what_does_not_exist_is_not_told():
    x, y = problem()
    config = Config(TREE, num_trees=9)
    forest = fit(x, y, config, KEY)
    with pytest.raises(ValueError, match="bootstrap must be True"):
        out_of_bag(forest, x, dataclasses.replace(config, bootstrap=False), KEY)
    with pytest.raises(ValueError, match=r"x must be \[rows, 6\]"):
        predict(forest, x[:, :2])
