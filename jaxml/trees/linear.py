"""Boosting of a linear model by coordinate descent: XGBoost's booster "gblinear".

Every round takes g and h at the current margins, moves the bias by a Newton step, and then
each weight in turn, along the quadratic model that the steps before have left:

    w_j <- w_j - eta soft(sum g x_j + lambda w_j, alpha) / (sum h x_j^2 + lambda)

The trap: penalties are per unit of row weight, so they are multiplied by its sum; missing
features count as zero; and XGBoost starts every output from the first one's base score.

Reference: Friedman, Hastie, Tibshirani, "Regularization Paths for Generalized Linear Models
via Coordinate Descent", Journal of Statistical Software 2010,
https://doi.org/10.18637/jss.v033.i01.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxml.export import export
from jaxml.trees.objectives import Objective
from jaxml.typing import Array, Float


@export("trees.linear.descend", since="0.1")
def descend(
    x: Float[Array, "rows columns"],
    label: Float[Array, " rows"],
    weights: Float[Array, " rows"] | None,
    base: Float[Array, "rows outputs"],
    objective: Objective,
    num_rounds: int,
    eta: Float[Array, ""] | float = 0.5,
    reg_lambda: Float[Array, ""] | float = 0.0,
    reg_alpha: Float[Array, ""] | float = 0.0,
) -> Float[Array, "weights outputs"]:
    """Weights of the columns, and the bias in the last row.

    Args:
        x: features; NaN counts as zero.
        label: of every row.
        weights: of every row, or None for one each.
        base: margins without the linear model.
        objective: what is lowered.
        num_rounds: times that every weight is moved.
        eta: share of each step that is taken.
        reg_lambda: L2 penalty of the weights, not of the bias.
        reg_alpha: L1 penalty of the weights.

    >>> from jaxml.trees.objectives import objective
    >>> x, y = jnp.array([[0.0], [1.0], [2.0]]), jnp.array([1.0, 3.0, 5.0])
    >>> goal = objective("reg:squarederror")
    >>> w = descend(x, y, None, jnp.zeros((3, 1)), goal, 200, eta=1.0)
    >>> w[:, 0].round(3).tolist()
    [2.0, 1.0]
    """
    x = jnp.where(jnp.isnan(x), 0, x)
    weight = jnp.ones_like(label) if weights is None else weights
    mass = jnp.sum(weight)
    columns = x.T

    def one_round(model: Array, _: None) -> tuple[Array, None]:
        linear = jnp.matmul(x, model[:-1], precision="highest")
        margin = base + linear + model[-1:]
        g, h = objective.derivatives(margin, label)
        g, h = g * weight[:, None], h * weight[:, None]
        step = -eta * _ratio(_sum(g), _sum(h))
        bias, g = model[-1] + step, g + h * step[None]

        def move(g: Array, one: tuple[Array, Array]) -> tuple[Array, Array]:
            w, value = one
            G = _sum(g * value[:, None])
            H = _sum(h * (value * value)[:, None])
            dw = eta * coordinate_step(G, H, w, reg_lambda * mass, reg_alpha * mass)
            return g + h * value[:, None] * dw[None], w + dw

        _, moved = lax.scan(move, g, (model[:-1], columns))
        return jnp.concatenate((moved, bias[None])), None

    start = jnp.zeros((x.shape[1] + 1, base.shape[1]), jnp.float32)
    return lax.scan(one_round, start, length=num_rounds)[0]


def one_start(start: Float[Array, " outputs"]) -> Float[Array, " outputs"]:
    """The margins that XGBoost starts a linear model from: the first one's, for all."""
    return jnp.broadcast_to(start[:1], start.shape)


def coordinate_step(
    G: Array,
    H: Array,
    w: Array,
    reg_lambda: Array | float,
    reg_alpha: Array | float,
) -> Float[Array, " outputs"]:
    """From w to the least of G d + H d^2 / 2 + lambda (w+d)^2 / 2 + alpha |w+d|."""
    G, L = G + reg_lambda * w, H + reg_lambda
    L = jnp.where(H < 1e-5, 1, L)
    above = jnp.maximum(-(G + reg_alpha) / L, -w)  # as far as zero, and no further
    below = jnp.minimum(-(G - reg_alpha) / L, -w)
    return jnp.where(H < 1e-5, 0, jnp.where(w - G / L >= 0, above, below))


def _sum(x: Float[Array, "rows outputs"]) -> Float[Array, " outputs"]:
    with jax.enable_x64(True):
        return jnp.sum(x.astype(jnp.float64), axis=0).astype(jnp.float32)


def _ratio(G: Array, H: Array) -> Array:
    return jnp.where(H > 0, G / jnp.where(H > 0, H, 1), 0)
