"""Ensembles of other estimators: AdaBoost, bagging and stacking; see `estimators`.

The trap: the parts must be trees of `estimators`; any other learner goes to the functions
of `adaboost`, `bagging` and `stacking` themselves.

Reference: Buitinck et al., "API Design for Machine Learning Software: Experiences from the
scikit-learn Project", 2013, https://arxiv.org/abs/1309.0238.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar

import numpy as np

from jaxml.export import export
from jaxml.trees import adaboost, bagging, cart, stacking
from jaxml.trees.estimator import (
    Classifier,
    ClassifierMixin,
    Estimator,
    Regressor,
    parameters,
)
from jaxml.trees.estimators import TREE, OneTree
from jaxml.trees.learner import Learner, logistic, ridge
from jaxml.trees.table import LEAST_ROWS, pad_rows


class _Ensemble(Estimator):
    """What is made of other estimators of this module: trees."""

    def _told_classes(self) -> int:
        """Classes that parts are told of: no fewer than two; 0 for numbers."""
        return max(self._num_classes(), 2) * isinstance(self, ClassifierMixin)

    def _cut(self, tell: Callable[[Any], Any], x: np.ndarray) -> Any:
        """What `tell` says of x, for the classes that y had alone."""
        told = pad_rows(tell, x)
        return told[:, : self._num_classes()] if told.ndim == 2 else told

    def _learner(self, estimator: Any, depth: int | None) -> Learner:
        """The learner of a tree estimator, or of the default tree of this depth."""
        classes = self._told_classes()
        if estimator is None:
            criterion: Any = "gini" if classes else "squared_error"
            return cart.learner(
                cart.Config(criterion, max_depth=depth, num_classes=classes)
            )
        if not isinstance(estimator, OneTree):
            raise ValueError(
                "estimator must be a DecisionTree of jaxml.trees.estimators, got "
                f"{type(estimator).__name__}; for other learners see `trees.learner`"
            )
        config = cart.Config(
            **{name: getattr(estimator, name) for name in TREE},
            num_classes=classes,
        )
        if config.classifies != (classes > 0):
            raise ValueError(f"estimator must suit the task, got {config.criterion!r}")
        return cart.learner(config)


@parameters
class _AdaBoost(_Ensemble):
    estimator: Any = None
    n_estimators: int = 50
    learning_rate: float = 1.0
    random_state: Any = None
    _depth: ClassVar[int] = 1
    _loss: ClassVar[Any] = "linear"

    def _learn(self, x: Any, y: Any, key: Any, weights: Any) -> adaboost.Model:
        learner = self._learner(self.estimator, self._depth)
        loss = getattr(self, "loss", "linear")
        config = adaboost.Config(
            self._told_classes(), self.n_estimators, self.learning_rate, loss
        )
        if weights is None:
            weights = np.ones(len(x), np.float32)
        padded = _pad(x, y, weights)
        return adaboost.fit(padded[0], padded[1], learner, config, key, padded[2])

    def _tell(self, x: np.ndarray) -> Any:
        learner = self._learner(self.estimator, self._depth)
        tell = adaboost.predict
        if isinstance(self, ClassifierMixin):
            tell = adaboost.predict_proba
        model = self.model_  # type: ignore[attr-defined]
        return self._cut(lambda rows: tell(model, learner, rows), x)


def _pad(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> tuple:
    """A power of two of rows, the new ones of weight zero."""
    more = max(1 << (len(x) - 1).bit_length(), LEAST_ROWS) - len(x)
    return tuple(
        np.pad(part, [(0, more)] + [(0, 0)] * (part.ndim - 1))
        for part in (x, y, weights)
    )


@export("trees.ensemble_estimators.AdaBoostClassifier", since="0.1")
@parameters
class AdaBoostClassifier(_AdaBoost, Classifier):
    """SAMME over trees, stumps by default; see `adaboost`."""


@export("trees.ensemble_estimators.AdaBoostRegressor", since="0.1")
@parameters
class AdaBoostRegressor(_AdaBoost, Regressor):
    """AdaBoost.R2 over trees, of depth 3 by default; see `adaboost`."""

    loss: str = "linear"
    _depth: ClassVar[int] = 3


@parameters
class _Bagging(_Ensemble):
    estimator: Any = None
    n_estimators: int = 10
    max_samples: float = 1.0
    max_features: float = 1.0
    bootstrap: bool = True
    random_state: Any = None

    def _learn(self, x: Any, y: Any, key: Any, weights: Any) -> bagging.Model:
        config = bagging.Config(
            self.n_estimators,
            self.max_samples,
            self.max_features,
            self.bootstrap,
            self._told_classes(),
        )
        learner = self._learner(self.estimator, None)
        return bagging.fit(x, y, learner, config, key, weights)

    def _tell(self, x: np.ndarray) -> Any:
        learner = self._learner(self.estimator, None)
        model = self.model_  # type: ignore[attr-defined]
        return self._cut(lambda rows: bagging.predict(model, learner, rows), x)


@export("trees.ensemble_estimators.BaggingClassifier", since="0.1")
@parameters
class BaggingClassifier(_Bagging, Classifier):
    """The mean of trees on bootstrap samples; see `bagging`."""


@export("trees.ensemble_estimators.BaggingRegressor", since="0.1")
@parameters
class BaggingRegressor(_Bagging, Regressor):
    """The mean of trees on bootstrap samples; see `bagging`."""


@parameters
class _Stacking(_Ensemble):
    estimators: Any = None
    folds: int = 5
    passthrough: bool = False
    random_state: Any = None

    def _parts(self) -> tuple:
        """The learners, and the final one."""
        if self.estimators is None:
            learners = tuple(self._learner(None, depth) for depth in (2, 4))
        else:
            learners = tuple(self._learner(one, None) for _, one in self.estimators)
        classes = self._told_classes()
        return learners, _logistic(classes) if classes else _ridge()

    def _settings(self, rows: int) -> stacking.Config:
        folds = max(min(self.folds, rows), 1)
        return stacking.Config(folds, self._told_classes(), self.passthrough)

    def _learn(self, x: Any, y: Any, key: Any, weights: Any) -> stacking.Model:
        if len(x) < 2:
            raise ValueError(f"x must have 2 rows or more, got n_samples = {len(x)}")
        config = self._settings(len(x))
        learners, final = self._parts()
        return stacking.fit(x, y, learners, final, config, key, weights)

    def _tell(self, x: np.ndarray) -> Any:
        learners, final = self._parts()
        model = self.model_  # type: ignore[attr-defined]
        config = self._settings(2)
        return self._cut(
            lambda rows: stacking.predict(model, learners, final, config, rows), x
        )


_logistic = cache(logistic)  # one learner, one compilation
_ridge = cache(ridge)


@export("trees.ensemble_estimators.StackingClassifier", since="0.1")
@parameters
class StackingClassifier(_Stacking, Classifier):
    """Softmax regression over trees' out-of-fold class shares; see `stacking`."""


@export("trees.ensemble_estimators.StackingRegressor", since="0.1")
@parameters
class StackingRegressor(_Stacking, Regressor):
    """Ridge regression over trees' out-of-fold predictions; see `stacking`."""
