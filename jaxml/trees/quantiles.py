"""Quantiles of groups of rows, as leaves of absolute and quantile losses need them.

Rows are sorted by (group, value) once. Without weights a quantile lies between the order
statistics around alpha (n + 1), counted from one; with weights it is the first value at
which they add up to alpha of the group's.

The trap: several definitions are in use; this is XGBoost's, so that leaves agree with its.

Reference: Hyndman and Fan, "Sample Quantiles in Statistical Packages", The American
Statistician 1996, https://doi.org/10.1080/00031305.1996.10473566 (definition 6).
"""

import jax
import jax.numpy as jnp

from jaxml.export import export
from jaxml.typing import Array, Float


@export("trees.quantiles.quantile", since="0.1")
def quantile(
    x: Float[Array, " rows"],
    alpha: Float[Array, ""] | float,
    weights: Float[Array, " rows"] | None = None,
) -> Float[Array, ""]:
    """The quantile of XGBoost: between order statistics at alpha (n + 1), or by weight.

    >>> float(quantile(jnp.array([4.0, 1.0, 3.0, 2.0]), 0.5))
    2.5
    """
    group = jnp.zeros(len(x), jnp.int32)
    return grouped_quantile(x, group, 1, alpha, weights)[0]


@export("trees.quantiles.grouped_quantile", since="0.1")
def grouped_quantile(
    x: Float[Array, " rows"],
    group: Array,
    num_groups: int,
    alpha: Float[Array, ""] | float,
    weights: Float[Array, " rows"] | None = None,
    counted: Array | None = None,
) -> Float[Array, " groups"]:
    """`quantile` of each group's rows, NaN for an empty group.

    Args:
        x: values.
        group: of each row, int32 in [0, num_groups).
        num_groups: how many there may be.
        alpha: in (0, 1).
        weights: without them order statistics are interpolated; with them the answer is
            the first value at which the weights add up to alpha of the group's.
        counted: rows that count; all without it.
    """
    n = len(x)
    if counted is not None:  # the others go to a group of their own
        group = jnp.where(counted, group, num_groups)
    order = jnp.lexsort((x, group))
    x, group = x[order], group[order]
    groups = num_groups + 1
    count = jnp.zeros(groups, jnp.int32).at[group].add(1)
    first = jnp.cumsum(count) - count
    if weights is None:
        with jax.enable_x64(True):
            alpha = jnp.asarray(alpha, jnp.float32)
            place = alpha * (count.astype(jnp.float64) + 1) - 1
            low = jnp.clip(jnp.floor(place), 0, jnp.maximum(count - 1, 0))
            share = jnp.clip(place - low, 0, 1)
            here = (first + low.astype(jnp.int32)).clip(0, n - 1)
            there = jnp.minimum(here + 1, first + jnp.maximum(count - 1, 0)).clip(
                0, n - 1
            )
            step = (x[there] - x[here]).astype(jnp.float64)
            value = (x[here].astype(jnp.float64) + share * step).astype(jnp.float32)
    else:
        total = jnp.cumsum(weights[order])
        start = jnp.where(first > 0, total[(first - 1).clip(0)], 0.0)
        end = total[(first + count - 1).clip(0)]
        wanted = start + alpha * (end - start)
        reached = total >= wanted[group]
        place = jnp.where(reached, jnp.arange(n, dtype=jnp.int32), n - 1)
        at = jax.ops.segment_min(place, group, groups, indices_are_sorted=True)
        last = (first + count - 1).clip(0, n - 1)
        value = x[jnp.minimum(at, last).clip(0, n - 1)]
    return jnp.where(count > 0, value, jnp.nan)[:num_groups]
