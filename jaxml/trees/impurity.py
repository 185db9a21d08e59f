"""What makes a node of a CART pure: Gini, entropy, squared error, Poisson deviance.

Channels of a classification tree are the weights of the classes, c_k with sum W; those of
a regression tree the weighted targets s = sum w y, and the weight W. A node's impurity
times its weight is a constant less its score, so that the gain of a split is the weighted
impurity that it takes away:

    Gini      sum_k c_k^2 / W          entropy  sum_k c_k log2(c_k / W)
    squared   s^2 / W                  Poisson  s log(s / W)

With several outputs scores are averaged over them. `score_at` judges another value v with
the loss whose best value is the node's: Brier score, log loss, squared error, deviance.

The trap: scores stay in float64. Gains near the leaves are differences of scores that are
millions of times larger, and float32 would tie what is not equal.

Reference: Breiman et al., "Classification and Regression Trees", 1984,
https://doi.org/10.1201/9781315139470 (chapters 4 and 8).
"""

from collections.abc import Callable
from functools import reduce
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jax.scipy.special import xlogy

from jaxml.export import export
from jaxml.trees.rule import Rule, Sums
from jaxml.typing import Array, Bool, Float

Name = Literal["gini", "entropy", "squared_error", "poisson", "absolute_error"]
CLASSIFIERS = ("gini", "entropy")


@export("trees.impurity.Impurity", since="0.1")
class Impurity(NamedTuple):
    """A rule for trees, and the weight of sums.

    Attributes:
        rule: scores sums; its values are class shares, or means.
        weight: sums -> total weight of the rows.
        pure: sums -> whether all rows have one target; None where sums cannot tell.
        light: whether a score takes few operations, none of them a logarithm.
    """

    rule: Rule
    weight: Callable[[Sums], Float[Array, "..."]]
    pure: Callable[[Sums], Bool[Array, "..."]] | None = None
    light: bool = False


@export("trees.impurity.impurity", since="0.1")
def impurity(
    name: Name,
    outputs: int = 1,
    num_classes: int = 0,
) -> Impurity:
    """One of the impurities of classification and regression trees.

    Args:
        name: "gini", "entropy" (in bits), "squared_error", "poisson", or
            "absolute_error", whose splits `deviation` finds and whose rule is that of
            "squared_error".
        outputs: targets per row.
        num_classes: of every target, for the first two.

    >>> rule, weight, *_ = impurity("gini", num_classes=2)
    >>> float(rule.score(jnp.array([3.0, 1.0]))), float(weight(jnp.array([3.0, 1.0])))
    (2.5, 4.0)
    """
    if name in CLASSIFIERS:
        return _of_classes(name, outputs, num_classes)
    return _of_numbers(name)


def _fold(op: Callable[[Array, Array], Array], x: Array, axis: int) -> Array:
    """A reduction over few entries of long rows, as so many operations on whole rows.

    XLA's CPU backend fuses them with what is around, and takes an eighth of the time.
    """
    return reduce(op, jnp.unstack(x, axis=axis))


def _of_classes(name: str, outputs: int, num_classes: int) -> Impurity:
    def split(sums: Sums) -> tuple[Array, Array]:
        """[outputs, classes, ...] and weights [...], 1 where they are 0."""
        c = sums.reshape(outputs, num_classes, *sums.shape[1:])
        w = weight(sums)
        return c, jnp.where(w > 0, w, 1)

    def weight(sums: Sums) -> Float[Array, "..."]:
        return _fold(jnp.add, sums[:num_classes], 0)

    def score(sums: Sums) -> Float[Array, "..."]:
        c, w = split(sums)
        if name == "gini":
            each = _fold(jnp.add, c * c, 1) / w[None]
        else:
            each = _fold(jnp.add, xlogy(c, c / w[None, None]), 1) / jnp.log(2.0)
        return _fold(jnp.add, each, 0) / outputs

    def value(sums: Sums) -> Float[Array, "outputs ..."]:
        c, w = split(sums)
        return (c / w[None, None]).reshape(sums.shape).astype(jnp.float32)

    def score_at(sums: Sums, value: Float[Array, "outputs ..."]) -> Float[Array, "..."]:
        c, w = split(sums)
        v = value.reshape(c.shape)
        if name == "gini":
            each = jnp.sum(2 * v * c - w[None, None] * v * v, axis=1)
        else:
            each = jnp.sum(xlogy(c, v), axis=1) / jnp.log(2.0)
        return jnp.mean(each, axis=0)

    def admits(sums: Sums) -> Bool[Array, "..."]:
        return weight(sums) > 0

    def pure(sums: Sums) -> Bool[Array, "..."]:
        c, w = split(sums)
        return _fold(jnp.logical_and, _fold(jnp.maximum, c, 1) >= w[None], 0)

    return Impurity(Rule(score, value, score_at, admits), weight, pure, name == "gini")


def _of_numbers(name: str) -> Impurity:
    def weight(sums: Sums) -> Float[Array, "..."]:
        return sums[-1]

    def mean(sums: Sums) -> Array:
        return sums[:-1] / jnp.where(sums[-1:] > 0, sums[-1:], 1)

    def score(sums: Sums) -> Float[Array, "..."]:
        s, m = sums[:-1], mean(sums)
        each = xlogy(s, jnp.maximum(m, 0)) if name == "poisson" else s * m
        return _fold(jnp.add, each, 0) / len(each)

    def value(sums: Sums) -> Float[Array, "outputs ..."]:
        return mean(sums).astype(jnp.float32)

    def score_at(sums: Sums, value: Float[Array, "outputs ..."]) -> Float[Array, "..."]:
        s, w, v = sums[:-1], sums[-1:], value
        if name == "poisson":  # s log v - w v, and s more to meet `score` at the mean
            return jnp.mean(xlogy(s, v) - w * v + s, axis=0)
        return jnp.mean(2 * v * s - w * v * v, axis=0)

    def admits(sums: Sums) -> Bool[Array, "..."]:
        enough = weight(sums) > 0
        if name == "poisson":  # a mean of zero predicts that nothing ever happens
            enough &= jnp.all(sums[:-1] > 0, axis=0)
        return enough

    return Impurity(
        Rule(score, value, score_at, admits), weight, light=name != "poisson"
    )
