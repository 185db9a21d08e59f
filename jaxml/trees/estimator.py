"""What all estimators share: checks of scikit-learn's, labels of any type, random states.

The trap: scikit-learn asks for the parameters of a class by the signature of `__init__`;
dataclasses write it.

Reference: Buitinck et al., "API Design for Machine Learning Software: Experiences from the
scikit-learn Project", 2013, https://arxiv.org/abs/1309.0238.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import numpy as np

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import (
        _check_sample_weight,
        check_is_fitted,
        validate_data,
    )
except ModuleNotFoundError as error:  # its name tells the catalogue what is missing
    message = f"jaxml.trees.estimators needs scikit-learn 1.6 or newer: {error}"
    raise ModuleNotFoundError(message, name=error.name) from error

parameters = dataclass(eq=False, repr=False, kw_only=True)


class Estimator(BaseEstimator):
    """What all of them share; a subclass says how to learn and how to tell."""

    def _learn(self, x: np.ndarray, y: np.ndarray, key: Any, weights: Any) -> Any:
        raise NotImplementedError

    def _tell(self, x: np.ndarray) -> np.ndarray:
        """Class probabilities, or numbers."""
        raise NotImplementedError

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Learns; X may hold NaN for missing values."""
        classifies = isinstance(self, ClassifierMixin)
        X, y = validate_data(
            self,
            X,
            y,
            dtype=np.float32,
            ensure_all_finite="allow-nan",
            y_numeric=not classifies,
            multi_output=self._multi_output,
        )
        y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
        if classifies:
            check_classification_targets(y)
            y = self._encode(y)
        if sample_weight is not None:
            sample_weight = _check_sample_weight(sample_weight, X, dtype=np.float32)
            if not (sample_weight > 0).any():
                raise ValueError("sample_weight must not all be zero")
        state = check_random_state(getattr(self, "random_state", None))
        key = jax.random.key(state.randint(2**31 - 1))
        self.model_ = jax.tree.map(np.asarray, self._learn(X, y, key, sample_weight))
        return self

    _multi_output: ClassVar[bool] = False

    def _encode(self, y: np.ndarray) -> np.ndarray:
        if y.ndim == 1:
            self.classes_, y = np.unique(y, return_inverse=True)
            self.n_classes_ = len(self.classes_)
            return y
        pairs = [np.unique(column, return_inverse=True) for column in y.T]
        self.classes_ = [names for names, _ in pairs]
        self.n_classes_ = [len(names) for names in self.classes_]
        return np.stack([index for _, index in pairs], axis=1)

    def _asked(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        return validate_data(
            self, X, dtype=np.float32, ensure_all_finite="allow-nan", reset=False
        )

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self._allow_nan()
        tags.target_tags.multi_output = self._multi_output
        return tags

    def _allow_nan(self) -> bool:
        return getattr(self, "criterion", "") != "absolute_error"

    def _num_classes(self) -> int:
        if not isinstance(self, ClassifierMixin):
            return 0
        return int(np.max(self.n_classes_))


class Classifier(ClassifierMixin, Estimator):
    """An estimator of classes."""

    def predict_proba(self, X: Any) -> Any:
        """Class probabilities, [rows, classes], or a list of them, one per target."""
        told = np.asarray(self._tell(self._asked(X)), np.float64)
        if told.ndim == 3:
            return [told[:, i, : len(names)] for i, names in enumerate(self.classes_)]
        return told / told.sum(axis=1, keepdims=True)

    def predict(self, X: Any) -> np.ndarray:
        """Labels, of the type that y had."""
        shares = self.predict_proba(X)
        if isinstance(shares, list):
            columns = zip(self.classes_, shares, strict=True)
            return np.stack([c[p.argmax(axis=1)] for c, p in columns], axis=1)
        return self.classes_[shares.argmax(axis=1)]


class Regressor(RegressorMixin, Estimator):
    """An estimator of numbers."""

    def predict(self, X: Any) -> np.ndarray:
        """Numbers, [rows] or [rows, outputs]."""
        return np.asarray(self._tell(self._asked(X)), np.float64)
