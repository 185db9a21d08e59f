"""Newton scores against the objective they minimise, in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.trees.rule import newton


def regularised(w, G, H, reg_lambda, alpha):
    """-2 times what a leaf of value w adds to the objective."""
    return -(2 * G * w + (H + reg_lambda) * w**2 + 2 * alpha * abs(w))


@pytest.mark.parametrize("alpha", [0.0, 1.5])
@pytest.mark.parametrize("bound", [0.0, 0.4])
def test_value_and_score_are_the_best_there_are(rng, alpha, bound):
    rule = newton(0.7, alpha, bound, 1.0)
    grid = np.linspace(-bound or -9, bound or 9, 18001)
    for G, H in zip(3 * rng.normal(size=8), 0.2 + rng.random(8), strict=True):
        sums = jnp.array([G, H], jnp.float32)
        scores = regularised(grid, G, H, 0.7, alpha)
        best = grid[scores.argmax()]
        assert float(rule.value(sums)[0]) == pytest.approx(best, abs=2e-3)
        # With a bound the score leaves the L1 penalty out, as XGBoost does.
        expected = scores.max() + (2 * alpha * abs(best) if bound else 0)
        score = float(rule.score(sums))
        assert score == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_a_small_gradient_is_shrunk_to_nothing():
    rule = newton(1.0, 2.0)
    assert float(rule.value(jnp.array([1.9, 3.0]))[0]) == 0
    assert float(rule.score(jnp.array([-1.9, 3.0]))) == 0


def test_score_at_another_value_is_the_objective_without_l1(rng):
    rule = newton(0.5, 0.25)
    G, H, w = rng.normal(size=(3, 6)) + np.array([[0], [3], [0]])
    expected = [regularised(*row, 0.5, 0.0) for row in zip(w, G, H, strict=True)]
    actual = rule.score_at(jnp.array([G, H], jnp.float32), jnp.array([w], jnp.float32))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_children_need_weight_and_empty_nodes_are_worth_nothing():
    rule = newton(0.0, min_child_weight=2.0)
    sums = jnp.array([[1.0, 1.0, 1.0, 3.0], [1.99, 2.0, 3.0, 0.0]])
    assert rule.admits(sums).tolist() == [False, True, True, False]
    assert not newton(min_child_weight=0.0).admits(sums)[3]
    assert rule.score(sums)[3] == rule.value(sums)[0, 3] == 0
