"""Predictions by stages, ranges and slices, and what they refuse."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.trees.xgboost import Config, fit, predict, predict_proba, staged_predict

KEY = jax.random.key(0)
SMALL = Config(max_depth=2, num_boost_round=4, max_bin=16, eta=0.5)


def problem(rng, n=64):
    x = rng.normal(size=(n, 3)).astype(np.float32)
    return x, (x[:, 0] * (x[:, 1] > 0) + 0.1 * x[:, 2]).astype(np.float32)


def test_stages_ranges_and_slices_agree(rng):
    x, y = problem(rng)
    model = fit(x, y, SMALL, KEY)
    stages = staged_predict(model, x)
    assert stages.shape == (4, 64)
    for rounds in (1, 4):
        part = predict(model, x, iteration_range=(0, rounds))
        chex.assert_trees_all_close(part, stages[rounds - 1], atol=1e-6)
    tail = predict(model[2:], x, output_margin=True) - model.start
    chex.assert_trees_all_close(tail, stages[3] - stages[1], atol=1e-5)
    base = predict(model, x, base_margin=jnp.full(64, 7.0))
    chex.assert_trees_all_close(base, stages[3] - model.start + 7, atol=1e-5)
    assert model.num_rounds == 4


@pytest.mark.parametrize("num_class", [0, 3], ids=["logistic", "softmax"])
def test_shares_are_of_the_classes_in_order(rng, num_class):
    x, y = problem(rng)
    label = np.digitize(y, [-0.2, 0.2] if num_class else [0])
    goal = "multi:softprob" if num_class else "binary:logistic"
    config = dataclasses.replace(SMALL, objective=goal, num_class=num_class)
    model = fit(x, label, config, KEY)
    shares = np.asarray(predict_proba(model, x))
    assert (shares.argmax(axis=1) == label).mean() > 0.8
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-6)
    told = predict(model, x)
    np.testing.assert_allclose(shares if num_class else shares[:, 1], told, rtol=1e-6)


def test_no_round_after_the_best_is_heard(rng):
    x, y = problem(rng)
    held = x, rng.normal(size=64)
    config = dataclasses.replace(SMALL, num_boost_round=8, early_stopping_rounds=3)
    model = fit(x, y, config, KEY, evaluation=held)
    assert model.best_iteration < 7
    best = staged_predict(model, x)[model.best_iteration]
    chex.assert_trees_all_close(predict(model, x), best, atol=1e-6)


def test_missing_values_are_zero_to_a_linear_model(rng):
    x, y = problem(rng)
    model = fit(x, y, dataclasses.replace(SMALL, booster="gblinear"), KEY)
    holes = np.where(rng.random(x.shape) < 0.5, np.nan, x).astype(np.float32)
    told = predict(model, holes)
    chex.assert_trees_all_close(told, predict(model, np.nan_to_num(holes)), atol=1e-6)
    assert np.ptp(told) > 0.1


def test_bad_widths_and_objectives_are_told(rng):
    x, y = problem(rng, 16)
    model = fit(x, y, SMALL, KEY)
    for door in (predict, staged_predict):
        with pytest.raises(ValueError, match=r"x must be \[rows, 3\]"):
            door(model, x[:, :2])
    with pytest.raises(ValueError, match="must be logistic or softmax"):
        predict_proba(model, x)
