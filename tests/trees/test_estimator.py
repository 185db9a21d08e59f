"""What all estimators share, on learners that know no more than means."""

import jax
import numpy as np
import pytest
from sklearn.exceptions import NotFittedError

from jaxml.trees.estimator import Classifier, Regressor

X = np.arange(12.0).reshape(6, 2)


class Shares(Classifier):
    """The shares of the classes, in twofold, whatever is asked."""

    _multi_output = True

    def __init__(self, random_state=None, criterion="gini"):
        self.random_state = random_state
        self.criterion = criterion

    def _learn(self, x, y, key, weights):
        assert x.dtype == np.float32
        columns = y.reshape(len(y), -1).T
        counts = [np.bincount(c, weights, self._num_classes()) for c in columns]
        self.key_ = jax.random.key_data(key).tolist()
        return np.array(counts) if y.ndim == 2 else counts[0]

    def _tell(self, x):
        return np.broadcast_to(2 * self.model_, (len(x), *self.model_.shape))


class Mean(Regressor):
    """The mean, whatever is asked."""

    def _learn(self, x, y, key, weights):
        return np.float32(np.average(y, weights=weights))

    def _tell(self, x):
        return np.full(len(x), self.model_, np.float32)


def test_labels_come_back_as_they_were():
    y = np.array(["no", "yes", "no", "perhaps", "no", "yes"])
    model = Shares().fit(X, y)
    assert model.classes_.tolist() == ["no", "perhaps", "yes"]
    assert model.n_classes_ == 3
    shares = model.predict_proba(X[:2])
    assert shares.dtype == np.float64
    np.testing.assert_allclose(shares, [[3 / 6, 1 / 6, 2 / 6]] * 2)
    assert model.predict(X[:2]).tolist() == ["no", "no"]
    weighed = model.fit(X, y, [0, 0, 0, 5, 0, 1])
    assert weighed.predict(X[:1]).tolist() == ["perhaps"]
    assert model.score(X, y) == pytest.approx(1 / 6)


def test_every_target_has_its_own_classes():
    y = np.array([[7, 1], [9, 3], [9, 2], [9, 3], [9, 3], [9, 3]])
    model = Shares().fit(X, y)
    assert [c.tolist() for c in model.classes_] == [[7, 9], [1, 2, 3]]
    assert model.n_classes_ == [2, 3]
    first, second = model.predict_proba(X)
    assert (first.shape, second.shape) == ((6, 2), (6, 3))
    assert model.predict(X[:2]).tolist() == [[9, 3], [9, 3]]


def test_one_column_of_labels_is_a_vector():
    model = Shares().fit(X, np.array([[0], [1], [1], [1], [0], [1]]))
    assert model.classes_.tolist() == [0, 1]
    assert model.predict(X).shape == (6,)


def test_numbers_are_told_in_float64():
    model = Mean().fit(X, np.arange(6.0), np.array([0, 0, 0, 0, 1, 3]))
    told = model.predict(X[:3])
    assert (told.dtype, told.tolist()) == (np.float64, [4.75] * 3)


def test_the_random_state_decides_the_key():
    y = np.arange(6) % 2
    one, same, other = (Shares(s).fit(X, y).key_ for s in (3, 3, 4))
    assert one == same != other
    state = np.random.RandomState(3)
    first, second = (Shares(state).fit(X, y).key_ for _ in range(2))
    assert first == one != second


def test_missing_values_are_a_matter_of_the_criterion():
    x = np.where(X > 9, np.nan, X)
    model = Shares().fit(x, np.arange(6) % 2)
    assert model.predict(x).shape == (6,)
    assert Shares().__sklearn_tags__().input_tags.allow_nan
    tags = Shares(criterion="absolute_error").__sklearn_tags__()
    assert not tags.input_tags.allow_nan
    assert tags.target_tags.multi_output
    assert not Mean().__sklearn_tags__().target_tags.multi_output


def test_bad_use_is_told():
    with pytest.raises(NotFittedError):
        Mean().predict(X)
    y = np.arange(6.0)
    with pytest.raises(ValueError, match="zero"):
        Mean().fit(X, y, np.zeros(6))
    with pytest.raises(ValueError, match="sample_weight"):
        Mean().fit(X, y, np.ones(5))
    with pytest.raises(ValueError, match="continuous"):
        Shares().fit(X, y + 0.5)
    with pytest.raises(ValueError, match="infinity"):
        Mean().fit(np.where(X > 9, np.inf, X), y)
    with pytest.raises(ValueError, match="3 features"):
        Mean().fit(X, y).predict(np.ones((2, 3)))
