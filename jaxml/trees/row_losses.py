"""Losses of one row, (margin, label) -> scalar, and links; `objectives` dresses them.

Where autodiff's second derivative would cancel, the slope and the bend are given in closed
form (`with_slope`).

Reference: Friedman, "Greedy Function Approximation: A Gradient Boosting Machine", Annals of
Statistics 2001, https://doi.org/10.1214/aos/1013203451.
"""

from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp

from jaxml.typing import Array

EPS = 1e-6


def with_slope(loss: Callable, slope: Callable, bend: Callable) -> Callable:
    """`loss` with derivatives by m in closed form, where autodiff's would cancel."""

    @jax.custom_jvp
    def first(m: Array, y: Array) -> Array:
        return slope(m, y)

    @first.defjvp
    def _(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
        return first(*primals), bend(*primals) * tangents[0]

    @jax.custom_jvp
    def whole(m: Array, y: Array) -> Array:
        return loss(m, y)

    @whole.defjvp
    def _(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
        return whole(*primals), first(*primals) * tangents[0]

    return whole


def logistic_bend(m: Array, y: Array) -> Array:
    """The second derivative of the logistic loss."""
    p = jax.nn.sigmoid(m)
    return p * (1 - p)


logistic = with_slope(
    lambda m, y: jnp.logaddexp(m, 0.0) - y * m,
    lambda m, y: jax.nn.sigmoid(m) - y,
    logistic_bend,
)


@cache
def pseudo_huber(delta: float) -> Callable:
    """Square near zero, straight beyond delta."""

    def root(m: Array, y: Array) -> Array:
        return jnp.sqrt(1 + ((m - y) / delta) ** 2)

    return with_slope(
        lambda m, y: delta**2 * (root(m, y) - 1),
        lambda m, y: (m - y) / root(m, y),
        lambda m, y: 1 / root(m, y) ** 3,
    )


def squared(m: Array, y: Array) -> Array:
    """Half the squared error."""
    return 0.5 * (m - y) ** 2


def squared_log(m: Array, y: Array) -> Array:
    """Half the squared error of log(1 + x)."""
    return 0.5 * (jnp.log1p(jnp.maximum(m, -1 + EPS)) - jnp.log1p(y)) ** 2


def poisson(m: Array, y: Array) -> Array:
    """Of counts, with the logarithm of the rate as margin."""
    return jnp.exp(m) - y * m


def gamma(m: Array, y: Array) -> Array:
    """Of positive numbers, with the logarithm of the mean as margin."""
    return m + y * jnp.exp(-m)


def tweedie(power: float, m: Array, y: Array) -> Array:
    """Between Poisson and gamma, with the logarithm of the mean as margin."""
    low, high = 1 - power, 2 - power
    return jnp.exp(high * m) / high - (y * jnp.exp(low * m) / low if low else y * m)


def absolute(m: Array, y: Array) -> Array:
    """Absolute error."""
    return jnp.abs(m - y)


def pinball(quantiles: tuple[float, ...], m: Array, y: Array) -> Array:
    """Of each quantile at its margin, added up."""
    d, q = m - y, jnp.asarray(quantiles, m.dtype)
    return jnp.sum(jnp.where(d >= 0, (1 - q) * d, -q * d))


def softmax_loss(m: Array, y: Array) -> Array:
    """Cross-entropy of a class among the margins, in nats."""
    chosen = jnp.arange(len(m)) == y.astype(jnp.int32)
    return jax.nn.logsumexp(m) - jnp.sum(jnp.where(chosen, m, 0))


def logit(p: Array) -> Array:
    """The margin of a probability, kept off zero and one."""
    p = jnp.clip(p, EPS, 1 - EPS).astype(jnp.float32)
    return -jnp.log(1 / p - 1)


def class_index(m: Array) -> Array:
    """The class of the largest margin."""
    return jnp.argmax(m, axis=-1).astype(jnp.float32)
