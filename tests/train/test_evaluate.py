"""Evaluation over a whole split: every sample once, padding never."""

import chex
import jax
import numpy as np
import optax
import pytest

from jaxml.metrics.metric import mean_of
from jaxml.train import evaluate, init_state, predict


@pytest.fixture
def trained(method, batches):
    state = init_state(method, optax.sgd(0.1), jax.random.key(0), next(iter(batches)))
    params = {"w": np.float32([1, 2, 3]), "b": np.float32(0.5)}
    return type(state)(state.step, params, state.model_state, state.opt_state)


@pytest.fixture
def split(rng):
    """Ten samples in batches of four; the last is padded with rubbish."""
    x = rng.normal(size=(12, 3)).astype(np.float32)
    x[10:] = 1e6
    mask = np.arange(12) < 10
    batches = [
        {"x": x[i : i + 4], "y": np.zeros(4, np.float32), "mask": mask[i : i + 4]}
        for i in (0, 4, 8)
    ]
    return x[:10], batches


def test_predictions_come_in_order_without_padding(method, trained, split):
    x, batches = split
    expected = x @ np.float32([1, 2, 3]) + np.float32(0.5)
    chex.assert_trees_all_close(predict(method, trained, batches), expected, rtol=1e-5)


def test_a_metric_counts_every_sample_once(method, trained, split):
    x, batches = split
    metric = mean_of("size", lambda outputs, batch: outputs)
    expected = np.mean(x.astype(np.float64) @ [1, 2, 3] + 0.5)
    actual = evaluate(method, trained, batches, metric)
    assert actual["size"] == pytest.approx(expected, rel=1e-5)


def test_no_batches_are_an_error(method, trained):
    with pytest.raises(ValueError, match="at least one batch"):
        predict(method, trained, [])
    with pytest.raises(ValueError, match="at least one batch"):
        evaluate(method, trained, [], mean_of("x", lambda o, b: o))


def test_evaluation_is_compiled_once_for_a_shape(method, trained, split):
    counted = method._replace(predict=chex.assert_max_traces(method.predict, n=1))
    for _ in range(2):
        predict(counted, trained, split[1])
