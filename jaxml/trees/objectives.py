"""Losses for boosting: a function of one row's margin and label, the rest by autodiff.

    g = dL/dm,   h = max(scale d2L/dm2, floor)

for every output of a row, times its weight. XGBoost's objectives carry its constants: the
softmax doubles its Hessian, Poisson multiplies it by e^0.7, losses without curvature have
Hessian one and set the values of their leaves to a quantile of the residuals afterwards.
Any other loss is `Objective(loss)`.

The trap: XGBoost estimates where boosting starts from the labels (the mean through the
link, or a quantile), stores it as a prediction and not as a margin, and rounds it to
float32 in between; exact trees need all of that.

Reference: Chen and Guestrin, "XGBoost: A Scalable Tree Boosting System", KDD 2016,
https://arxiv.org/abs/1603.02754 (equation 2); Friedman, "Greedy Function Approximation: A
Gradient Boosting Machine", Annals of Statistics 2001,
https://doi.org/10.1214/aos/1013203451 (leaves of absolute error, section 4.3).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxml.export import export
from jaxml.trees.fixed_point import exact_sum
from jaxml.trees.quantiles import quantile
from jaxml.typing import Array, Float

Margin = Float[Array, "..."]
Start = Literal["mean", "quantile", "class", "newton"]
EPS = 1e-6


def _identity(x: Array) -> Array:
    return x


@export("trees.objectives.Objective", since="0.1")
@dataclass(frozen=True)
class Objective:
    """A loss and how boosting treats it.

    Attributes:
        loss: (margin, label) -> scalar; the margin is a scalar, or [outputs] where
            `outputs` is not None.
        name: as XGBoost's files have it; other names cannot be saved in its format.
        outputs: margins of a row, or None for one.
        predict: margins -> predictions; over the last axis where there are several.
        to_margin: prediction -> margin, its inverse.
        hessian_scale: factor of the second derivative.
        hessian_floor: the least Hessian of a row of weight one.
        start: what boosting starts from: the mean label through `to_margin`, a quantile of
            the labels, the class frequencies, or one Newton step from zero.
        quantiles: one per output; leaves become this quantile of their residuals.
        labels: least and greatest label; `open` says which of the two is forbidden.
        settings: the group of parameters in XGBoost's files, and its entries.
    """

    loss: Callable[[Margin, Float[Array, ""]], Float[Array, ""]]
    name: str = "custom"
    outputs: int | None = None
    predict: Callable[[Margin], Float[Array, "..."]] = _identity
    to_margin: Callable[[Margin], Float[Array, "..."]] = _identity
    hessian_scale: float = 1.0
    hessian_floor: float = 0.0
    start: Start = "newton"
    quantiles: tuple[float, ...] = ()
    labels: tuple[float, float] = (-float("inf"), float("inf"))
    open: tuple[bool, bool] = (True, True)
    settings: tuple[str, tuple[tuple[str, str], ...]] = ("", ())

    @property
    def num_outputs(self) -> int:
        """Margins of a row."""
        return self.outputs or 1

    def derivatives(
        self, margin: Float[Array, "rows outputs"], label: Float[Array, " rows"]
    ) -> tuple[Float[Array, "rows outputs"], Float[Array, "rows outputs"]]:
        """Gradient and diagonal Hessian of every row, before its weight."""
        if self.outputs is None:
            one = jax.grad(self.loss)
            two = jax.grad(one)
            g = jax.vmap(one)(margin[:, 0], label)[:, None]
            h = jax.vmap(two)(margin[:, 0], label)[:, None]
        else:
            g, h = jax.vmap(partial(_diagonal, self.loss))(margin, label)
        return g, jnp.maximum(h * self.hessian_scale, self.hessian_floor)

    def hessian(
        self, margin: Float[Array, "rows outputs"], label: Float[Array, " rows"]
    ) -> Float[Array, "rows outputs outputs"]:
        """The full Hessian of every row, before scale and floor."""
        if self.outputs is None:
            two = jax.grad(jax.grad(self.loss))
            return jax.vmap(two)(margin[:, 0], label)[:, None, None]
        return jax.vmap(jax.hessian(self.loss))(margin, label)


def _diagonal(loss: Callable, margin: Array, label: Array) -> tuple[Array, Array]:
    """Gradient, and the diagonal of the Hessian by one product with each basis vector."""
    gradient = jax.grad(loss)

    def column(basis: Array) -> tuple[Array, Array]:
        value, tangent = jax.jvp(lambda m: gradient(m, label), (margin,), (basis,))
        return value, jnp.vdot(tangent, basis)

    basis = jnp.eye(len(margin), dtype=margin.dtype)
    g, h = jax.vmap(column, out_axes=(None, 0))(basis)
    return g, h


def _with_slope(loss: Callable, slope: Callable, bend: Callable) -> Callable:
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


def _logistic_bend(m: Array, y: Array) -> Array:
    p = jax.nn.sigmoid(m)
    return p * (1 - p)


_logistic = _with_slope(
    lambda m, y: jnp.logaddexp(m, 0.0) - y * m,
    lambda m, y: jax.nn.sigmoid(m) - y,
    _logistic_bend,
)


@cache
def _pseudo_huber(delta: float) -> Callable:
    def root(m: Array, y: Array) -> Array:
        return jnp.sqrt(1 + ((m - y) / delta) ** 2)

    return _with_slope(
        lambda m, y: delta**2 * (root(m, y) - 1),
        lambda m, y: (m - y) / root(m, y),
        lambda m, y: 1 / root(m, y) ** 3,
    )


def _squared(m: Array, y: Array) -> Array:
    return 0.5 * (m - y) ** 2


def _squared_log(m: Array, y: Array) -> Array:
    return 0.5 * (jnp.log1p(jnp.maximum(m, -1 + EPS)) - jnp.log1p(y)) ** 2


def _poisson(m: Array, y: Array) -> Array:
    return jnp.exp(m) - y * m


def _gamma(m: Array, y: Array) -> Array:
    return m + y * jnp.exp(-m)


def _tweedie(power: float, m: Array, y: Array) -> Array:
    low, high = 1 - power, 2 - power
    return jnp.exp(high * m) / high - (y * jnp.exp(low * m) / low if low else y * m)


def _absolute(m: Array, y: Array) -> Array:
    return jnp.abs(m - y)


def _pinball(quantiles: tuple[float, ...], m: Array, y: Array) -> Array:
    d, q = m - y, jnp.asarray(quantiles, m.dtype)
    return jnp.sum(jnp.where(d >= 0, (1 - q) * d, -q * d))


def _softmax_loss(m: Array, y: Array) -> Array:
    chosen = jnp.arange(len(m)) == y.astype(jnp.int32)
    return jax.nn.logsumexp(m) - jnp.sum(jnp.where(chosen, m, 0))


def _logit(p: Array) -> Array:
    p = jnp.clip(p, EPS, 1 - EPS).astype(jnp.float32)
    return -jnp.log(1 / p - 1)


def _class_index(m: Array) -> Array:
    return jnp.argmax(m, axis=-1).astype(jnp.float32)


NAMES = (
    "reg:squarederror",
    "reg:squaredlogerror",
    "reg:logistic",
    "reg:pseudohubererror",
    "reg:absoluteerror",
    "reg:quantileerror",
    "reg:gamma",
    "reg:tweedie",
    "count:poisson",
    "binary:logistic",
    "binary:logitraw",
    "multi:softmax",
    "multi:softprob",
)
"""XGBoost's objectives that `objective` knows."""


