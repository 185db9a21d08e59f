"""What gradient boosting is told, and the losses that it knows.

The trap: "huber" is straight beyond a quantile of the residuals, which moves every round;
no fixed loss, hence its gradient is clipped in `gbdt` and not here.

Reference: Friedman, "Greedy Function Approximation: A Gradient Boosting Machine", Annals of
Statistics 2001, https://doi.org/10.1214/aos/1013203451 (section 4).
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxml.export import export
from jaxml.trees.cart_config import Config as TreeConfig
from jaxml.trees.objectives import Objective
from jaxml.trees.objectives import objective as named
from jaxml.typing import Array

Loss = Literal[
    "squared", "absolute", "huber", "quantile", "logistic", "exponential", "poisson"
]


@export("trees.gbdt.Config", since="0.1")
@dataclass(frozen=True)
class Config:
    """How to boost; defaults are scikit-learn's.

    Attributes:
        loss: "squared", "absolute", "huber", "quantile" or "poisson" for numbers;
            "logistic" (the deviance, of two classes or more) or "exponential" (two) for
            classes.
        num_classes: of the labels.
        num_rounds: trees, times the classes where they are more than two.
        learning_rate: nu.
        subsample: share of the rows that each round sees, drawn without replacement.
        alpha: the quantile of "quantile"; for "huber" the one of the absolute residuals
            above which the loss is straight.
        tree: how each tree grows.
        patience: rounds without a better held-out loss after which to stop; 0 for never.
        tolerance: by how much a held-out loss must be lower to be better.
    """

    loss: Loss = "squared"
    num_classes: int = 0
    num_rounds: int = 100
    learning_rate: float = 0.1
    subsample: float = 1.0
    alpha: float = 0.9
    tree: TreeConfig = field(
        default_factory=lambda: TreeConfig("squared_error", max_depth=3)
    )
    patience: int = 0
    tolerance: float = 0.0

    def objective(self) -> Objective:
        """The loss by autodiff, where boosting starts, and what margins mean."""
        if self.loss == "logistic" and self.num_classes > 2:
            softmax = named("multi:softprob", num_class=self.num_classes)
            return replace(softmax, hessian_scale=1.0)
        if self.loss == "exponential":
            return Objective(
                _exponential,
                "exponential",
                predict=_twice_sigmoid,
                to_margin=_half_logit,
                start="mean",
                labels=(0.0, 1.0),
                open=(False, False),
            )
        if self.loss == "huber":
            half = {"start": "quantile", "quantiles": (0.5,), "hessian_floor": 1.0}
            return Objective(_absolute, **half)  # type: ignore[arg-type]
        if self.loss == "quantile":
            pinball = named("reg:quantileerror", quantile_alpha=(self.alpha,))
            return replace(pinball, outputs=None)
        if self.loss == "poisson":
            return replace(named("count:poisson"), hessian_scale=1.0)
        names = {
            "squared": "reg:squarederror",
            "absolute": "reg:absoluteerror",
            "logistic": "binary:logistic",
        }
        return named(names[self.loss])


def _exponential(m: Array, y: Array) -> Array:
    return jnp.exp((1 - 2 * y) * m)


def _twice_sigmoid(m: Array) -> Array:
    return jax.nn.sigmoid(2 * m)


def _half_logit(p: Array) -> Array:
    return 0.5 * (jnp.log(p) - jnp.log1p(-p))


def _absolute(m: Array, y: Array) -> Array:
    return jnp.abs(m - y)


def check(config: Config) -> None:
    """Raises ValueError where the configuration cannot be."""
    losses = Loss.__args__  # type: ignore[attr-defined]
    if config.loss not in losses:
        raise ValueError(
            f"loss must be one of {', '.join(losses)}, got {config.loss!r}"
        )
    classifies = config.loss in ("logistic", "exponential")
    if classifies != bool(config.num_classes):
        raise ValueError(
            f"num_classes must be given for classes alone, got {config.num_classes} with "
            f"the loss {config.loss!r}"
        )
    if config.loss == "exponential" and config.num_classes != 2:
        raise ValueError(f"'exponential' needs two classes, got {config.num_classes}")
    if classifies and config.num_classes < 2:
        raise ValueError(f"num_classes must be 2 or more, got {config.num_classes}")
    if config.tree.criterion != "squared_error":
        raise ValueError(
            f"the trees' criterion must be 'squared_error', got {config.tree.criterion!r}"
        )
    if config.num_rounds < 1 or config.learning_rate <= 0:
        raise ValueError(
            "num_rounds and learning_rate must be positive, got "
            f"{config.num_rounds} and {config.learning_rate}"
        )
    if not (0 < config.subsample <= 1 and 0 < config.alpha < 1):
        raise ValueError(
            "subsample must be in (0, 1] and alpha in (0, 1), got "
            f"{config.subsample} and {config.alpha}"
        )


def check_labels(config: Config, y: Any) -> None:
    """Raises ValueError where labels do not suit the loss; values under `jit` pass."""
    if isinstance(y, jax.core.Tracer):
        return
    told = np.asarray(y)
    if config.loss == "poisson" and ((told < 0).any() or not told.any()):
        raise ValueError("y must not be negative, nor all zero, for 'poisson'")
    if config.loss == "exponential" and len(np.unique(told)) < 2:
        raise ValueError("y must have both classes for 'exponential', got one")
