"""The ensembles as scikit-learn estimators: for pipelines, grid search, cross-validation.

Names, parameters and defaults are scikit-learn's (XGBoost's for the last two); `fit`
keeps the pure model as `model_`. Labels of classifiers may be of any type.

The trap: a random state is one number here, drawn at `fit`; equal states give equal models
but not the models of scikit-learn, whose generator is another one.

Reference: Buitinck et al., "API Design for Machine Learning Software: Experiences from the
scikit-learn Project", 2013, https://arxiv.org/abs/1309.0238.
"""

from dataclasses import fields
from typing import Any, ClassVar

import jax
import numpy as np

from jaxml.export import export
from jaxml.trees import cart, gbdt, random_forest, xgboost
from jaxml.trees.estimator import (
    Classifier,
    ClassifierMixin,
    Estimator,
    Regressor,
    check_is_fitted,
    check_random_state,
    parameters,
)
from jaxml.trees.model import Model
from jaxml.trees.table import pad_rows

TREE = (
    "criterion",
    "splitter",
    "max_depth",
    "min_samples_split",
    "min_samples_leaf",
    "min_weight_fraction_leaf",
    "max_features",
    "max_leaf_nodes",
    "min_impurity_decrease",
    "ccp_alpha",
    "max_bins",
)


@parameters
class _Tree:
    """Trees and forests: the parameters of `cart.Config`."""

    _multi_output: ClassVar[bool] = True
    criterion: str = "gini"
    splitter: str = "best"
    max_depth: int | None = None
    min_samples_split: int | float = 2
    min_samples_leaf: int | float = 1
    min_weight_fraction_leaf: float = 0.0
    max_features: int | float | str | None = None
    max_leaf_nodes: int | None = None
    min_impurity_decrease: float = 0.0
    ccp_alpha: float = 0.0
    max_bins: int | None = None
    random_state: Any = None

    def _config(self) -> cart.Config:
        chosen = {name: getattr(self, name) for name in TREE}
        return cart.Config(**chosen, num_classes=self._num_classes())  # type: ignore

    @property
    def feature_importances_(self) -> np.ndarray:
        """Share of each feature in what the splits gain."""
        check_is_fitted(self)
        return np.asarray(cart.feature_importances(self.model_), np.float64)  # type: ignore


class OneTree(_Tree):
    """A single tree, of which ensembles can be made."""

    def _learn(self, x: Any, y: Any, key: Any, weights: Any) -> cart.Model:
        return cart.fit(x, y, self._config(), key, weights)

    def _tell(self, x: np.ndarray) -> Any:
        model = self.model_  # type: ignore[attr-defined]
        told = cart.predict_proba if model.num_classes else cart.predict
        return told(model, x)

    def apply(self, X: Any) -> np.ndarray:
        """The leaf of every row."""
        return np.asarray(cart.apply(self.model_, self._asked(X)))  # type: ignore

    def cost_complexity_pruning_path(
        self, X: Any, y: Any, sample_weight: Any = None
    ) -> Any:
        """Alphas and risks, as `pruning.Path`."""
        y = np.asarray(y)
        y = self._encode(y) if isinstance(self, ClassifierMixin) else y  # type: ignore
        key = jax.random.key(check_random_state(self.random_state).randint(2**31 - 1))
        return cart.cost_complexity_path(X, y, self._config(), key, sample_weight)


@parameters
class _Forest(_Tree):
    max_features: int | float | str | None = "sqrt"
    n_estimators: int = 100
    bootstrap: bool = True
    max_samples: int | float | None = None
    oob_score: bool = False

    def _learn(self, x: Any, y: Any, key: Any, weights: Any) -> cart.Model:
        config = random_forest.Config(
            self._config(), self.n_estimators, self.bootstrap, self.max_samples
        )
        model = random_forest.fit(x, y, config, key, weights)
        if self.oob_score:
            told = np.asarray(random_forest.out_of_bag(model, x, config, key))
            self._judge(told, y)
        return model

    def _judge(self, told: np.ndarray, y: np.ndarray) -> None:
        """Accuracy, or R^2, of the rows that some tree did not see."""
        known = ~np.isnan(told[:, 0, 0])
        told, y = told[known], np.asarray(y)[known].reshape(known.sum(), -1)
        if isinstance(self, ClassifierMixin):
            self.oob_decision_function_ = told
            self.oob_score_ = float(np.mean(told.argmax(axis=2) == y))
        else:
            self.oob_prediction_ = told[..., 0]
            left = ((told[..., 0] - y) ** 2).sum(axis=0)
            self.oob_score_ = float(np.mean(1 - left / ((y - y.mean(0)) ** 2).sum(0)))

    def _tell(self, x: np.ndarray) -> Any:
        model = self.model_  # type: ignore[attr-defined]
        if model.num_classes:
            return random_forest.predict_proba(model, x)
        return random_forest.predict(model, x)


@export("trees.estimators.DecisionTreeClassifier", since="0.1")
@parameters
class DecisionTreeClassifier(OneTree, Classifier):
    """One tree of classes; see `cart.Config` for the parameters."""


@export("trees.estimators.DecisionTreeRegressor", since="0.1")
@parameters
class DecisionTreeRegressor(OneTree, Regressor):
    """One tree of numbers; see `cart.Config` for the parameters."""

    criterion: str = "squared_error"


@export("trees.estimators.RandomForestClassifier", since="0.1")
@parameters
class RandomForestClassifier(_Forest, Classifier):
    """A random forest of classes; see `random_forest.Config`."""


@export("trees.estimators.RandomForestRegressor", since="0.1")
@parameters
class RandomForestRegressor(_Forest, Regressor):
    """A random forest of numbers; see `random_forest.Config`."""

    criterion: str = "squared_error"
    max_features: int | float | str | None = 1.0