@export("trees.objectives.objective", since="0.1")
def objective(
    name: str,
    *,
    num_class: int = 0,
    quantile_alpha: tuple[float, ...] = (0.5,),
    tweedie_variance_power: float = 1.5,
    huber_slope: float = 1.0,
    max_delta_step: float = 0.7,
) -> Objective:
    """One of XGBoost's objectives, by its name there.

    Args:
        name: one of `NAMES`.
        num_class: classes of a softmax.
        quantile_alpha: the quantiles of "reg:quantileerror", each in (0, 1).
        tweedie_variance_power: in [1, 2).
        huber_slope: where the pseudo-Huber loss turns from square to straight.
        max_delta_step: of "count:poisson", whose Hessian it multiplies by its exponential.

    Raises:
        ValueError: if the name is unknown or a parameter is out of its range.

    >>> g, h = objective("binary:logistic").derivatives(jnp.zeros((1, 1)), jnp.ones(1))
    >>> float(g[0, 0]), float(h[0, 0])
    (-0.5, 0.25)
    """
    found = _objective(
        name,
        num_class,
        quantile_alpha,
        tweedie_variance_power,
        huber_slope,
        max_delta_step,
    )
    alphas = f"[{','.join(f'{a:g}' for a in np.ravel(quantile_alpha))}]"
    power, slope = f"{tweedie_variance_power:.9g}", f"{huber_slope:.9g}"
    softmax = "softmax_multiclass_param", "num_class", str(num_class)
    bound = f"{max_delta_step:.9g}"
    groups = {
        "reg:quantileerror": ("quantile_loss_param", "quantile_alpha", alphas),
        "reg:tweedie": ("tweedie_regression_param", "tweedie_variance_power", power),
        "reg:pseudohubererror": ("pseudo_huber_param", "huber_slope", slope),
        "count:poisson": ("poisson_regression_param", "max_delta_step", bound),
        "multi:softmax": softmax,
        "multi:softprob": softmax,
        "reg:absoluteerror": ("", "", ""),
        "reg:squaredlogerror": ("", "", ""),
    }
    group, key, value = groups.get(name, ("reg_loss_param", "scale_pos_weight", "1"))
    return replace(found, settings=(group, ((key, value),) if group else ()))


