"""What a boosted model says of rows: margins, predictions, probabilities, stages.

Reference: Chen and Guestrin, "XGBoost: A Scalable Tree Boosting System", KDD 2016,
https://arxiv.org/abs/1603.02754 (equation 1).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxml.export import export
from jaxml.trees.model import Model
from jaxml.trees.tree import predict_sum
from jaxml.typing import Array, Float


@export("trees.xgboost.predict", since="0.1")
def predict(
    model: Model,
    x: Float[Array, "rows columns"],
    *,
    output_margin: bool = False,
    iteration_range: tuple[int, int] | None = None,
    base_margin: Array | None = None,
) -> Array:
    """Predictions [rows], or [rows, outputs] where there are several.

    Args:
        model: a fitted or loaded model.
        x: features, as many as the model was fitted to; NaN is missing.
        output_margin: margins instead of what the objective makes of them.
        iteration_range: first round and the one after the last; all of them, or all up to
            the best held-out loss if early stopping was asked for.
        base_margin: where each row starts instead of the model's start.

    Raises:
        ValueError: if x has another number of columns than the model was fitted to.
    """
    margin = _margins(model, x, iteration_range, base_margin)
    told = margin if output_margin else model.objective.predict(margin)
    many = model.objective.outputs is not None and told.ndim == 2
    return told if many else told.reshape(len(x))


@export("trees.xgboost.predict_proba", since="0.1")
def predict_proba(
    model: Model, x: Float[Array, "rows columns"], **options: Any
) -> Float[Array, "rows classes"]:
    """Class probabilities of a logistic or softmax model; options as for `predict`.

    Raises:
        ValueError: if the objective is no classifier's.
    """
    name = model.objective.name
    if name.startswith("multi:"):
        return jax.nn.softmax(predict(model, x, output_margin=True, **options))
    if name not in ("binary:logistic", "binary:logitraw", "reg:logistic"):
        raise ValueError(f"the objective must be logistic or softmax, got {name}")
    p = jax.nn.sigmoid(predict(model, x, output_margin=True, **options))
    return jnp.stack((1 - p, p), axis=1)


@export("trees.xgboost.staged_predict", since="0.1")
def staged_predict(
    model: Model, x: Float[Array, "rows columns"], *, output_margin: bool = False
) -> Array:
    """Predictions after every round: [rounds, rows] or [rounds, rows, outputs].

    Raises:
        ValueError: if x has another number of columns than the model was fitted to.
    """
    _check_width(model, x)
    margins = _staged(model, jnp.asarray(x, jnp.float32))
    told = margins if output_margin else model.objective.predict(margins)
    many = model.objective.outputs is not None and told.ndim == 3
    return told if many else told.reshape(len(margins), len(x))


@jax.jit
def _staged(model: Model, x: Array) -> Float[Array, "rounds rows outputs"]:
    rounds = jax.tree.map(
        lambda leaf: leaf.reshape(
            model.num_rounds, model.trees_per_round, *leaf.shape[1:]
        ),
        (model.trees, model.group, model.weight),
    )

    def step(margin: Array, one: tuple) -> tuple[Array, Array]:
        zero = jnp.zeros_like(model.start)
        margin = margin + predict_sum(one[0], x, one[1], one[2], zero)
        return margin, margin

    start = jnp.broadcast_to(model.start[None, :], (len(x), len(model.start)))
    return jax.lax.scan(step, start, rounds)[1]


def _margins(
    model: Model,
    x: Array,
    iteration_range: tuple[int, int] | None = None,
    base_margin: Array | None = None,
) -> Float[Array, "rows outputs"]:
    _check_width(model, x)
    x = jnp.asarray(x, jnp.float32)
    start = model.start
    if base_margin is not None:
        base_margin = jnp.asarray(base_margin, jnp.float32).reshape(len(x), -1)
        start = jnp.zeros_like(start)
    if model.linear is not None:
        margin = _linear(model.linear, x, start)
    else:
        if iteration_range is not None:
            model = model[slice(*iteration_range)]
        elif model.best_iteration is not None:
            model = model.up_to_best()
        margin = _predict_sum(model.trees, x, model.group, model.weight, start)
    return margin if base_margin is None else margin + base_margin


_predict_sum = jax.jit(predict_sum)


@jax.jit
def _linear(weights: Array, x: Array, start: Array) -> Float[Array, "rows outputs"]:
    """Missing features count as zero."""
    x = jnp.where(jnp.isnan(x), 0, x)
    product = jnp.matmul(x, weights[:-1], precision="highest")
    return product + (weights[-1] + start)[None, :]


def _check_width(model: Model, x: Array) -> None:
    if np.ndim(x) != 2 or x.shape[1] != model.num_features:
        raise ValueError(
            f"x must be [rows, {model.num_features}], as many features as the model was "
            f"fitted to, got {np.shape(x)}"
        )
