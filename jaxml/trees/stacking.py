"""Stacking: a learner that learns from what other learners say of rows they did not see.

    z_i = (h_1(x_i; fitted without the fold of i), h_2(...), ...),    final learner: z -> y

The learners are then fitted again to all rows. `vote` is the simpler mean of learners.

The trap: were the learners asked about rows they were fitted to, the final one would trust
those that remember most. Each row's fold has weight zero while its features are made.

Reference: Wolpert, "Stacked Generalization", Neural Networks 1992,
https://doi.org/10.1016/S0893-6080(05)80023-1; with class shares as in Ting and Witten,
"Issues in Stacked Generalization", JAIR 1999, https://arxiv.org/abs/1105.5466.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxml.export import export
from jaxml.trees.learner import Learner
from jaxml.trees.table import check_rows
from jaxml.typing import Array, Float, Int, PRNGKeyArray

Leaf = Any
"""An array; or what JAX puts in its place while it takes a pytree apart."""


@export("trees.stacking.Config", since="0.1")
@dataclass(frozen=True)
class Config:
    """How to stack.

    Attributes:
        folds: parts of the rows, each held out once.
        num_classes: of the labels, 0 for numbers; folds are then stratified.
        passthrough: whether the final learner sees the features too.
    """

    folds: int = 5
    num_classes: int = 0
    passthrough: bool = False


@export("trees.stacking.Model", since="0.1")
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Model:
    """Learners fitted to all rows, and the final one."""

    learners: Leaf
    final: Leaf


Learners = tuple[Learner, ...]


@export("trees.stacking.fit", since="0.1")
def fit(
    x: Float[Array, "rows columns"],
    y: Array,
    learners: Learners,
    final: Learner,
    config: Config,
    key: PRNGKeyArray,
    weights: Float[Array, " rows"] | None = None,
    *,
    fold: Int[Array, " rows"] | None = None,
) -> Model:
    """Fits learners and the final one.

    Args:
        x: features, as the learners take them.
        y: class indices, or numbers, [rows].
        learners: of class shares or of numbers.
        final: learns from what they say, [rows, features].
        config: how to stack.
        key: of the learners, and of the folds.
        weights: of the rows.
        fold: the fold of each row, in [0, folds); drawn if not given.

    Raises:
        ValueError: if shapes, labels, weights or parameters are not what they must be.

    Reference: Wolpert, "Stacked Generalization", Neural Networks 1992,
    https://doi.org/10.1016/S0893-6080(05)80023-1.
    """
    x, y, weights = check_rows(x, y, weights, config.num_classes)
    if not 2 <= config.folds <= len(x):
        raise ValueError(f"folds must be in [2, {len(x)}], got {config.folds}")
    if not learners:
        raise ValueError("learners must not be empty")
    fold_key, key = jax.random.split(key)
    if fold is None:
        fold = draw_folds(fold_key, y, config.folds, stratify=config.num_classes > 0)
    if np.shape(fold) != (len(x),):
        raise ValueError(f"fold must be [{len(x)}], got {np.shape(fold)}")
    return _fit(x, y, weights, jnp.asarray(fold), key, learners, final, config)


@partial(jax.jit, static_argnames=("learners", "final", "config"))
def _fit(
    x: Array,
    y: Array,
    weights: Array,
    fold: Array,
    key: PRNGKeyArray,
    learners: Learners,
    final: Learner,
    config: Config,
) -> Model:
    fitted, features = [], []
    for i, learner in enumerate(learners):
        own_key = jax.random.fold_in(key, i)
        data = learner.prepare(x, y)
        features.append(
            out_of_fold(learner, data, x, weights, fold, config.folds, own_key)
        )
        whole = jax.random.fold_in(own_key, config.folds)
        fitted.append(learner.fit(data, whole, weights)[0])
    told = level_one(features, x, config)
    last = jax.random.fold_in(key, len(learners))
    model, _ = final.fit(final.prepare(told, y), last, weights)
    return Model(tuple(fitted), model)


@export("trees.stacking.draw_folds", since="0.1")
def draw_folds(
    key: PRNGKeyArray, y: Array, folds: int, *, stratify: bool = False
) -> Int[Array, " rows"]:
    """Shuffled folds of equal size to within one row; each class spread evenly.

    >>> sorted(draw_folds(jax.random.key(0), jnp.zeros(5), 2).tolist())
    [0, 0, 0, 1, 1]
    """
    n = len(y)
    noise = jax.random.uniform(key, (n,))
    order = jnp.lexsort((noise, jnp.asarray(y))) if stratify else jnp.argsort(noise)
    place = jnp.arange(n, dtype=jnp.int32) % folds
    return jnp.zeros(n, jnp.int32).at[order].set(place)


@export("trees.stacking.out_of_fold", since="0.1")
def out_of_fold(
    learner: Learner,
    data: Any,
    x: Float[Array, "rows columns"],
    weights: Float[Array, " rows"],
    fold: Int[Array, " rows"],
    folds: int,
    key: PRNGKeyArray,
) -> Float[Array, "rows *classes"]:
    """What a learner says of every row when its fold was held out."""

    def one(i: Array) -> Array:
        inside = jnp.where(fold == i, 0, weights)
        model, _ = learner.fit(data, jax.random.fold_in(key, i), inside)
        return learner.predict(model, x)

    told = lax.map(one, jnp.arange(folds, dtype=jnp.int32))
    return told[fold, jnp.arange(len(x), dtype=jnp.int32)]


def level_one(told: list[Array], x: Array, config: Config) -> Float[Array, "rows _"]:
    """Features of the final learner; of two classes one share says all."""
    columns = []
    for one in told:
        part = one[:, None] if one.ndim == 1 else one
        columns.append(part[:, 1:] if config.num_classes == 2 else part)
    return jnp.concatenate([*columns, x] if config.passthrough else columns, axis=1)


@export("trees.stacking.predict", since="0.1")
def predict(
    model: Model,
    learners: Learners,
    final: Learner,
    config: Config,
    x: Float[Array, "rows columns"],
) -> Float[Array, "rows *classes"]:
    """What the final learner says: class shares [rows, classes], or numbers [rows]."""
    x = jnp.asarray(x, jnp.float32)
    return _predict(model, x, learners, final, config)


@partial(jax.jit, static_argnames=("learners", "final", "config"))
def _predict(
    model: Model, x: Array, learners: Learners, final: Learner, config: Config
) -> Array:
    pairs = zip(learners, model.learners, strict=True)
    told = [learner.predict(fitted, x) for learner, fitted in pairs]
    return final.predict(model.final, level_one(told, x, config))


@export("trees.stacking.vote", since="0.1")
def vote(
    told: list[Array] | tuple[Array, ...],
    weights: Float[Array, " voters"] | None = None,
    *,
    hard: bool = False,
) -> Float[Array, "rows *classes"]:
    """Weighted mean of predictions; with `hard`, of the classes that shares name.

    Args:
        told: predictions of each voter, class shares [rows, classes] or numbers [rows].
        weights: of the voters.
        hard: whether each voter has one vote, for the class of its largest share.

    >>> vote([jnp.array([[0.9, 0.1]]), jnp.array([[0.4, 0.6]])]).tolist()
    [[0.6500000357627869, 0.3500000238418579]]
    """
    votes = jnp.stack([jnp.asarray(one) for one in told])
    if hard:
        votes = jax.nn.one_hot(jnp.argmax(votes, axis=-1), votes.shape[-1])
    return jnp.average(votes, axis=0, weights=weights)