def _objective(
    name: str,
    num_class: int,
    quantile_alpha: tuple[float, ...],
    tweedie_variance_power: float,
    huber_slope: float,
    max_delta_step: float,
) -> Objective:
    positive = {"predict": jnp.exp, "to_margin": jnp.log, "start": "mean"}
    logistic = {
        "loss": _logistic,
        "predict": jax.nn.sigmoid,
        "to_margin": _logit,
        "hessian_floor": 1e-16,
        "start": "mean",
        "labels": (0.0, 1.0),
        "open": (False, False),
    }
    inf = float("inf")
    if name == "reg:squarederror":
        return Objective(_squared, name, start="mean")
    if name == "reg:squaredlogerror":
        return Objective(_squared_log, name, hessian_floor=1e-6, labels=(-1.0, inf))
    if name in ("reg:logistic", "binary:logistic"):
        return Objective(name=name, **logistic)
    if name == "binary:logitraw":
        raw = {"predict": _identity, "to_margin": _identity}
        return Objective(name=name, **{**logistic, **raw})
    if name == "reg:pseudohubererror":
        if not huber_slope:
            raise ValueError("huber_slope must not be 0")
        return Objective(_pseudo_huber(huber_slope), name)
    if name == "reg:absoluteerror":
        return Objective(
            _absolute, name, hessian_floor=1.0, start="quantile", quantiles=(0.5,)
        )
    if name == "reg:quantileerror":
        alphas = tuple(map(float, np.ravel(quantile_alpha)))
        if not alphas or not all(0 < a < 1 for a in alphas):
            raise ValueError(f"quantile_alpha must lie in (0, 1), got {quantile_alpha}")
        return Objective(
            partial(_pinball, alphas),
            name,
            outputs=len(alphas),
            hessian_floor=1.0,
            start="quantile",
            quantiles=alphas,
        )
    if name == "reg:gamma":
        return Objective(_gamma, name, labels=(0.0, inf), **positive)
    if name == "reg:tweedie":
        if not 1 <= tweedie_variance_power < 2:
            raise ValueError(
                f"tweedie_variance_power must be in [1, 2), got {tweedie_variance_power}"
            )
        loss = partial(_tweedie, tweedie_variance_power)
        closed = {"labels": (0.0, inf), "open": (False, True)}
        return Objective(loss, name, **closed, **positive)
    if name == "count:poisson":
        closed = {"labels": (0.0, inf), "open": (False, True)}
        scale = float(np.exp(max_delta_step))
        return Objective(_poisson, name, hessian_scale=scale, **closed, **positive)
    if name in ("multi:softmax", "multi:softprob"):
        if num_class < 2:
            raise ValueError(
                f"{name} must have num_class of 2 or more, got {num_class}"
            )
        return Objective(
            _softmax_loss,
            name,
            outputs=num_class,
            predict=_class_index if name == "multi:softmax" else jax.nn.softmax,
            hessian_scale=2.0,
            hessian_floor=1e-16,
            start="class",
            labels=(0.0, num_class - 1.0),
            open=(False, False),
        )
    raise ValueError(f"objective must be one of {', '.join(NAMES)}, got {name!r}")


@export("trees.objectives.initial_prediction", since="0.1")
def initial_prediction(
    objective: Objective,
    label: Float[Array, " rows"],
    weights: Float[Array, " rows"] | None = None,
    axis_name: str | None = None,
) -> Float[Array, " outputs"]:
    """What boosting starts from, as a prediction; for classes and quantiles, as margins.

    Args:
        objective: its `start` says how.
        label: of every row.
        weights: of every row, or None for one each.
        axis_name: mesh axis of the rows; quantiles are averaged over its devices.
    """
    outputs = objective.num_outputs
    weight = jnp.ones_like(label) if weights is None else weights
    if objective.start == "quantile":
        alphas = jnp.asarray(objective.quantiles, jnp.float32)
        start = jnp.stack([quantile(label, a, weights) for a in alphas])
        return start if axis_name is None else lax.pmean(start, axis_name)
    if objective.start == "mean":
        with jax.enable_x64(True):
            columns = jnp.stack((weight * label, weight))
            total, count = exact_sum(columns, axis_name)
            return jnp.broadcast_to(total / count, (outputs,)).astype(jnp.float32)
    if objective.start == "class":
        hot = label[:, None] == jnp.arange(outputs, dtype=label.dtype)[None, :]
        with jax.enable_x64(True):
            counts = exact_sum((weight[:, None] * hot).T, axis_name)
            share = (counts / jnp.sum(counts)).astype(jnp.float32)
        log = jnp.log(share + EPS)
        return log - jnp.mean(log)
    g, h = objective.derivatives(jnp.zeros((len(label), outputs)), label)
    with jax.enable_x64(True):
        columns = (weight[:, None] * jnp.concatenate((g, h), axis=1)).T
        sums = exact_sum(columns, axis_name)
        step = -sums[:outputs] / jnp.maximum(sums[outputs:], EPS)
        step = step.astype(jnp.float32)
    return objective.predict(step)
