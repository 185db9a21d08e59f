"""Dual numbers against `jax.jvp`, against the tape, and nested."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.fundamentals.autograd import Tensor, grad
from jaxml.fundamentals.dual import Dual, jvp

NAMES = ("exp", "log", "sqrt", "sin", "cos", "tanh", "sigmoid", "relu", "abs")


@pytest.fixture(autouse=True)
def wide():
    """float64."""
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("name", NAMES)
def test_functions_equal_jax(name, rng):
    x, dx = rng.uniform(0.5, 2, size=(2, 3))
    x = -x if name in ("relu", "abs") and rng.integers(2) else x
    theirs = {"sigmoid": jax.nn.sigmoid, "relu": jax.nn.relu}.get(name)
    theirs = theirs or getattr(jnp, name)
    got = jvp(lambda x: getattr(x, name)() * x, [x], [dx])
    expected = jax.jvp(lambda x: theirs(x) * x, [x], [dx])
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def energy(x, w):
    """Runs on tensors, dual numbers and arrays with methods alike."""
    h = (x @ w - 1.0).tanh()
    y = (2.0 / (h * h + 1.0) + h**3 - 0.5 * h).sum(0)
    return (y[1:] * y[0]).sin().sum() - (3.0 - y.reshape(2, -1).T).sum()


def test_forward_and_backward_agree(rng):
    x, w = rng.normal(size=(5, 3)), rng.normal(size=(3, 4))
    dx, dw = rng.normal(size=(5, 3)), rng.normal(size=(3, 4))
    value, slope = jvp(energy, [x, w], [dx, dw])
    tensors = [Tensor(x, requires_grad=True), Tensor(w, requires_grad=True)]
    out = energy(*tensors)
    gx, gw = grad(out, tensors)
    np.testing.assert_allclose(value, out.data, rtol=1e-12)
    total = (gx.data * dx).sum() + (gw.data * dw).sum()
    np.testing.assert_allclose(slope, total, rtol=1e-10)


def test_arrays_on_the_left(rng):
    array, x = rng.normal(size=(2, 3)), rng.normal(size=3)
    run = lambda x: (array @ x * 2.0 + (1.0 - x[:2])) / (1.0 / x[1:])
    got = jvp(run, [x], [np.ones(3)])
    expected = jax.jvp(run, [jnp.asarray(x)], [jnp.ones(3)])
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    assert not np.any(jvp(lambda x: x**0, [x], [x])[1])
    value, slope = jvp(lambda x: x**0, [0.0 * x], [x])
    assert (value == 1).all()
    assert (slope == 0).all()


def test_derivatives_nest():
    derivative = lambda f: lambda x: jvp(f, [x], [jnp.ones(())])[1]
    third = derivative(derivative(derivative(lambda x: (2.0 * x).sin())))
    np.testing.assert_allclose(third(jnp.asarray(0.3)), -8 * np.cos(0.6), rtol=1e-12)


def test_perturbations_are_not_confused():
    """d/dx (x d/dy (x + y)) is 1, and 2 for those who mix the two."""
    one = jnp.ones(())
    inner = lambda x: jvp(lambda y: x + y, [one], [one])[1]
    assert jvp(lambda x: x * inner(x), [one], [one])[1] == 1
    product = lambda x: jvp(lambda y: x * y, [one], [one])[1]  # x itself
    assert jvp(lambda x: x * product(x), [2 * one], [one])[1] == 4


def test_a_constant_has_no_slope():
    value, slope = jvp(lambda x: jnp.ones(2), [jnp.ones(3)], [jnp.ones(3)])
    assert (value.tolist(), slope.tolist()) == ([1, 1], [0, 0])
    assert repr(Dual(1.0, 2.0, 3)) == "Dual(1.0 + 2.0 e3)"


def test_refuses_tangents_that_do_not_fit():
    with pytest.raises(ValueError, match="every primal needs a tangent, got 1 and 2"):
        jvp(lambda x: x, [1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match=r"got \(3,\) for \(2,\)"):
        jvp(lambda x: x, [jnp.ones(2)], [jnp.ones(3)])
