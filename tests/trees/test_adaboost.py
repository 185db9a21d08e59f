"""AdaBoost against scikit-learn round by round, and against its equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.ensemble import AdaBoostClassifier
from sklearn.tree import DecisionTreeClassifier

from jaxml.trees import cart
from jaxml.trees.adaboost import (
    Config,
    fit,
    predict,
    predict_proba,
    staged_predict,
)
from jaxml.trees.learner import from_pair

KEY = jax.random.key(0)


def problem(classes=3):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 4)).astype(np.float32)
    score = x[:, 0] + x[:, 1] * x[:, 2] + 0.3 * rng.normal(size=64)
    return x, np.digitize(score, np.quantile(score, np.arange(1, classes) / classes))


@pytest.mark.parametrize("classes", [2, 3])
def test_rounds_are_those_of_scikit_learn(classes, rng):
    x, y = problem(classes)
    w = rng.uniform(0.5, 2, 64).astype(np.float32)
    stumps = cart.learner(cart.Config(max_depth=1, num_classes=classes))
    model = fit(x, y, stumps, Config(classes, 8, learning_rate=0.7), KEY, w)
    theirs = AdaBoostClassifier(
        DecisionTreeClassifier(max_depth=1), n_estimators=8, learning_rate=0.7
    ).fit(x, y, w)
    np.testing.assert_allclose(model.alpha, theirs.estimator_weights_, rtol=2e-4)
    np.testing.assert_allclose(model.error, theirs.estimator_errors_, rtol=2e-4)
    assert (predict(model, stumps, x) == theirs.predict(x)).all()
    told = predict_proba(model, stumps, x)
    np.testing.assert_allclose(told, theirs.predict_proba(x), atol=1e-4)
    staged = np.asarray(staged_predict(model, stumps, x))
    assert (staged == np.stack(list(theirs.staged_predict(x)))).all()


def says(function, classes):
    """A learner that says the same whatever its weights are."""

    def predict(_, x):
        return jax.nn.one_hot(function(x), classes) if classes else function(x)

    return from_pair(lambda x, y, key, w: jnp.float32(0), predict)


def test_boosting_stops_at_a_perfect_learner_and_refuses_chance():
    x, y = problem(2)
    truth = jnp.asarray(y)
    model = fit(x, y, says(lambda x: truth, 2), Config(2, 5), KEY)
    assert model.alpha.tolist() == [1, 0, 0, 0, 0]
    with pytest.raises(ValueError, match="must be better than chance"):
        fit(x, y, says(lambda x: 1 - truth, 2), Config(2, 5), KEY)


def test_a_third_right_is_better_than_chance_among_four():
    y = np.arange(60) % 4
    third = jnp.asarray(np.where(np.arange(60) % 3 == 0, y, (y + 1) % 4))
    model = fit(np.zeros((60, 1)), y, says(lambda x: third, 4), Config(4, 1), KEY)
    assert model.alpha[0] == pytest.approx(np.log(0.5) + np.log(3), rel=1e-4)


@pytest.mark.parametrize("loss", ["linear", "square", "exponential"])
def test_numbers_weigh_as_drucker_says(loss):
    y = np.array([0.0, 1.0, 2.0, 3.0])
    told = jnp.array([0.0, 1.1, 2.2, 3.4])
    model = fit(
        np.zeros((4, 1)), y, says(lambda x: told, 0), Config(0, 2, 0.5, loss), KEY
    )
    distance = np.abs(np.asarray(told) - y)
    share = distance / distance.max()
    each = {"linear": share, "square": share**2, "exponential": 1 - np.exp(-share)}[
        loss
    ]
    w, alphas = np.full(4, 0.25), []
    for _ in range(2):
        mean = w @ each
        if mean >= 0.5:
            alphas.append(0.0)
            break
        beta = mean / (1 - mean)
        alphas.append(0.5 * np.log(1 / beta))
        w = w * beta ** ((1 - each) * 0.5)
        w /= w.sum()
    np.testing.assert_allclose(model.alpha, alphas, rtol=1e-4, atol=1e-6)


def test_numbers_are_weighted_medians():
    from jaxml.trees.adaboost import Model

    learner = from_pair(lambda x, y, key, w: 0.0, lambda m, x: jnp.full(len(x), m))
    model = Model(
        jnp.array([3.0, 1.0, 2.0, 9.0]),
        jnp.array([0.2, 0.3, 0.15, 0.35]),
        jnp.zeros(4),
        num_classes=0,
    )
    assert predict(model, learner, np.zeros((2, 1))).tolist() == [3.0, 3.0]
    stages = staged_predict(model, learner, np.zeros((1, 1)))[:, 0]
    assert stages.tolist() == [3.0, 1.0, 2.0, 3.0]


def test_regression_learns():
    x, _ = problem()
    y = x[:, 0] + x[:, 1] * x[:, 2]
    trees = cart.learner(cart.Config("squared_error", max_depth=3))
    model = fit(x, y, trees, Config(num_rounds=10), KEY)
    left = np.mean((np.asarray(predict(model, trees, x)) - y) ** 2)
    assert left < 0.4 * np.var(y)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": np.full(64, 5)}, "class indices below 3"),
        ({"y": np.full(64, np.nan)}, "y must be finite"),
        ({"weights": np.zeros(64)}, "not all zero"),
        ({"config": Config(3, 0)}, "must be positive"),
    ],
)
def test_bad_input_is_refused(change, message):
    x, y = problem()
    given = {
        "x": x,
        "y": y,
        "learner": says(lambda x: jnp.zeros(len(x), int), 3),
        "config": Config(3),
        "key": KEY,
        **change,
    }
    with pytest.raises((ValueError, TypeError), match=message):
        fit(**given)
