"""The perceptron, and why it needs a bias.

A neuron fires if its inputs, weighted, pass a threshold: w . x > theta. Bring theta to the
left, and it becomes a weight like the others, b = -theta, of an input that is always 1:

    f(x) = w . x + b,    and if y f(x) <= 0:    w += y x,  b += y.

Without b the boundary runs through the origin, wherever the data are: points that a line
separates are then lost, unless the line happens to pass there (AND is separable, and not
without a bias). With it, data of radius R that some unit vector separates by a margin gamma
are learned with at most (R / gamma)^2 mistakes, however many points there are and in
whatever order they come (Novikoff); R and gamma are those of the data *with* their 1.

Averaging the weights over all steps forgets the last accident. In terms of how often each
point was mistaken, f(x) = sum_i c_i y_i k(x_i, x), the inner product becomes any kernel.
Before batch normalisation a bias is no use: the mean that is subtracted holds it.

Reference: Rosenblatt, "The Perceptron: A Probabilistic Model for Information Storage and
Organization in the Brain", Psychological Review 1958, https://doi.org/10.1037/h0042519;
Freund and Schapire, "Large Margin Classification Using the Perceptron Algorithm", Machine
Learning 1999, https://doi.org/10.1023/A:1007662407062 (theorem 1, section 3 for the
averaged and 4 for the kernel version; here the average is over the updates of all epochs).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxml.export import export
from jaxml.typing import Array, Float, Int, PRNGKeyArray

Kernel = Callable[[Array, Array], Array]
"""k(x, y) of two points [features]."""


@export("fundamentals.perceptron.Config", since="0.1")
@dataclass(frozen=True)
class Config:
    """How a perceptron learns.

    Attributes:
        epochs: passes over the data, at most; it stops after one without a mistake.
        bias: whether the boundary may leave the origin.
        averaged: predict with the mean of the weights over all steps.
        shuffle: a new order in each epoch.
        kernel: in place of the inner product; the bias adds 1 to it.
    """

    epochs: int = 100
    bias: bool = True
    averaged: bool = False
    shuffle: bool = True
    kernel: Kernel | None = None


@export("fundamentals.perceptron.Model", since="0.1")
@flax.struct.dataclass
class Model:
    """What has been learned.

    Attributes:
        weights: [features], or with a kernel y_i times the mistakes of every point.
        bias: [].
        mistakes: [epochs], in each epoch.
        support: the points of a kernel, or None.
        kernel: or None.
    """

    weights: Float[Array, " n"]
    bias: Float[Array, ""]
    mistakes: Int[Array, " epochs"]
    support: Float[Array, "n features"] | None = None
    kernel: Kernel | None = flax.struct.field(pytree_node=False, default=None)


@export("fundamentals.perceptron.fit", since="0.1")
def fit(
    x: Float[Array, "n features"],
    y: Array,
    config: Config = Config(),
    key: PRNGKeyArray | None = None,
) -> Model:
    """Learns; compiled, and to be mapped over keys or targets.

    Args:
        x: points.
        y: +1 or -1 for each.
        config: see there.
        key: of the order, where it is shuffled.

    Raises:
        ValueError: if there is no point, labels are others than these, a point is not
            finite, or a key is missing.
    """
    if x.ndim != 2 or y.shape != x.shape[:1] or not len(x):
        raise ValueError(
            f"x and y must be [n, features] and [n], got {x.shape}, {y.shape}"
        )
    if not isinstance(y, jax.core.Tracer) and not np.isin(y, (-1, 1)).all():
        raise ValueError(f"labels must be -1 or 1, got {np.unique(y)[:5].tolist()}")
    if not isinstance(x, jax.core.Tracer) and not np.isfinite(x).all():
        raise ValueError("points must be finite")
    if config.epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {config.epochs}")
    if config.shuffle and key is None:
        raise ValueError("shuffle needs a key")
    key = jax.random.key(0) if key is None else key
    return _fit(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32), key, config)


def _fit(x: Array, y: Array, key: PRNGKeyArray, config: Config) -> Model:
    count = len(x)
    # A kernel perceptron is a linear one whose point i is row i of the kernel's matrix,
    # and whose update touches weight i alone.
    rows = x if config.kernel is None else _gram(config.kernel, x, x)
    moves = x if config.kernel is None else jnp.eye(count)
    has_bias = jnp.float32(config.bias)

    def visit(carry: Any, i: Array) -> Any:
        w, b, w_sum, b_sum = carry
        wrong = y[i] * (rows[i] @ w + b) <= 0
        move = jnp.where(wrong, y[i], 0.0)
        w, b = w + move * moves[i], b + move * has_bias
        return (w, b, w_sum + w, b_sum + b), wrong

    def epoch(carry: Any) -> Any:
        number, state, mistakes = carry
        order = jnp.arange(count)
        if config.shuffle:
            order = jax.random.permutation(jax.random.fold_in(key, number), count)
        state, wrong = jax.lax.scan(visit, state, order)
        return number + 1, state, mistakes.at[number].set(jnp.sum(wrong))

    def goes_on(carry: Any) -> Any:
        number, _, mistakes = carry
        clean = (number > 0) & (mistakes[number - 1] == 0)
        return (number < config.epochs) & ~clean

    zero = jnp.zeros(rows.shape[1])
    start = (zero, jnp.float32(0), zero, jnp.float32(0))
    carry = (jnp.int32(0), start, jnp.zeros(config.epochs, jnp.int32))
    number, (w, b, w_sum, b_sum), mistakes = jax.lax.while_loop(goes_on, epoch, carry)
    if config.averaged:
        w, b = w_sum / (number * count), b_sum / (number * count)
    return Model(w, b, mistakes, None if config.kernel is None else x, config.kernel)


@export("fundamentals.perceptron.decision", since="0.1")
def decision(model: Model, x: Float[Array, "n features"]) -> Float[Array, " n"]:
    """f(x): its sign is the class.

    Raises:
        ValueError: if the points have another number of features than those learned from.
    """
    known = len(model.weights) if model.support is None else model.support.shape[1]
    if x.ndim != 2 or x.shape[1] != known:
        raise ValueError(f"x must be [n, {known}], got {x.shape}")
    x = jnp.asarray(x, jnp.float32)
    if model.support is not None and model.kernel is not None:
        x = _gram(model.kernel, x, model.support)
    return x @ model.weights + model.bias


@export("fundamentals.perceptron.predict", since="0.1")
def predict(model: Model, x: Float[Array, "n features"]) -> Int[Array, " n"]:
    """The class of every point, -1 or 1; on the boundary it is -1."""
    return jnp.where(decision(model, x) > 0, 1, -1)


@export("fundamentals.perceptron.mistake_bound", since="0.1")
def mistake_bound(
    x: Float[Array, "n features"],
    y: Array,
    direction: Float[Array, " features"],
    offset: float = 0.0,
) -> float:
    """(R / gamma)^2 for a vector (and offset) that separates the data; inf if it does not.

    With an offset the data hold their 1, and the vector the offset.
    """
    ones = np.ones((len(x), 1 if offset else 0))
    points = np.concatenate([np.asarray(x, np.float64), ones], 1)
    vector = np.append(np.asarray(direction, np.float64), [offset] if offset else [])
    gamma = (np.asarray(y) * (points @ vector)).min() / np.linalg.norm(vector)
    radius = np.linalg.norm(points, axis=1).max()
    return float((radius / gamma) ** 2) if gamma > 0 else float("inf")


def _gram(kernel: Kernel, x: Array, z: Array) -> Array:
    return jax.vmap(lambda a: jax.vmap(lambda b: kernel(a, b))(z))(x)
