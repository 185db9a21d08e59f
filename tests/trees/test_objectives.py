"""Objectives: derivatives against differences in float64, quantiles against sorting."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.trees.objectives import (
    NAMES,
    Objective,
    initial_prediction,
    objective,
)

OPTIONS = {"num_class": 3, "quantile_alpha": (0.1, 0.75), "huber_slope": 2.0}
DELTA = 1.5


def loss_numpy(name, m, y):
    """The loss of a row in float64, from its definition."""
    sigmoid = 1 / (1 + np.exp(-m[0]))
    cross_entropy = -(y * np.log(sigmoid) + (1 - y) * np.log(1 - sigmoid))
    return {
        "reg:squarederror": lambda: 0.5 * (m[0] - y) ** 2,
        "reg:squaredlogerror": lambda: 0.5 * (np.log1p(m[0]) - np.log1p(y)) ** 2,
        "reg:logistic": lambda: cross_entropy,
        "binary:logistic": lambda: cross_entropy,
        "binary:logitraw": lambda: cross_entropy,
        "reg:pseudohubererror": lambda: 4 * (np.sqrt(1 + ((m[0] - y) / 2) ** 2) - 1),
        "reg:absoluteerror": lambda: abs(m[0] - y),
        "reg:quantileerror": lambda: sum(
            max(q * (y - p), (q - 1) * (y - p))
            for q, p in zip((0.1, 0.75), m, strict=True)
        ),
        "reg:gamma": lambda: y / np.exp(m[0]) + m[0],
        "reg:tweedie": lambda: (
            -y * np.exp(-0.5 * m[0]) / -0.5 + np.exp(0.5 * m[0]) / 0.5
        ),
        "count:poisson": lambda: np.exp(m[0]) - y * m[0],
        "multi:softmax": lambda: -np.log(np.exp(m[int(y)]) / np.exp(m).sum()),
        "multi:softprob": lambda: -np.log(np.exp(m[int(y)]) / np.exp(m).sum()),
    }[name]()


def differences(name, m, y, step=1e-4):
    """Gradient and diagonal Hessian of a row by central differences."""
    f = lambda m: loss_numpy(name, m, y)
    g, h = np.zeros(len(m)), np.zeros(len(m))
    for i, e in enumerate(step * np.eye(len(m))):
        g[i] = (f(m + e) - f(m - e)) / (2 * step)
        h[i] = (f(m + e) - 2 * f(m) + f(m - e)) / step**2
    return g, h


FACTORS = {"count:poisson": math.exp(0.7), "multi:softmax": 2, "multi:softprob": 2}
FLOORS = {"reg:absoluteerror": 1, "reg:quantileerror": 1, "reg:squaredlogerror": 1e-6}


@pytest.mark.parametrize("name", [n for n in NAMES if not n.startswith("rank:")])
def test_derivatives_are_those_of_the_loss(rng, name):
    goal = objective(name, **OPTIONS)
    margin = rng.uniform(0.1, 2, size=(12, goal.num_outputs))
    label = (
        rng.integers(0, 2, 12)
        if "log" in name[:8] or "binary" in name
        else (rng.integers(0, 3, 12))
    )
    label = label.astype(np.float64) + (0.5 if name == "reg:gamma" else 0)
    g, h = jax.jit(goal.derivatives)(
        jnp.asarray(margin), jnp.asarray(label, jnp.float32)
    )
    for i in range(12):
        expected_g, expected_h = differences(name, margin[i], label[i])
        chex.assert_trees_all_close(np.asarray(g[i], float), expected_g, atol=2e-4)
        expected_h = np.maximum(expected_h * FACTORS.get(name, 1), FLOORS.get(name, 0))
        chex.assert_trees_all_close(np.asarray(h[i], float), expected_h, atol=2e-3)
    assert (h > 0).all()


def test_the_full_hessian_has_the_same_diagonal(rng):
    goal = objective("multi:softprob", num_class=4)
    margin = jnp.asarray(rng.normal(size=(5, 4)), jnp.float32)
    full = goal.hessian(margin, jnp.arange(5.0) % 4)
    _, h = goal.derivatives(margin, jnp.arange(5.0) % 4)
    chex.assert_trees_all_close(2 * jnp.diagonal(full, axis1=1, axis2=2), h, rtol=1e-5)
    chex.assert_trees_all_close(full.sum(axis=2), jnp.zeros((5, 4)), atol=1e-6)


def test_far_margins_stay_finite():
    for name in ("binary:logistic", "multi:softprob", "reg:pseudohubererror"):
        goal = objective(name, **OPTIONS)
        margin = jnp.full((2, goal.num_outputs), 200.0).at[1].multiply(-1)
        chex.assert_tree_all_finite(goal.derivatives(margin, jnp.array([0.0, 1.0])))


def test_any_loss_is_an_objective(rng):
    goal = Objective(lambda m, y: jnp.cosh(m - y))
    m, y = rng.normal(size=(2, 6)).astype(np.float32)
    g, h = goal.derivatives(m[:, None], jnp.asarray(y))
    chex.assert_trees_all_close(g[:, 0], np.sinh(m - y), rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(h[:, 0], np.cosh(m - y), rtol=1e-4, atol=1e-5)


def test_boosting_starts_where_the_loss_is_least(rng):
    y = rng.integers(0, 3, 50).astype(np.float32)
    w = rng.random(50).astype(np.float32)
    mean = np.average(y, weights=w)
    start = lambda name, y=y: initial_prediction(objective(name, **OPTIONS), y, w)
    for name in ("reg:squarederror", "count:poisson", "reg:tweedie"):
        assert float(start(name)[0]) == pytest.approx(mean, rel=1e-6)
    share = np.bincount(y.astype(int), w) / w.sum()
    margins = start("multi:softprob")
    chex.assert_trees_all_close(
        jax.nn.softmax(margins), share.astype(np.float32), atol=1e-5
    )
    assert float(margins.sum()) == pytest.approx(0, abs=1e-5)
    one = initial_prediction(objective("reg:absoluteerror"), y)
    assert float(one[0]) == np.median(y)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("reg:squarederr", {}, "objective must be one of"),
        ("multi:softprob", {"num_class": 1}, "num_class of 2 or more, got 1"),
        ("reg:quantileerror", {"quantile_alpha": (0.0,)}, r"must lie in \(0, 1\)"),
        ("reg:tweedie", {"tweedie_variance_power": 2.0}, r"must be in \[1, 2\)"),
        ("reg:pseudohubererror", {"huber_slope": 0.0}, "must not be 0"),
    ],
)
def test_bad_parameters_are_told(name, options, message):
    with pytest.raises(ValueError, match=message):
        objective(name, **options)
