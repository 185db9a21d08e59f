"""Estimators made of estimators: labels, scores, and parts that do not fit."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression

from jaxml.trees import ensemble_estimators as ensembles
from jaxml.trees.estimators import DecisionTreeClassifier, DecisionTreeRegressor


def problem():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 4)).astype(np.float32)
    return x, np.array(["a", "b", "c"])[np.digitize(x[:, 0] + x[:, 1], [-0.5, 0.5])]


@pytest.mark.parametrize(
    "model",
    [
        ensembles.AdaBoostClassifier(
            estimator=DecisionTreeClassifier(max_depth=3), n_estimators=5
        ),
        ensembles.BaggingClassifier(n_estimators=5),
        ensembles.StackingClassifier(
            estimators=[("tree", DecisionTreeClassifier(max_depth=3))], folds=3
        ),
    ],
    ids=["boost", "bag", "stack"],
)
def test_ensembles_learn_labels_of_any_type(model):
    x, y = problem()
    model = clone(model).set_params(random_state=0).fit(x, y)
    assert model.score(x, y) > 0.85
    shares = model.predict_proba(x)
    assert shares.shape == (60, 3)
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    again = clone(model).fit(x, y)
    np.testing.assert_array_equal(again.predict_proba(x), shares)


@pytest.mark.parametrize("part", [LogisticRegression(), DecisionTreeRegressor()])
def test_parts_that_do_not_fit_are_refused(part):
    with pytest.raises(ValueError, match="estimator must"):
        ensembles.BaggingClassifier(estimator=part).fit(*problem())
