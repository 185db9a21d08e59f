"""The linear booster against normal equations and a search."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.trees.linear import coordinate_step, descend
from jaxml.trees.objectives import objective


def fitted(x, y, goal="reg:squarederror", weights=None, rounds=400, **options):
    base = jnp.zeros((len(x), 1))
    y = jnp.asarray(y, jnp.float32)
    return descend(x, y, weights, base, objective(goal), rounds, 1.0, **options)


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_squared_error_solves_the_normal_equations(rng, ridge):
    x = rng.normal(size=(40, 3)).astype(np.float32)
    x[rng.random(x.shape) < 0.1] = np.nan
    y, w = rng.normal(size=40), rng.uniform(0.5, 2, 40)
    actual = fitted(x, y, weights=jnp.asarray(w, jnp.float32), reg_lambda=ridge)
    full = np.concatenate((np.nan_to_num(x), np.ones((40, 1))), axis=1).astype(float)
    penalty = ridge * w.sum() * np.diag([1, 1, 1, 0])
    expected = np.linalg.solve(full.T @ (w[:, None] * full) + penalty, full.T @ (w * y))
    np.testing.assert_allclose(actual[:, 0], expected, rtol=1e-4, atol=1e-5)


def test_logistic_loss_ends_where_its_gradient_is_zero(rng):
    x = rng.normal(size=(60, 2)).astype(np.float32)
    y = (x[:, 0] + rng.normal(size=60) > 0).astype(np.float32)
    weights = np.asarray(fitted(x, y, "binary:logistic"), np.float64)[:, 0]
    p = 1 / (1 + np.exp(-(x @ weights[:-1] + weights[-1])))
    assert np.abs(x.T @ (p - y)).max() < 1e-3
    assert abs((p - y).sum()) < 1e-3


@pytest.mark.parametrize("alpha", [0.0, 0.7, 3.0])
def test_a_step_ends_at_the_least_or_at_zero(rng, alpha):
    for G, H, w in (
        np.abs(rng.normal(size=(20, 3))) * [2, 1, 1] * rng.choice([-1, 1], (20, 1))
    ):
        H = abs(H) + 0.1
        d = np.linspace(-9, 9, 180001)
        cost = G * d + H * d**2 / 2 + 0.2 * (w + d) ** 2 / 2 + alpha * np.abs(w + d)
        step = coordinate_step(
            *(jnp.array([v], jnp.float32) for v in (G, H, w)), 0.2, alpha
        )
        best = d[cost.argmin()]
        end, least = w + float(step[0]), w + best
        if end * w >= 0 and least * w >= 0:  # it stops at zero before changing sides
            assert end == pytest.approx(least, abs=1e-3)


def test_a_strong_penalty_takes_every_weight_to_zero(rng):
    x = rng.normal(size=(30, 2)).astype(np.float32)
    weights = fitted(x, x[:, 0], reg_alpha=50.0)
    assert not np.asarray(weights[:-1]).any()
