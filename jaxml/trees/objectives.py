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
from functools import partial
from itertools import pairwise
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxml.export import export
from jaxml.trees import row_losses
from jaxml.trees.fixed_point import exact_sum
from jaxml.trees.quantiles import quantile
from jaxml.trees.ranking import Ranking
from jaxml.typing import Array, Float

Margin = Float[Array, "..."]
Start = Literal["mean", "quantile", "class", "newton", "zero"]
EPS = row_losses.EPS


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
            the labels, the class frequencies, one Newton step from zero, or zero.
        quantiles: one per output; leaves become this quantile of their residuals.
        labels: least and greatest label; `open` says which of the two is forbidden.
        settings: the group of parameters in XGBoost's files, and its entries.
        ranking: what queries are ranked for; `derivatives` then are `ranking.lambdas`.
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
    ranking: Ranking | None = None

    @property
    def num_outputs(self) -> int:
        """Margins of a row."""
        return self.outputs or 1

    def derivatives(
        self, margin: Float[Array, "rows outputs"], label: Float[Array, "rows *targets"]
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
        self, margin: Float[Array, "rows outputs"], label: Float[Array, "rows *targets"]
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
    "rank:pairwise",
    "rank:ndcg",
    "rank:map",
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
    ranking: Ranking | None = None,
) -> Objective:
    """One of XGBoost's objectives, by its name there.

    Args:
        name: one of `NAMES`.
        num_class: classes of a softmax.
        quantile_alpha: the quantiles of "reg:quantileerror", each in (0, 1).
        tweedie_variance_power: in [1, 2).
        huber_slope: where the pseudo-Huber loss turns from square to straight.
        max_delta_step: of "count:poisson", whose Hessian it multiplies by its exponential.
        ranking: of the "rank:" objectives; its metric is that of the name.

    Raises:
        ValueError: if the name is unknown or a parameter is out of its range.

    >>> g, h = objective("binary:logistic").derivatives(jnp.zeros((1, 1)), jnp.ones(1))
    >>> float(g[0, 0]), float(h[0, 0])
    (-0.5, 0.25)
    """
    if name in ("rank:pairwise", "rank:ndcg", "rank:map"):
        return _ranker(name, (ranking or Ranking())._replace(metric=name[5:]))
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


@export("trees.objectives.non_crossing", since="0.1")
def non_crossing(quantile_alpha: tuple[float, ...]) -> Objective:
    """Quantile losses whose predictions never cross: they are put in order.

    In order they are never farther from the true quantiles, in any norm, than they were.

    Args:
        quantile_alpha: ascending, each in (0, 1).

    Raises:
        ValueError: unless they ascend.

    >>> non_crossing((0.1, 0.9)).predict(jnp.array([[2.0, 1.0]])).tolist()
    [[1.0, 2.0]]

    Reference: Chernozhukov, Fernandez-Val and Galichon, "Quantile and Probability Curves
    without Crossing", Econometrica 2010, https://arxiv.org/abs/0704.3649 (proposition 4).
    """
    if any(b <= a for a, b in pairwise(quantile_alpha)):
        raise ValueError(f"quantile_alpha must ascend, got {quantile_alpha}")
    found = objective("reg:quantileerror", quantile_alpha=quantile_alpha)
    return replace(found, name="custom", predict=_ascending, settings=("", ()))


def _ascending(margin: Margin) -> Margin:
    return jnp.sort(margin, axis=-1)


def _ranker(name: str, ranking: Ranking) -> Objective:
    flag = lambda on: "1" if on else "0"  # noqa: E731
    pairs = 2**32 - 1 if ranking.num_pair is None else ranking.num_pair
    entries = (
        ("lambdarank_bias_norm", "1"),
        ("lambdarank_normalization", flag(ranking.normalize)),
        ("lambdarank_num_pair_per_sample", str(pairs)),
        ("lambdarank_pair_method", ranking.pair_method),
        ("lambdarank_score_normalization", flag(ranking.score_normalize)),
        ("lambdarank_unbiased", "0"),
        ("ndcg_exp_gain", flag(ranking.exp_gain)),
    )
    return Objective(
        row_losses.squared,  # never asked
        name,
        start="zero",
        labels=(0.0, 1.0 if name == "rank:map" else 31.0),
        open=(False, False),
        settings=("lambdarank_param", entries),
        ranking=ranking,
    )


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
        "loss": row_losses.logistic,
        "predict": jax.nn.sigmoid,
        "to_margin": row_losses.logit,
        "hessian_floor": 1e-16,
        "start": "mean",
        "labels": (0.0, 1.0),
        "open": (False, False),
    }
    inf = float("inf")
    if name == "reg:squarederror":
        return Objective(row_losses.squared, name, start="mean")
    if name == "reg:squaredlogerror":
        return Objective(
            row_losses.squared_log, name, hessian_floor=1e-6, labels=(-1.0, inf)
        )
    if name in ("reg:logistic", "binary:logistic"):
        return Objective(name=name, **logistic)
    if name == "binary:logitraw":
        raw = {"predict": _identity, "to_margin": _identity}
        return Objective(name=name, **{**logistic, **raw})
    if name == "reg:pseudohubererror":
        if not huber_slope:
            raise ValueError("huber_slope must not be 0")
        return Objective(row_losses.pseudo_huber(huber_slope), name)
    if name == "reg:absoluteerror":
        return Objective(
            row_losses.absolute,
            name,
            hessian_floor=1.0,
            start="quantile",
            quantiles=(0.5,),
        )
    if name == "reg:quantileerror":
        alphas = tuple(map(float, np.ravel(quantile_alpha)))
        if not alphas or not all(0 < a < 1 for a in alphas):
            raise ValueError(f"quantile_alpha must lie in (0, 1), got {quantile_alpha}")
        return Objective(
            partial(row_losses.pinball, alphas),
            name,
            outputs=len(alphas),
            hessian_floor=1.0,
            start="quantile",
            quantiles=alphas,
        )
    if name == "reg:gamma":
        return Objective(row_losses.gamma, name, labels=(0.0, inf), **positive)
    if name == "reg:tweedie":
        if not 1 <= tweedie_variance_power < 2:
            raise ValueError(
                f"tweedie_variance_power must be in [1, 2), got {tweedie_variance_power}"
            )
        loss = partial(row_losses.tweedie, tweedie_variance_power)
        closed = {"labels": (0.0, inf), "open": (False, True)}
        return Objective(loss, name, **closed, **positive)
    if name == "count:poisson":
        closed = {"labels": (0.0, inf), "open": (False, True)}
        scale = float(np.exp(max_delta_step))
        return Objective(
            row_losses.poisson, name, hessian_scale=scale, **closed, **positive
        )
    if name in ("multi:softmax", "multi:softprob"):
        if num_class < 2:
            raise ValueError(
                f"{name} must have num_class of 2 or more, got {num_class}"
            )
        return Objective(
            row_losses.softmax_loss,
            name,
            outputs=num_class,
            predict=row_losses.class_index
            if name == "multi:softmax"
            else jax.nn.softmax,
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
    label: Float[Array, "rows *targets"],
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
    weight = jnp.ones(len(label), jnp.float32) if weights is None else weights
    if objective.start == "quantile":
        alphas = jnp.asarray(objective.quantiles, jnp.float32)
        start = jnp.stack([quantile(label, a, weights) for a in alphas])
        return start if axis_name is None else lax.pmean(start, axis_name)
    if objective.start == "zero":
        return jnp.zeros(outputs, jnp.float32)
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
