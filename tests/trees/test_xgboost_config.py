"""What the parameters, features, labels and weights must be."""

import jax
import numpy as np
import pytest

from jaxml.trees.objectives import objective
from jaxml.trees.xgboost import Config, fit

KEY = jax.random.key(0)
X = np.zeros((4, 2), np.float32)
Y = np.arange(4.0)


@pytest.mark.parametrize(
    ("x", "y", "config", "message"),
    [
        (X[:0], Y[:0], {}, "both positive"),
        (X, Y[:3], {}, "one per row"),
        (X, Y * np.nan, {}, "labels must be finite"),
        (X, Y + np.inf, {}, "labels must be finite"),
        (X + np.inf, Y, {}, "x must be finite"),
        (X, Y, {"objective": "binary:logistic"}, r"must be in \[0, 1\], got 2"),
        (X, -Y, {"objective": "count:poisson"}, r"must be in \[0, inf\)"),
        (X, Y, {"objective": "reg:gamma"}, r"must be in \(0, inf\), got 0"),
        (X, Y, {"objective": "multi:softprob", "num_class": 3}, r"\[0, 2\], got 3"),
        (X, Y / 2, {"objective": "multi:softmax", "num_class": 4}, "integers"),
        (X, Y, {"subsample": 0.0}, r"subsample must be in \(0, 1\]"),
        (X, Y, {"max_depth": 0}, "max_depth must be positive"),
        (X, Y, {"max_depth": 15}, "at most 14"),
        (X, Y, {"monotone_constraints": (1,)}, "2 numbers"),
        (X, Y, {"interaction_constraints": ((0, 2),)}, "columns below 2"),
        (X, Y, {"early_stopping_rounds": 3}, "come with `evaluation`"),
        (X, Y, {"max_bin": 1}, "max_bin must be in"),
        (X, Y, {"objective": "count:poisson", "scale_pos_weight": 2.0}, "must be 1"),
        (X, Y, {"tree_method": "exact", "axis_name": "data"}, "must be 'hist'"),
    ],
)
def test_bad_input_is_told(x, y, config, message):
    with np.errstate(all="ignore"), pytest.raises(ValueError, match=message):
        fit(x, y, Config(**config), KEY)


def test_bad_weights_are_told():
    for weights in (-np.ones(4), np.zeros(4), np.ones(4) * np.nan):
        with pytest.raises(ValueError, match="weights must be finite"):
            fit(X, Y, Config(), KEY, weights)
    with pytest.raises((ValueError, TypeError), match="weights"):
        fit(X, Y, Config(), KEY, np.ones(3))


def test_defaults_are_xgboosts():
    tree, linear = Config(), Config(booster="gblinear")
    assert (tree.step(), tree.ridge()) == (0.3, 1.0)
    assert (linear.step(), linear.ridge()) == (0.5, 0.0)
    assert Config(objective="count:poisson").delta_step() == 0.7
    assert Config(objective="count:poisson", max_delta_step=0.2).delta_step() == 0.2
    assert tree.resolved_objective() == objective("reg:squarederror")


def test_numbers_are_leaves_and_the_rest_is_static():
    leaves, structure = jax.tree.flatten(Config(eta=0.1, gamma=2.0))
    assert sorted(leaves) == [0.0, 0.1, 1.0, 2.0]
    other = jax.tree.structure(Config(eta=0.1, gamma=2.0, max_depth=3))
    assert structure != other
