"""Losses of one row: closed derivatives, limits, and what happens far out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.trees import row_losses

FAR = [-200.0, -30.0, -1.5, 0.0, 0.7, 30.0, 200.0]


def derivatives(loss, m, y):
    """Slope and bend by autodiff, as boosting takes them."""
    slope = jax.grad(loss)
    return [np.asarray(jax.vmap(f)(m, y)) for f in (slope, jax.grad(slope))]


def test_closed_forms_take_the_place_of_autodiff():
    loss = row_losses.with_slope(
        lambda m, y: m * y, lambda m, y: 10 * m + y, lambda m, y: 100 * m - y
    )
    m, y = jnp.array([1.0, 2.0]), jnp.array([3.0, 5.0])
    assert jax.vmap(loss)(m, y).tolist() == [3, 10]
    slope, bend = derivatives(loss, m, y)
    assert slope.tolist() == [13, 25]
    assert bend.tolist() == [97, 195]
    _, along = jax.jvp(loss, (m[0], y[0]), (2.0, 0.0))
    assert float(along) == 26


@pytest.mark.parametrize("y", [0.0, 1.0])
def test_logistic_stays_exact_far_out(y):
    m, labels = jnp.array(FAR), jnp.full(len(FAR), y)
    value = np.logaddexp(np.array(FAR), 0) - y * np.array(FAR)
    np.testing.assert_allclose(
        jax.vmap(row_losses.logistic)(m, labels), value, rtol=1e-6, atol=1e-12
    )
    p = 1 / (1 + np.exp(-np.array(FAR)))
    slope, bend = derivatives(row_losses.logistic, m, labels)
    np.testing.assert_allclose(slope, p - y, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(bend, p * (1 - p), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("delta", [0.5, 3.0])
def test_pseudo_huber_is_square_and_then_straight(delta):
    loss = row_losses.pseudo_huber(delta)
    assert loss is row_losses.pseudo_huber(delta)  # one function, one program
    m, y = jnp.array(FAR), jnp.full(len(FAR), 0.7)
    d = np.array(FAR) - 0.7
    root = np.sqrt(1 + (d / delta) ** 2)
    value = delta**2 * (root - 1)
    np.testing.assert_allclose(jax.vmap(loss)(m, y), value, rtol=1e-5, atol=1e-6)
    slope, bend = derivatives(loss, m, y)
    np.testing.assert_allclose(slope, d / root, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(bend, 1 / root**3, rtol=1e-5, atol=1e-9)
    assert bend[4] == 1
    assert abs(slope[-1]) == pytest.approx(delta, rel=1e-3)


def test_tweedie_lies_between_poisson_and_gamma():
    m, y = jnp.linspace(-1, 2, 7), jnp.arange(1.0, 8.0)
    expected = derivatives(row_losses.poisson, m, y)
    at_one = derivatives(lambda m, y: row_losses.tweedie(1.0, m, y), m, y)
    near_two = derivatives(lambda m, y: row_losses.tweedie(1.9999, m, y), m, y)
    for a, b in zip(at_one, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    for a, b in zip(near_two, derivatives(row_losses.gamma, m, y), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3)
    halfway = [
        np.exp(0.5 * m) - y * np.exp(-0.5 * m) for m, y in zip(m, y, strict=True)
    ]
    told = derivatives(lambda m, y: row_losses.tweedie(1.5, m, y), m, y)[0]
    np.testing.assert_allclose(told, halfway, rtol=1e-5)


def test_squared_log_is_finite_where_no_logarithm_is():
    m, y = jnp.array([-3.0, -1.0, 0.0, 2.0]), jnp.full(4, 1.0)
    value = jax.vmap(row_losses.squared_log)(m, y)
    assert np.isfinite(value).all()
    assert np.isfinite(derivatives(row_losses.squared_log, m, y)).all()
    expected = 0.5 * (np.log1p([0.0, 2.0]) - np.log1p(1)) ** 2
    np.testing.assert_allclose(value[2:], expected, rtol=1e-5)


def test_pinball_adds_up_its_quantiles():
    m, y = jnp.array([1.0, 3.0]), 2.0
    told = row_losses.pinball((0.1, 0.75), m, jnp.float32(y))
    assert float(told) == pytest.approx(0.1 * 1 + 0.25 * 1)
    at = jax.grad(lambda m: row_losses.pinball((0.1,), m, jnp.float32(y)))
    slopes = [at(jnp.array([value]))[0] for value in (1.0, 2.0, 3.0)]
    np.testing.assert_allclose(slopes, [-0.1, 0.9, 0.9], rtol=1e-6)


def test_errors_and_classes():
    assert float(row_losses.squared(jnp.float32(3), jnp.float32(1))) == 2
    assert float(row_losses.absolute(jnp.float32(-3), jnp.float32(1))) == 4
    m = jnp.array([300.0, 0.0, -300.0])
    told = [float(row_losses.softmax_loss(m, jnp.float32(y))) for y in range(3)]
    assert told == [0, 300, 600]
    ties = jnp.array([[1.0, 2.0, 2.0], [3.0, 1.0, 3.0]])
    index = row_losses.class_index(ties)
    assert index.tolist() == [1, 0]
    assert index.dtype == jnp.float32


def test_logit_turns_the_sigmoid_round_and_stays_finite():
    m = jnp.array([-9.0, -0.3, 0.0, 4.0])
    np.testing.assert_allclose(
        row_losses.logit(jax.nn.sigmoid(m)), m, rtol=1e-3, atol=1e-6
    )
    ends = row_losses.logit(jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(np.abs(ends), np.log(1e6), rtol=0.01)
    assert ends[0] < 0 < ends[1]
