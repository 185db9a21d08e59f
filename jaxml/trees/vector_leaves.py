"""Trees whose leaves hold a value for every output, by the diagonal or the whole Hessian.

One tree a round serves all outputs, and splits where they gain together:

    diagonal:  value_k = -T(G_k) / (H_kk + lambda),   score = sum_k T(G_k)^2 / (H_kk + lambda)
    whole:     value = -(H + lambda I)^-1 G,          score = G' (H + lambda I)^-1 G

with G the sum of the gradients [outputs], and H of the Hessians [outputs, outputs]. The
whole Hessian lets outputs that move together, as the classes of a softmax do, be moved
together; it comes from autodiff, for any loss.

The trap: the whole Hessian of a loss that is not convex may not be positive definite; where
a pivot is not positive its output stays as it is.

Reference: Zhang and Jung, "GBDT-MO: Gradient Boosted Decision Trees for Multiple Outputs",
2019, https://arxiv.org/abs/1909.04373 (equation 7, the diagonal); Chen and Guestrin,
"XGBoost: A Scalable Tree Boosting System", KDD 2016, https://arxiv.org/abs/1603.02754
(equations 5 to 7, of which these are the matrix form).
"""

from typing import Literal

import jax.numpy as jnp
import numpy as np

from jaxml.export import export
from jaxml.trees.rule import Rule, Sums, newton
from jaxml.typing import Array, Bool, Float

Leaves = Literal["scalar", "diagonal", "whole"]


def channels_of(
    g: Float[Array, "rows outputs"], H: Float[Array, "rows outputs *outputs"]
) -> Float[Array, "channels rows"]:
    """What is summed: g and h in turn, then what is off the diagonal and zeros in turn."""
    outputs = g.shape[1]
    h = H if H.ndim == 2 else jnp.diagonal(H, axis1=1, axis2=2)
    pairs = jnp.stack((g, h), axis=2).reshape(len(g), -1)
    if H.ndim == 2 or outputs == 1:
        return pairs.T
    i, j = np.triu_indices(outputs, 1)
    off = H[:, i, j]
    rest = jnp.stack((off, jnp.zeros_like(off)), axis=2).reshape(len(g), -1)
    return jnp.concatenate((pairs, rest), axis=1).T


@export("trees.vector_leaves.newton_diagonal", since="0.1")
def newton_diagonal(
    outputs: int,
    reg_lambda: Float[Array, ""] | float = 1.0,
    reg_alpha: Float[Array, ""] | float = 0.0,
    max_delta_step: float = 0.0,
    min_child_weight: Float[Array, ""] | float = 1.0,
) -> Rule:
    """`rule.newton` for every output, scores added; the mean Hessian is the weight.

    Channels are the gradient and the Hessian of each output in turn.

    >>> rule = newton_diagonal(2)
    >>> rule.value(jnp.array([-3.0, 2.0, 4.0, 1.0])).tolist()
    [1.0, -2.0]
    """
    one = newton(reg_lambda, reg_alpha, max_delta_step, 0.0)

    def each(sums: Sums) -> Array:
        return jnp.moveaxis(sums.reshape(outputs, 2, *sums.shape[1:]), 1, 0)

    def value(sums: Sums) -> Float[Array, "outputs ..."]:
        return one.value(each(sums))[0]

    def score(sums: Sums) -> Float[Array, "..."]:
        return jnp.sum(one.score(each(sums)), axis=0)

    def score_at(sums: Sums, value: Float[Array, "outputs ..."]) -> Float[Array, "..."]:
        return jnp.sum(one.score_at(each(sums), value[None]), axis=0)

    return Rule(
        score,
        value,
        score_at,
        lambda sums: _heavy(sums, outputs, min_child_weight),
        lambda sums: _mass(sums, outputs),
    )


@export("trees.vector_leaves.newton_whole", since="0.1")
def newton_whole(
    outputs: int,
    reg_lambda: Float[Array, ""] | float = 1.0,
    min_child_weight: Float[Array, ""] | float = 1.0,
) -> Rule:
    """Newton's step with the whole Hessian; the mean of its diagonal is the weight.

    Channels are the gradient and the diagonal of the Hessian in turn, then for every pair
    of outputs i < j its entry and a zero.

    >>> rule = newton_whole(2, reg_lambda=0.0)
    >>> sums = jnp.array([-1.0, 2.0, 0.0, 2.0, 1.0, 0.0])  # H = [[2, 1], [1, 2]]
    >>> rule.value(sums).round(4).tolist()
    [0.6667, -0.3333]
    """
    places = {
        pair: 2 * outputs + 2 * i
        for i, pair in enumerate(zip(*np.triu_indices(outputs, 1), strict=True))
    }

    def parts(sums: Sums) -> tuple[list[Array], list[list[Array]]]:
        G = [sums[2 * k] for k in range(outputs)]

        def entry(i: int, j: int) -> Array:
            if i == j:
                return sums[2 * i + 1] + reg_lambda
            return sums[places[min(i, j), max(i, j)]]

        return G, [[entry(i, j) for j in range(outputs)] for i in range(outputs)]

    def step(sums: Sums) -> tuple[list[Array], list[Array]]:
        G, H = parts(sums)
        return G, _solve(H, G)

    def value(sums: Sums) -> Float[Array, "outputs ..."]:
        return -jnp.stack(step(sums)[1]).astype(jnp.float32)

    def score(sums: Sums) -> Float[Array, "..."]:
        G, x = step(sums)
        total = sum(g * d for g, d in zip(G, x, strict=True))
        return jnp.asarray(total).astype(jnp.float32)

    def score_at(sums: Sums, value: Float[Array, "outputs ..."]) -> Float[Array, "..."]:
        G, H = parts(sums)
        w = value.astype(sums.dtype)
        bent = [sum(H[i][j] * w[j] for j in range(outputs)) for i in range(outputs)]
        total = sum(2 * G[i] * w[i] + bent[i] * w[i] for i in range(outputs))
        return -jnp.asarray(total).astype(jnp.float32)

    return Rule(
        score,
        value,
        score_at,
        lambda sums: _heavy(sums, outputs, min_child_weight),
        lambda sums: _mass(sums, outputs),
    )


def _solve(H: list[list[Array]], G: list[Array]) -> list[Array]:
    """H^-1 G by elimination, written out, for many small systems side by side."""
    n, H, G = len(G), [list(row) for row in H], list(G)
    for k in range(n):
        good = H[k][k] > 0
        pivot = jnp.where(good, H[k][k], 1)
        G[k] = jnp.where(good, G[k], 0)
        for i in range(k + 1, n):
            factor = jnp.where(good, H[i][k] / pivot, 0)
            for j in range(k + 1, n):
                H[i][j] = H[i][j] - factor * H[k][j]
            G[i] = G[i] - factor * G[k]
        H[k][k] = pivot
        for j in range(k + 1, n):
            H[k][j] = jnp.where(good, H[k][j], 0)
    x = list(G)
    for k in reversed(range(n)):
        x[k] = (G[k] - sum(H[k][j] * x[j] for j in range(k + 1, n))) / H[k][k]
    return x


def _mass(sums: Sums, outputs: int) -> Float[Array, "..."]:
    return jnp.mean(sums[1 : 2 * outputs : 2], axis=0)


def _heavy(
    sums: Sums, outputs: int, least: Float[Array, ""] | float
) -> Bool[Array, "..."]:
    mass = _mass(sums, outputs)
    return (mass > 0) & (mass >= least)
