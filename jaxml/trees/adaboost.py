"""AdaBoost for any number of classes (SAMME), and for numbers (AdaBoost.R2).

Every round fits a learner to weighted rows, and rows that it gets wrong gain weight:

    SAMME  err = sum w [h != y] / sum w,  alpha = nu (log((1 - err) / err) + log(K - 1)),
           w <- w exp(alpha [h != y]);    decision: the class of the largest sum of alpha
    R2     rows drawn by w;  L = loss of |h - y| / max,  mean = sum w L,
           beta = mean / (1 - mean),  w <- w beta^((1 - L) nu);  alpha = nu log(1 / beta);
           prediction: the median of the learners, weighted by alpha

Rounds stop at a perfect learner, and before one no better than chance. All of them are one
`lax.scan`; after the stop, alphas are zero.

The trap: without log(K - 1) a learner of several classes must be right half of the time,
where better than 1 / K is enough.

Reference: Zhu, Zou, Rosset and Hastie, "Multi-class AdaBoost", Statistics and Its Interface
2009, https://doi.org/10.4310/SII.2009.v2.n3.a8 (algorithm 2); Drucker, "Improving
Regressors using Boosting Techniques", ICML 1997,
https://dl.acm.org/doi/10.5555/645526.657132.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxml.export import export
from jaxml.trees.learner import Learner
from jaxml.trees.table import check_rows
from jaxml.typing import Array, Float, PRNGKeyArray

Leaf = Any
"""An array; or what JAX puts in its place while it takes a pytree apart."""


@export("trees.adaboost.Config", since="0.1")
@dataclass(frozen=True)
class Config:
    """How to boost.

    Attributes:
        num_classes: of the labels; 0 for numbers, and AdaBoost.R2.
        num_rounds: learners.
        learning_rate: nu.
        loss: of AdaBoost.R2: "linear", "square" or "exponential".
    """

    num_classes: int = 0
    num_rounds: int = 50
    learning_rate: float = 1.0
    loss: Literal["linear", "square", "exponential"] = "linear"


@export("trees.adaboost.Model", since="0.1")
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Model:
    """Learners and their weights.

    Attributes:
        learners: models with a leading axis, one per round.
        alpha: [rounds], zero from where boosting stopped.
        error: [rounds], the weighted error, or mean loss, of each learner; NaN after.
        num_classes: of the labels, 0 for numbers.
    """

    learners: Leaf
    alpha: Leaf
    error: Leaf
    num_classes: int = field(kw_only=True, metadata={"static": True})


@export("trees.adaboost.fit", since="0.1")
def fit(
    x: Float[Array, "rows columns"],
    y: Array,
    learner: Learner,
    config: Config,
    key: PRNGKeyArray,
    weights: Float[Array, " rows"] | None = None,
) -> Model:
    """Boosts a learner.

    Args:
        x: features, as the learner takes them.
        y: class indices, or numbers, [rows].
        learner: of class shares where there are classes, else of numbers.
        config: how to boost.
        key: of the learners, and of AdaBoost.R2's draws.
        weights: of the rows at the start.

    Raises:
        ValueError: if shapes, labels, weights or parameters are not what they must be, or
            the first learner is no better than chance.

    >>> from jaxml.trees import cart
    >>> x = np.linspace(0, 1, 32, dtype=np.float32)[:, None]
    >>> y = ((x[:, 0] > 0.3) & (x[:, 0] < 0.7)).astype(int)
    >>> stumps = cart.learner(cart.Config(max_depth=1, num_classes=2))
    >>> model = fit(x, y, stumps, Config(2, num_rounds=10), jax.random.key(0))
    >>> bool((predict(model, stumps, x) == y).all())
    True

    Reference: Zhu, Zou, Rosset and Hastie, "Multi-class AdaBoost", Statistics and Its
    Interface 2009, https://doi.org/10.4310/SII.2009.v2.n3.a8.
    """
    x, y, weights = check_rows(x, y, weights, config.num_classes)
    if config.num_rounds < 1 or config.learning_rate <= 0:
        raise ValueError(
            "num_rounds and learning_rate must be positive, got "
            f"{config.num_rounds} and {config.learning_rate}"
        )
    if config.loss not in ("linear", "square", "exponential"):
        raise ValueError(
            f"loss must be 'linear', 'square' or 'exponential', got {config.loss!r}"
        )
    model = _fit(x, y, learner, config, key, weights)
    known = not isinstance(model.alpha, jax.core.Tracer)
    if known and config.num_classes and not np.asarray(model.alpha).any():
        raise ValueError(
            "the first learner must be better than chance, got an error of "
            f"{float(model.error[0]):.4f}"
        )
    return model


def _fit(
    x: Array, y: Array, learner: Learner, config: Config, key: Any, weights: Array
) -> Model:
    data = learner.prepare(x, y)
    # The learner is a closure: it is compiled anew for every call, but for `_step`.
    arrays, rest = _part(data)
    return _boost(arrays, x, y, weights, key, _Static(learner, config, rest))


class _Static:
    """What is compiled, equal where learner, configuration and structure are."""

    def __init__(self, learner: Learner, config: Config, rest: Any) -> None:
        self.learner, self.config, self.rest = learner, config, rest
        self.identity = learner, config, rest

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Static) and self.identity == other.identity

    def __hash__(self) -> int:
        return hash(self.identity)


def _part(data: Any) -> tuple[list[Any], Any]:
    """Arrays of prepared data, and the rest, which is static."""
    leaves, structure = jax.tree.flatten(data)
    arrays = [leaf if hasattr(leaf, "dtype") else None for leaf in leaves]
    static = tuple(None if hasattr(leaf, "dtype") else leaf for leaf in leaves)
    return arrays, (structure, static)


def _whole(arrays: list[Any], rest: Any) -> Any:
    structure, static = rest
    leaves = [s if a is None else a for a, s in zip(arrays, static, strict=True)]
    return jax.tree.unflatten(structure, leaves)


@partial(jax.jit, static_argnames="static")
def _boost(
    arrays: list[Any],
    x: Array,
    y: Array,
    weights: Array,
    key: PRNGKeyArray,
    static: _Static,
) -> Model:
    learner, config = static.learner, static.config
    data = _whole(arrays, static.rest)
    classes = config.num_classes

    def classify(w: Array, key: PRNGKeyArray) -> tuple:
        model, told = learner.fit(data, key, w)
        wrong = jnp.argmax(told, axis=1) != y
        error = jnp.sum(jnp.where(wrong, w, 0)) / jnp.sum(w)
        fine = error < 1 - 1 / classes
        odds = jnp.log((1 - error) / jnp.maximum(error, 1e-30))
        alpha = config.learning_rate * (odds + jnp.log(classes - 1.0))
        alpha = jnp.where(error <= 0, 1.0, alpha)
        w = jnp.where(wrong & (w > 0), w * jnp.exp(alpha), w)
        return model, alpha, error, fine, w

    def regress(w: Array, key: PRNGKeyArray) -> tuple:
        draw_key, fit_key = jax.random.split(key)
        n = len(y)
        up_to = jnp.cumsum(w)
        spot = jax.random.uniform(draw_key, (n,)) * up_to[-1]
        row = jnp.minimum(jnp.searchsorted(up_to, spot, side="right"), n - 1)
        counts = jnp.zeros(n, jnp.float32).at[row].add(1.0)
        model, _ = learner.fit(data, fit_key, jnp.where(w > 0, counts, 0))
        distance = jnp.where(w > 0, jnp.abs(learner.predict(model, x) - y), 0)
        most = jnp.max(distance)
        loss = distance / jnp.where(most > 0, most, 1)
        if config.loss == "square":
            loss = loss**2
        elif config.loss == "exponential":
            loss = 1 - jnp.exp(-loss)
        error = jnp.sum(w * loss)
        fine = error < 0.5
        beta = jnp.maximum(error, 1e-30) / (1 - error)
        alpha = jnp.where(error <= 0, 1.0, -config.learning_rate * jnp.log(beta))
        w = w * beta ** ((1 - loss) * config.learning_rate)
        return model, alpha, error, fine, w

    def step(carry: tuple[Array, Array], i: Array) -> tuple[tuple, tuple]:
        w, going = carry
        round_ = classify if classes else regress
        model, alpha, error, fine, new = round_(w, jax.random.fold_in(key, i))
        # A single learner of numbers counts, however poor it is, for there is no other.
        counts = going & (fine | (i == 0) & (classes == 0))
        alpha = jnp.where(counts, jnp.where(fine, alpha, 1.0), 0.0)
        total = jnp.sum(new)
        new = jnp.where(total > 0, new / jnp.where(total > 0, total, 1), w)
        going_on = going & fine & (error > 0)
        error = jnp.where(going, error, jnp.nan)
        return (new, going_on), (model, alpha, error)

    start = weights / jnp.sum(weights), jnp.bool_(True)
    rounds = jnp.arange(config.num_rounds, dtype=jnp.int32)
    _, (models, alpha, error) = lax.scan(step, start, rounds)
    return Model(models, alpha, error, num_classes=classes)


@export("trees.adaboost.decide", since="0.1")
def decide(
    model: Model, learner: Learner, x: Float[Array, "rows columns"]
) -> Float[Array, "rounds rows classes"]:
    """Share of all alphas up to each round that votes for each class.

    Raises:
        ValueError: if the model is one of numbers.
    """
    if not model.num_classes:
        raise ValueError("num_classes must be positive, got a model of numbers")

    def step(total: Array, one: tuple) -> tuple[Array, Array]:
        fitted, alpha = one
        best = jnp.argmax(learner.predict(fitted, x), axis=1)
        total = total + alpha * jax.nn.one_hot(best, model.num_classes)
        return total, total

    x = jnp.asarray(x, jnp.float32)
    start = jnp.zeros((len(x), model.num_classes))
    _, totals = lax.scan(step, start, (model.learners, model.alpha))
    return totals / jnp.maximum(jnp.cumsum(model.alpha), 1e-30)[:, None, None]


@export("trees.adaboost.staged_predict", since="0.1")
def staged_predict(
    model: Model, learner: Learner, x: Float[Array, "rows columns"]
) -> Array:
    """Class indices, or numbers, after every round: [rounds, rows]."""
    if model.num_classes:
        return jnp.argmax(decide(model, learner, x), axis=2).astype(jnp.int32)
    x = jnp.asarray(x, jnp.float32)
    told = lax.map(lambda one: learner.predict(one, x), model.learners)
    order = jnp.argsort(told, axis=0)

    def at(i: Array) -> Array:
        counted = jnp.arange(len(model.alpha)) <= i
        alpha = jnp.where(counted, model.alpha, 0)[order]
        reached = jnp.cumsum(alpha, axis=0) >= 0.5 * jnp.sum(alpha, axis=0)[None]
        first = jnp.argmax(reached & (alpha > 0), axis=0)[None]
        place = jnp.take_along_axis(order, first, axis=0)
        return jnp.take_along_axis(told, place, axis=0)[0]

    return lax.map(at, jnp.arange(len(model.alpha), dtype=jnp.int32))


@export("trees.adaboost.predict", since="0.1")
def predict(model: Model, learner: Learner, x: Float[Array, "rows columns"]) -> Array:
    """Class indices, or numbers, [rows]."""
    return _last(model, learner, jnp.asarray(x, jnp.float32))


@partial(jax.jit, static_argnames="learner")
def _last(model: Model, learner: Learner, x: Array) -> Array:
    if model.num_classes:
        return jnp.argmax(_shares(model, learner, x), axis=1).astype(jnp.int32)
    return staged_predict(model, learner, x)[-1]


def _shares(model: Model, learner: Learner, x: Array) -> Array:
    return decide(model, learner, x)[-1]


@export("trees.adaboost.predict_proba", since="0.1")
def predict_proba(
    model: Model, learner: Learner, x: Float[Array, "rows columns"]
) -> Float[Array, "rows classes"]:
    """Class probabilities as scikit-learn derives them: softmax of scores / (K - 1).

    Scores are K shares less their mean, as SAMME's additive model has them; they rank
    well, and are badly calibrated.
    """
    k = model.num_classes
    share = _decided(model, learner, jnp.asarray(x, jnp.float32))
    if k == 2:
        score = share[:, 1] - share[:, 0]
        return jax.nn.softmax(jnp.stack((-score, score), axis=1))
    return jax.nn.softmax((share - (1 - share) / (k - 1)) / (k - 1))


_decided = partial(jax.jit, static_argnames="learner")(_shares)