@export("trees.estimators.ExtraTreesClassifier", since="0.1")
@parameters
class ExtraTreesClassifier(_Forest, Classifier):
    """Extremely randomized trees of classes; see `extra_trees`."""

    splitter: str = "random"
    bootstrap: bool = False


@export("trees.estimators.ExtraTreesRegressor", since="0.1")
@parameters
class ExtraTreesRegressor(_Forest, Regressor):
    """Extremely randomized trees of numbers; see `extra_trees`."""

    criterion: str = "squared_error"
    splitter: str = "random"
    max_features: int | float | str | None = 1.0
    bootstrap: bool = False


class _Boosted(Estimator):
    """Boosters: their objective is made of functions, which cannot be pickled."""

    def _objective(self) -> Any:
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        if "model_" in state:
            parts = {f.name: getattr(self.model_, f.name) for f in fields(Model)}
            state["model_"] = {k: v for k, v in parts.items() if k != "objective"}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "model_" in state:
            self.model_ = Model(**state["model_"], objective=self._objective())


@parameters
class _GradientBoosting(_Boosted):
    learning_rate: float = 0.1
    n_estimators: int = 100
    subsample: float = 1.0
    alpha: float = 0.9
    max_depth: int | None = 3
    min_samples_split: int | float = 2
    min_samples_leaf: int | float = 1
    max_features: int | float | str | None = None
    max_leaf_nodes: int | None = None
    min_impurity_decrease: float = 0.0
    max_bins: int | None = None
    random_state: Any = None
    loss: str = "squared_error"

    def _config(self) -> gbdt.Config:
        names = {"squared_error": "squared", "absolute_error": "absolute"}
        names["log_loss"] = "logistic"
        tree = {name: getattr(self, name) for name in TREE if hasattr(self, name)}
        classes = self._num_classes()
        if isinstance(self, ClassifierMixin) and classes < 2:
            raise ValueError(f"y must hold 2 classes or more, got {classes} class")
        return gbdt.Config(
            names.get(self.loss, self.loss),  # type: ignore[arg-type]
            classes,
            self.n_estimators,
            self.learning_rate,
            self.subsample,
            self.alpha,
            cart.Config(criterion="squared_error", **tree),
        )

    def _objective(self) -> Any:
        return self._config().objective()

    def _learn(self, x: Any, y: Any, key: Any, weights: Any) -> Any:
        return gbdt.fit(x, y, self._config(), key, weights)

    def _tell(self, x: np.ndarray) -> Any:
        return pad_rows(self._raw, x)

    def _raw(self, x: Any) -> Any:
        model = self.model_  # type: ignore[attr-defined]
        classifies = isinstance(self, ClassifierMixin)
        return (gbdt.predict_proba if classifies else gbdt.predict)(model, x)


@export("trees.estimators.GradientBoostingClassifier", since="0.1")
@parameters
class GradientBoostingClassifier(_GradientBoosting, Classifier):
    """Friedman's boosting of classes; see `gbdt.Config`."""

    loss: str = "log_loss"


@export("trees.estimators.GradientBoostingRegressor", since="0.1")
@parameters
class GradientBoostingRegressor(_GradientBoosting, Regressor):
    """Friedman's boosting of numbers; see `gbdt.Config`."""


@parameters
class _XGB(_Boosted):
    n_estimators: int = 100
    max_depth: int = 6
    learning_rate: float = 0.3
    gamma: float = 0.0
    min_child_weight: float = 1.0
    subsample: float = 1.0
    colsample_bytree: float = 1.0
    reg_alpha: float = 0.0
    reg_lambda: float = 1.0
    tree_method: str = "hist"
    max_bin: int = 256
    objective: Any = None
    random_state: Any = None

    def _config(self) -> xgboost.Config:
        classes = self._num_classes()
        goal = self.objective or "reg:squarederror"
        if isinstance(self, ClassifierMixin):
            if classes < 2:
                raise ValueError(f"y must hold 2 classes or more, got {classes} class")
            goal = self.objective
            goal = goal or ("binary:logistic" if classes == 2 else "multi:softprob")
        return xgboost.Config(
            eta=self.learning_rate,
            gamma=self.gamma,
            min_child_weight=self.min_child_weight,
            reg_lambda=self.reg_lambda,
            reg_alpha=self.reg_alpha,
            objective=goal,
            num_boost_round=self.n_estimators,
            max_depth=self.max_depth,
            subsample=self.subsample,
            colsample_bytree=self.colsample_bytree,
            tree_method=self.tree_method,  # type: ignore[arg-type]
            max_bin=self.max_bin,
            num_class=classes if classes > 2 else 0,
        )

    def _objective(self) -> Any:
        return self._config().resolved_objective()

    def _learn(self, x: Any, y: Any, key: Any, weights: Any) -> Any:
        return xgboost.fit(x, y.astype(np.float32), self._config(), key, weights)

    def _tell(self, x: np.ndarray) -> Any:
        model = self.model_  # type: ignore[attr-defined]
        classifies = isinstance(self, ClassifierMixin)
        tell = xgboost.predict_proba if classifies else xgboost.predict
        return pad_rows(lambda rows: tell(model, rows), x)


@export("trees.estimators.XGBClassifier", since="0.1")
@parameters
class XGBClassifier(_XGB, Classifier):
    """XGBoost for classes; see `xgboost.Config`."""


@export("trees.estimators.XGBRegressor", since="0.1")
@parameters
class XGBRegressor(_XGB, Regressor):
    """XGBoost for numbers; see `xgboost.Config`."""
