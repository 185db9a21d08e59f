"""Friedman's boosting against scikit-learn's, leaf by leaf, and what each loss is for."""

import dataclasses

import jax
import numpy as np
import pytest
from sklearn.ensemble import GradientBoostingClassifier, GradientBoostingRegressor

from jaxml.trees import cart
from jaxml.trees.gbdt import Config, fit, predict, predict_proba, staged_predict

KEY = jax.random.key(0)
TREE = cart.Config("squared_error", max_depth=2, min_samples_leaf=5)
ROUNDS = 6
ROWS = 63  # odd numbers have one median


def problem():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, 4)).astype(np.float32)
    noise = 0.3 * rng.normal(size=ROWS)
    return x, (x[:, 0] * x[:, 1] + np.sin(2 * x[:, 2]) + noise).astype(np.float32)


PEERS = {
    "squared": ("squared_error", 1e-5),
    "logistic": ("log_loss", 1e-4),
    "exponential": ("exponential", 1e-4),
    "softmax": ("log_loss", 1e-4),
}


@pytest.mark.parametrize("loss", PEERS)
def test_margins_are_those_of_scikit_learn(loss, rng):
    name, tolerance = PEERS[loss]
    x, y = problem()
    weights = rng.uniform(0.5, 2, ROWS).astype(np.float32)
    classes = {"squared": 0, "softmax": 3}.get(loss, 2)
    if classes:
        y = np.digitize(y, [0.0, 1.0][: classes - 1])
    kind = GradientBoostingClassifier if classes else GradientBoostingRegressor
    theirs = kind(
        loss=name, n_estimators=ROUNDS, max_depth=2, min_samples_leaf=5, random_state=0
    ).fit(x, y, weights)
    ours = "logistic" if loss == "softmax" else loss
    config = Config(ours, classes, ROUNDS, tree=TREE)
    model = fit(x, y, config, KEY, weights)
    if not classes:
        np.testing.assert_allclose(predict(model, x), theirs.predict(x), atol=tolerance)
        stages = np.stack(list(theirs.staged_predict(x)))
        np.testing.assert_allclose(staged_predict(model, x), stages, atol=tolerance)
        return
    margin = predict(model, x, output_margin=True)
    np.testing.assert_allclose(margin, theirs.decision_function(x), atol=tolerance)
    told = predict_proba(model, x)
    np.testing.assert_allclose(told, theirs.predict_proba(x), atol=tolerance)


def optimum(loss, y, margin):
    """The best number to add to all margins, by search."""
    tries = np.linspace(-3, 3, 6001)
    residual = y[None] - margin[None] - tries[:, None]
    if loss == "absolute":
        cost = np.abs(residual).sum(axis=1)
    elif loss == "quantile":
        cost = np.maximum(0.8 * residual, -0.2 * residual).sum(axis=1)
    else:
        new = margin[None] + tries[:, None]
        cost = (np.exp(new) - y[None] * new).sum(axis=1)
    return cost.min(), cost


@pytest.mark.parametrize("loss", ["absolute", "quantile", "poisson"])
def test_leaves_are_the_best_numbers_there_are(loss):
    x, y = problem()
    y = np.exp(y) if loss == "poisson" else y
    config = Config(loss, 0, 2, learning_rate=1.0, alpha=0.8, tree=TREE)
    model = fit(x, y, config, KEY)
    stages = np.asarray(staged_predict(model, x, output_margin=True), np.float64)
    before, after = stages
    tree = jax.tree.map(lambda a: a[1], model.trees)
    leaf = np.asarray(cart.apply(_as_cart(tree, 4), x))
    for node in np.unique(leaf):
        here = leaf == node
        least, _ = optimum(loss, y[here], before[here])
        _, cost = optimum(loss, y[here], after[here])
        assert cost[3000] == pytest.approx(least, rel=1e-3, abs=1e-2)


def _as_cart(tree, columns):
    return cart.Model(tree, outputs=1, num_classes=0, num_features=columns)


def test_a_huber_leaf_is_a_median_and_a_step():
    x, y = problem()
    config = Config("huber", 0, 1, learning_rate=1.0, alpha=0.7, tree=TREE)
    model = fit(x, y, config, KEY)
    start = np.median(y)
    residual = y - start
    told = np.asarray(predict(model, x)) - start
    tree = jax.tree.map(lambda a: a[0], model.trees)
    leaf = np.asarray(cart.apply(_as_cart(tree, 4), x))
    order = np.sort(np.abs(residual))
    delta = order[np.searchsorted(np.arange(1, ROWS + 1), 0.7 * ROWS)]
    for node in np.unique(leaf):
        r = residual[leaf == node]
        rest = r - np.median(r)
        best = np.median(r) + np.mean(np.clip(rest, -delta, delta))
        assert told[leaf == node] == pytest.approx(best, abs=1e-5)


def test_subsamples_differ_and_boosting_stops_early():
    x, y = problem()
    config = Config("squared", 0, 30, 0.5, subsample=0.5, tree=TREE, patience=3)
    rng = np.random.default_rng(5)
    held = rng.normal(size=(40, 4)).astype(np.float32)
    truth = held[:, 0] * held[:, 1] + np.sin(2 * held[:, 2])
    model = fit(x, y, config, KEY, evaluation=(held, truth.astype(np.float32)))
    losses = np.asarray(model.losses)
    ran = np.isfinite(losses).sum()
    assert ran < 30
    best = int(np.nanargmin(losses))
    assert model.best_iteration == best == ran - 4
    told = np.asarray(predict(model[: best + 1], held))
    np.testing.assert_array_equal(predict(model, held), told)
    assert losses[best] == pytest.approx(np.mean((told - truth) ** 2) / 2, rel=1e-4)
    roots = np.asarray(model.trees.cover)[:ran, 0]
    assert (roots == 31).all()
    assert len(set(np.asarray(model.trees.threshold)[:ran, 0].tolist())) > 1
    other = fit(
        x,
        y,
        dataclasses.replace(config, patience=0, num_rounds=30),
        KEY,
        evaluation=(held, truth.astype(np.float32)),
    )
    np.testing.assert_allclose(other.losses[:ran], losses[:ran], rtol=1e-5)
