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
