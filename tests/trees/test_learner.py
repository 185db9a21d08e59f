"""The small regressions against scikit-learn, weights included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge

from jaxml.trees.learner import logistic, ridge

KEY = jax.random.key(0)


def test_ridge_is_that_of_scikit_learn(rng):
    x = rng.normal(size=(50, 3)).astype(np.float32)
    y = (x @ [1.0, -2.0, 0.5] + 3 + 0.1 * rng.normal(size=50)).astype(np.float32)
    w = rng.uniform(0, 2, 50).astype(np.float32)
    learner = ridge(2.0)
    model, told = learner.fit(learner.prepare(x, y), KEY, jnp.asarray(w))
    theirs = Ridge(2.0).fit(x, y, w)
    np.testing.assert_allclose(told, theirs.predict(x), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(told, learner.predict(model, x))


def test_softmax_regression_is_that_of_scikit_learn(rng):
    x = rng.normal(size=(60, 2)).astype(np.float32)
    y = (x[:, 0] > 0).astype(int) + (x[:, 1] > 0.5)
    w = rng.uniform(0.2, 2, 60).astype(np.float32)
    learner = logistic(3)
    _, told = jax.jit(learner.fit)(learner.prepare(x, y), KEY, jnp.asarray(w))
    theirs = LogisticRegression(tol=1e-8, max_iter=1000).fit(x, y, w)
    np.testing.assert_allclose(told, theirs.predict_proba(x), atol=2e-3)
    assert np.asarray(told).sum(axis=1) == pytest.approx(1, rel=1e-5)


def test_softmax_regression_of_columns_in_other_units_is_at_its_optimum(rng):
    x = rng.normal(size=(60, 2))
    y = (x[:, 0] > 0).astype(int) + (x[:, 1] > 0.5)
    x = ((x + 3) * [1e-2, 1e4]).astype(np.float32)
    w = rng.uniform(0.2, 2, 60).astype(np.float32)
    learner = logistic(3)
    model, told = jax.jit(learner.fit)(learner.prepare(x, y), KEY, jnp.asarray(w))
    model, told = np.asarray(model, np.float64), np.asarray(told, np.float64)

    def pull(share, slope):  # in units of the columns
        return ((x.T * w) @ (share - np.eye(3)[y]) + slope) / x.std(0)[:, None]

    at_first = np.abs(pull(np.full((60, 3), 1 / 3), 0)).max(axis=1)
    at_last = np.abs(pull(told, model[:-1])).max(axis=1)
    assert (at_last < 1e-3 * at_first).all()
    np.testing.assert_allclose(model.sum(axis=1) * np.append(x.std(0), 1), 0, atol=1e-3)
