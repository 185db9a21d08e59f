"""A learner as three pure functions, so that ensembles can be made of anything.

    prepare(x, y) -> data              what many fits share: sorted columns, say
    fit(data, key, weights) -> model, told     told: predictions for the rows themselves
    predict(model, x) -> class shares [rows, classes], or numbers [rows]

Rows that a fit must not see have weight zero, never another shape: a hundred fits are one
program, and run under `lax.map`, `vmap` or `scan`.

The trap: a learner that ignores weights sees every row, and what is built on it leaks.

Reference: Dietterich, "Ensemble Methods in Machine Learning", MCS 2000,
https://doi.org/10.1007/3-540-45014-9_1; regressions as in Hastie, Tibshirani and Friedman,
"The Elements of Statistical Learning", 2009, https://doi.org/10.1007/978-0-387-84858-7
(sections 3.4.1 and 4.4.1).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxml.export import export
from jaxml.typing import Array, Float, PRNGKeyArray

Fitted = Any
"""A pytree of arrays."""


@export("trees.learner.Learner", since="0.1")
class Learner(NamedTuple):
    """A way to learn, as three functions; see the module."""

    prepare: Callable[[Array, Array], Any]
    fit: Callable[[Any, PRNGKeyArray, Float[Array, " rows"]], tuple[Fitted, Array]]
    predict: Callable[[Fitted, Array], Array]


@export("trees.learner.from_pair", since="0.1")
def from_pair(
    fit: Callable[[Array, Array, PRNGKeyArray, Array], Fitted],
    predict: Callable[[Fitted, Array], Array],
) -> Learner:
    """A learner from (x, y, key, weights) -> model and (model, x) -> predictions.

    >>> mean = from_pair(
    ...     lambda x, y, key, w: jnp.sum(w * y) / jnp.sum(w),
    ...     lambda model, x: jnp.full(len(x), model),
    ... )
    >>> data = mean.prepare(jnp.zeros((2, 1)), jnp.array([1.0, 3.0]))
    >>> mean.fit(data, jax.random.key(0), jnp.ones(2))[1].tolist()
    [2.0, 2.0]
    """

    def both(data: Any, key: PRNGKeyArray, weights: Array) -> tuple[Fitted, Array]:
        x, y = data
        model = fit(x, y, key, weights)
        return model, predict(model, x)

    return Learner(lambda x, y: (jnp.asarray(x), jnp.asarray(y)), both, predict)


@export("trees.learner.ridge", since="0.1")
def ridge(penalty: float = 1e-3) -> Learner:
    """Least squares with an L2 penalty on all weights but the bias; numbers [rows]."""

    def fit(x: Array, y: Array, key: PRNGKeyArray, weights: Array) -> tuple:
        del key
        share = weights / jnp.sum(weights)
        mean, middle = share @ x, share @ y
        a = x - mean[None, :]
        gram = (a * weights[:, None]).T @ a + penalty * jnp.eye(x.shape[1])
        slope = jnp.linalg.solve(gram, (a * weights[:, None]).T @ (y - middle))
        return slope, middle - mean @ slope

    return from_pair(fit, lambda model, x: x @ model[0] + model[1])


@export("trees.learner.logistic", since="0.1")
def logistic(num_classes: int, penalty: float = 1.0, steps: int = 20) -> Learner:
    """Softmax regression with an L2 penalty, by Newton's method; [rows, classes].

    Args:
        num_classes: of the labels.
        penalty: half of it times the squared weights is added to the sum of losses; the
            biases are free.
        steps: of Newton; each solves for all weights together, so features must be few.
    """

    def fit(x: Array, y: Array, key: PRNGKeyArray, weights: Array) -> Array:
        del key
        # In units of each column, or the Hessian's entries are too far apart to solve with.
        share = weights / jnp.sum(weights)
        middle = share @ x
        unit = jnp.sqrt(share @ (x - middle[None]) ** 2)
        unit = jnp.where(unit > 0, unit, 1)
        x = (x - middle[None]) / unit[None]
        width = x.shape[1] + 1
        price = jnp.append(penalty / unit**2, 1e-4)[:, None]

        def loss(flat: Array) -> Array:
            w = flat.reshape(width, num_classes)
            logs = jax.nn.log_softmax(_affine(w, x))
            chosen = jnp.take_along_axis(logs, y.astype(jnp.int32)[:, None], axis=1)
            fine = 0.5 * jnp.sum(price * w * w) - jnp.sum(weights * chosen[:, 0])
            # What moves all classes alike is 0 at the optimum; now the Hessian knows it.
            return fine + 0.5 * jnp.mean(weights) * jnp.sum(jnp.sum(w, axis=1) ** 2)

        def step(_: Array, flat: Array) -> Array:
            move = jnp.linalg.solve(jax.hessian(loss)(flat), jax.grad(loss)(flat))
            # Halve until the loss falls: full steps diverge where classes are far apart.
            sizes = 0.5 ** jnp.arange(8.0)
            tries = flat[None] - sizes[:, None] * move[None]
            losses = jax.vmap(loss)(tries)
            best = jnp.argmin(losses)
            return jnp.where(losses[best] < loss(flat), tries[best], flat)

        start = jnp.zeros(width * num_classes)
        found = lax.fori_loop(0, steps, step, start).reshape(width, num_classes)
        slope = found[:-1] / unit[:, None]
        return jnp.vstack((slope, found[-1] - middle @ slope))

    return from_pair(fit, lambda w, x: jax.nn.softmax(_affine(w, x)))


def _affine(w: Array, x: Array) -> Array:
    return x @ w[:-1] + w[-1][None, :]


def map_fits(fit: Callable[[Array], Fitted], index: Array, batch_size: int) -> Fitted:
    """`lax.map` in batches, whose own batches do not take leaves without elements."""
    shapes = jax.eval_shape(fit, index[0])

    def filled(i: Array) -> list[Array]:
        return [leaf for leaf in jax.tree.leaves(fit(i)) if leaf.size]

    size = batch_size if batch_size > 1 else None
    done = iter(lax.map(filled, index, batch_size=size))
    return jax.tree.map(
        lambda s: next(done) if s.size else jnp.zeros((len(index), *s.shape), s.dtype),
        shapes,
    )
