"""What makes a split good: a rule turns summed channels of rows into scores and leaves.

Every row carries k numbers, its channels, and every node the sums of them over its rows:
gradient and Hessian for boosting, the weights of the classes for a classification tree,
weight and weighted targets for a regression tree. A rule scores such sums, and

    gain = score(left) + score(right) - score(parent).

One search over thresholds (`exact`, `histogram`) then serves all of them.

The trap is precision: scores are computed in the dtype of the sums and rounded to float32
before they are added, so that candidates which tie in exact arithmetic tie here too, and
the first of them wins.

Reference: Chen and Guestrin, "XGBoost: A Scalable Tree Boosting System", KDD 2016,
https://arxiv.org/abs/1603.02754 (equations 5 to 7, without the factor 1/2, as its code and
its files have it).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from jaxml.export import export
from jaxml.typing import Array, Bool, Float

Sums = Float[Array, "channels ..."]
"""Sums over the rows of nodes; the first axis is the channel."""


@export("trees.rule.Rule", since="0.1")
class Rule(NamedTuple):
    """How good sums are, and what they predict.

    Attributes:
        score: sums -> score of a node with the best value it can have, float32.
        value: sums -> that value [outputs, ...], float32.
        score_at: (sums, value) -> score of a node that has another value.
        admits: sums -> whether a node may be a child.
        cover: sums -> how much came to the node; None for the last channel.
    """

    score: Callable[[Sums], Float[Array, "..."]]
    value: Callable[[Sums], Float[Array, "outputs ..."]]
    score_at: Callable[[Sums, Float[Array, "outputs ..."]], Float[Array, "..."]]
    admits: Callable[[Sums], Bool[Array, "..."]]
    cover: Callable[[Sums], Float[Array, "..."]] | None = None

    def cover_of(self, sums: Sums) -> Float[Array, "..."]:
        """What is said to have come to a node: by default its last channel."""
        return (sums[-1] if self.cover is None else self.cover(sums)).astype(
            jnp.float32
        )


@export("trees.rule.newton", since="0.1")
def newton(
    reg_lambda: Float[Array, ""] | float = 1.0,
    reg_alpha: Float[Array, ""] | float = 0.0,
    max_delta_step: float = 0.0,
    min_child_weight: Float[Array, ""] | float = 1.0,
) -> Rule:
    """Second-order boosting; channels are the gradient G and the Hessian H.

    value = -T(G) / (H + lambda), score = T(G)^2 / (H + lambda), where T pulls G towards
    zero by alpha. Where `max_delta_step` or a constraint moves the value to w, the score
    is -(2 G w + (H + lambda) w^2): XGBoost leaves out 2 alpha |w| there.

    Args:
        reg_lambda: L2 penalty of the values.
        reg_alpha: L1 penalty.
        max_delta_step: the largest absolute value; 0 for no bound.
        min_child_weight: the least H of a child.

    >>> sums = jnp.array([-3.0, 2.0])
    >>> float(newton().value(sums)[0]), float(newton().score(sums))
    (1.0, 3.0)
    """

    def value(sums: Sums) -> Float[Array, "outputs ..."]:
        G, H = sums
        w = -_soft(G, reg_alpha) / _positive(H, reg_lambda)
        if max_delta_step:
            w = jnp.clip(w, -max_delta_step, max_delta_step)
        return jnp.where(H > 0, w, 0).astype(jnp.float32)[None]

    def score(sums: Sums) -> Float[Array, "..."]:
        if max_delta_step:
            return score_at(sums, value(sums))
        G, H = sums
        best = _soft(G, reg_alpha) ** 2 / _positive(H, reg_lambda)
        return jnp.where(H > 0, best, 0).astype(jnp.float32)

    def score_at(sums: Sums, value: Float[Array, "outputs ..."]) -> Float[Array, "..."]:
        (G, H), w = sums, value[0].astype(sums.dtype)
        score = -(2 * G * w + (H + reg_lambda) * (w * w))
        return jnp.where(H > 0, score, 0).astype(jnp.float32)

    def admits(sums: Sums) -> Bool[Array, "..."]:
        return (sums[1] > 0) & (sums[1] >= min_child_weight)

    return Rule(score, value, score_at, admits)


def _soft(G: Array, alpha: Float[Array, ""] | float) -> Array:
    return jnp.sign(G) * jnp.maximum(jnp.abs(G) - alpha, 0)


def _positive(H: Array, reg_lambda: Float[Array, ""] | float) -> Array:
    """H + lambda, and 1 in empty nodes, where neither may be divided by."""
    return jnp.where(H > 0, H + reg_lambda, 1)
