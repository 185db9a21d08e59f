"""Bagging: the mean of learners, each fitted to its own bootstrap sample.

With B learners of variance sigma^2 and pairwise correlation rho the mean has variance

    rho sigma^2 + (1 - rho) sigma^2 / B,

so it pays for learners that vary much. Samples may be of columns as well.

The trap: samples are weights here, so a learner must heed them; draws without replacement
("pasting") have weights of zero and one.

Reference: Breiman, "Bagging Predictors", Machine Learning 1996,
https://doi.org/10.1023/A:1018054314350; samples of columns as in Ho, "The Random Subspace
Method for Constructing Decision Forests", PAMI 1998, https://doi.org/10.1109/34.709601.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxml.export import export
from jaxml.trees.learner import Learner, map_fits
from jaxml.trees.table import check_rows
from jaxml.typing import Array, Float, Int, PRNGKeyArray

Leaf = Any
"""An array; or what JAX puts in its place while it takes a pytree apart."""


@export("trees.bagging.Config", since="0.1")
@dataclass(frozen=True)
class Config:
    """How to bag.

    Attributes:
        num_learners: B.
        max_samples: share of the rows that each learner draws.
        max_features: share of the columns that each learner draws, without replacement.
        bootstrap: whether rows are drawn with replacement.
        num_classes: of the labels, 0 for numbers.
        batch_size: learners that are fitted together; it changes time and memory only.
    """

    num_learners: int = 10
    max_samples: float = 1.0
    max_features: float = 1.0
    bootstrap: bool = True
    num_classes: int = 0
    batch_size: int = 1


@export("trees.bagging.Model", since="0.1")
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Model:
    """Learners with a leading axis, and the columns that each of them reads."""

    learners: Leaf
    columns: Leaf


@export("trees.bagging.fit", since="0.1")
def fit(
    x: Float[Array, "rows columns"],
    y: Array,
    learner: Learner,
    config: Config,
    key: PRNGKeyArray,
    weights: Float[Array, " rows"] | None = None,
) -> Model:
    """Fits B learners.

    Args:
        x: features, as the learner takes them.
        y: class indices, or numbers, [rows].
        learner: of class shares or of numbers.
        config: how to bag.
        key: learner i draws and learns from `fold_in(key, i)`.
        weights: of the rows; they multiply the sample's.

    Raises:
        ValueError: if shapes, labels, weights or parameters are not what they must be.

    Reference: Breiman, "Bagging Predictors", Machine Learning 1996,
    https://doi.org/10.1023/A:1018054314350.
    """
    x, y, weights = check_rows(x, y, weights, config.num_classes)
    if config.num_learners < 1 or config.batch_size < 1:
        raise ValueError(
            "num_learners and batch_size must be positive, got "
            f"{config.num_learners} and {config.batch_size}"
        )
    if not (0 < config.max_samples <= 1 and 0 < config.max_features <= 1):
        raise ValueError(
            "max_samples and max_features must be in (0, 1], got "
            f"{config.max_samples} and {config.max_features}"
        )
    return _fit(x, y, weights, key, learner, config)


@partial(jax.jit, static_argnames=("learner", "config"))
def _fit(
    x: Array,
    y: Array,
    weights: Array,
    key: PRNGKeyArray,
    learner: Learner,
    config: Config,
) -> Model:
    n, num_columns = x.shape
    width = max(round(config.max_features * num_columns), 1)
    shared = learner.prepare(x, y) if width == num_columns else None

    def one(i: Array) -> tuple[Any, Array]:
        row_key, column_key, fit_key = jax.random.split(jax.random.fold_in(key, i), 3)
        counts = sample(row_key, n, config.max_samples, replace=config.bootstrap)
        columns = jnp.arange(num_columns, dtype=jnp.int32)
        data = shared
        if width < num_columns:
            columns = jnp.sort(jax.random.permutation(column_key, columns)[:width])
            data = learner.prepare(jnp.take(x, columns, axis=1), y)
        model, _ = learner.fit(data, fit_key, weights * counts)
        return model, columns

    index = jnp.arange(config.num_learners, dtype=jnp.int32)
    return Model(*map_fits(one, index, config.batch_size))


@export("trees.bagging.sample", since="0.1")
def sample(
    key: PRNGKeyArray, rows: int, share: float = 1.0, *, replace: bool = True
) -> Float[Array, " rows"]:
    """How often each row is in a sample of a share of them.

    >>> float(sample(jax.random.key(0), 10, 0.5).sum())
    5.0
    """
    count = max(round(share * rows), 1)
    if not replace:
        rank = jnp.argsort(jnp.argsort(jax.random.uniform(key, (rows,))))
        return (rank < count).astype(jnp.float32)
    drawn = jax.random.randint(key, (count,), 0, rows)
    return jnp.zeros(rows, jnp.float32).at[drawn].add(1.0)


@export("trees.bagging.predict", since="0.1")
def predict(
    model: Model, learner: Learner, x: Float[Array, "rows columns"]
) -> Float[Array, "rows *classes"]:
    """Mean of the learners: class shares [rows, classes], or numbers [rows]."""
    return _predict(model, learner, jnp.asarray(x, jnp.float32))


@partial(jax.jit, static_argnames="learner")
def _predict(model: Model, learner: Learner, x: Array) -> Array:
    def one(part: tuple[Any, Int[Array, " width"]]) -> Array:
        fitted, columns = part
        return learner.predict(fitted, jnp.take(x, columns, axis=1))

    return jnp.mean(lax.map(one, (model.learners, model.columns)), axis=0)
