"""What the parameters, features, labels and weights must be."""

import jax
import numpy as np
import pytest

from jaxml.trees.bins import make_bins
from jaxml.trees.objectives import objective
from jaxml.trees.ranking import Ranking
from jaxml.trees.xgboost import Config, fit
from jaxml.trees.xgboost_config import check

KEY = jax.random.key(0)
X = np.zeros((4, 2), np.float32)
Y = np.arange(4.0)
BINS = make_bins(X, 4)


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
        (X, np.stack((Y, Y), axis=1), {}, "one per row"),
        (X, Y, {"subsample": 0.0}, r"subsample must be in \(0, 1\]"),
        (X, Y, {"colsample_bynode": 1.5}, r"colsample_bynode must be in \(0, 1\]"),
        (X, Y, {"max_leaves": 1}, "0 or 2 and more, got 1"),
        (X, Y, {"max_leaves": -2}, "0 or 2 and more, got -2"),
        (
            X,
            Y,
            {"grow_policy": "lossguide", "tree_method": "exact"},
            "bound the leaves",
        ),
        (X, Y, {"monotone_constraints": (1, 2)}, "numbers of -1, 0 and 1"),
        (X, Y, {"interaction_constraints": ((-1,),)}, "columns below 2"),
        (X, Y, {"categorical": (-1,)}, "columns below 2"),
        (X - 1, Y, {"categorical": (0,)}, r"integers in \[0, 256\)"),
        (BINS, Y, {"booster": "gblinear"}, "features, not bins"),
        (BINS, Y, {"tree_method": "exact"}, "must be 'hist' for bins"),
        (X, Y, {"booster": "gblinear", "axis_name": "data"}, "neither early stopping"),
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


def test_held_out_rows_must_be_as_wide():
    with pytest.raises(ValueError, match="held-out x must have 2 columns, got 3"):
        fit(X, Y, Config(), KEY, evaluation=(np.zeros((4, 3), np.float32), Y))
    config = Config(booster="gblinear", early_stopping_rounds=2)
    with pytest.raises(ValueError, match="neither early stopping"):
        fit(X, Y, config, KEY, evaluation=(X, Y))


def test_ends_that_are_closed_belong_to_the_labels():
    config = Config(objective="binary:logistic", num_boost_round=1, max_depth=1)
    check(config, X, np.array([0, 1, 0.5, 1]), None, config.resolved_objective())
    codes = np.array([[0, 1.5], [255, 0], [np.nan, 0], [1, 0]], np.float32)
    config = Config(categorical=(0,))
    check(config, codes, Y, None, config.resolved_objective())


def test_parameters_reach_the_objective():
    config = Config(
        objective="rank:ndcg",
        lambdarank_pair_method="mean",
        lambdarank_num_pair_per_sample=3,
        lambdarank_normalization=False,
        ndcg_exp_gain=False,
    )
    expected = Ranking("ndcg", "mean", 3, normalize=False, exp_gain=False)
    assert config.resolved_objective().ranking == expected
    for step in (0.0, 0.2):
        poisson = Config(objective="count:poisson", max_delta_step=step)
        expected = objective("count:poisson", max_delta_step=step or 0.7)
        assert poisson.resolved_objective().settings == expected.settings


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
