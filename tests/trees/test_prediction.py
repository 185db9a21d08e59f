"""Predictions by stages, ranges and slices, and what they refuse."""

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


def test_bad_widths_and_objectives_are_told(rng):
    x, y = problem(rng, 16)
    model = fit(x, y, SMALL, KEY)
    for door in (predict, staged_predict):
        with pytest.raises(ValueError, match=r"x must be \[rows, 3\]"):
            door(model, x[:, :2])
    with pytest.raises(ValueError, match="must be logistic or softmax"):
        predict_proba(model, x)
