"""Least absolute deviations of ranges of rows, for trees that predict medians.

The cost of a range is sum w |y - m|, m its weighted median. It is no function of sums, but
a wavelet matrix finds the median of any range in as many steps as ranks have bits: each
step sorts the sequence stably by one bit, and a range of it stays a range among the zeros
or among the ones. With the weight W and the sum S = sum w y of the range, and W_<, S_< of
what lies below its median,

    cost = S - 2 S_< + m (2 W_< - W).

All ranges take their steps together, so that every threshold of a column is judged in
O(n log n).

The trap: where half of the weight is reached exactly, any value up to the next costs the
same; leaves take the middle of the two, as a median of an even number should.

Reference: Claude, Navarro and Ordonez, "The Wavelet Matrix", Information Systems 2015,
https://doi.org/10.1016/j.is.2014.06.002 (section 3); least absolute deviation trees in
Breiman et al., "Classification and Regression Trees", 1984,
https://doi.org/10.1201/9781315139470 (section 8.11).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxml.export import export
from jaxml.trees.fixed_point import snap
from jaxml.trees.scan import prefix_sums
from jaxml.typing import Array, Float, Int


class Targets(NamedTuple):
    """Ranks of the targets of every row, and the targets in their order."""

    rank: Int[Array, "outputs rows"]
    ordered: Float[Array, "outputs rows"]


def rank_targets(y: Float[Array, "rows outputs"]) -> Targets:
    """Ranks, ties broken by row."""
    order = jnp.argsort(y, axis=0, stable=True)
    rank = jnp.argsort(order, axis=0, stable=True)
    ordered = jnp.take_along_axis(y, order, axis=0)
    return Targets(rank.T.astype(jnp.int32), ordered.T.astype(jnp.float32))


@export("trees.deviation.range_costs", since="0.1")
def range_costs(
    rank: Int[Array, " rows"],
    weights: Float[Array, " rows"],
    ordered: Float[Array, " rows"],
    start: Int[Array, " ranges"],
    end: Int[Array, " ranges"],
) -> Float[Array, " ranges"]:
    """Least absolute deviation of each range of rows, for use inside `enable_x64(True)`.

    Args:
        rank: of each row's target, all different.
        weights: of each row, not negative.
        ordered: the targets in ascending order.
        start: first row of each range.
        end: the row after its last; empty ranges cost nothing.
    """
    n = len(rank)
    y = ordered[rank]
    parts = snap(jnp.stack((weights, weights * y)).astype(jnp.float32))
    sums = _exclusive(parts)
    whole = sums[:, end] - sums[:, start]
    half = whole[0] / 2
    bits = max(n - 1, 1).bit_length()

    def step(i: Array, carry: tuple) -> tuple:
        rank, parts, start, end, below, median = carry
        bit = (rank >> (bits - 1 - i)) & 1
        zero = (bit == 0).astype(parts.dtype)
        kept = _exclusive(jnp.concatenate([zero[None], parts * zero[None]]))
        at_start, at_end = kept[:, start], kept[:, end]
        among = at_end[1:] - at_start[1:]
        low = (below[0] + among[0] >= half) & (at_end[0] > at_start[0])
        first, last = (k[0].astype(jnp.int32) for k in (at_start, at_end))
        zeros = kept[0, -1].astype(jnp.int32)
        below = jnp.where(low[None], below, below + among)
        median = 2 * median + jnp.where(low, 0, 1)
        start = jnp.where(low, first, zeros + start - first)
        end = jnp.where(low, last, zeros + end - last)
        place = jnp.arange(n, dtype=jnp.int32)
        before = kept[0, :-1].astype(jnp.int32)
        to = jnp.where(bit == 0, before, zeros + place - before)
        rank = jnp.zeros_like(rank).at[to].set(rank, unique_indices=True)
        parts = jnp.zeros_like(parts).at[:, to].set(parts, unique_indices=True)
        return rank, parts, start, end, below, median

    zero = jnp.zeros_like(start)
    carry = rank, parts, start, end, jnp.zeros_like(whole), zero
    *_, below, median = lax.fori_loop(0, bits, step, carry)
    middle = ordered[jnp.minimum(median, n - 1)].astype(whole.dtype)
    cost = whole[1] - 2 * below[1] + middle * (2 * below[0] - whole[0])
    return jnp.where(whole[0] > 0, jnp.maximum(cost, 0), 0)


def _exclusive(x: Float[Array, "channels rows"]) -> Float[Array, "channels places"]:
    """Sums before each place, and of all behind the last."""
    return jnp.pad(prefix_sums(x), ((0, 0), (1, 0)))


def both_sides(
    targets: Targets,
    row: Int[Array, " rows"],
    weights: Float[Array, " rows"],
    first: Int[Array, " rows"],
    last: Int[Array, " rows"],
) -> Float[Array, " rows"]:
    """What parting each node after each place takes away, averaged over targets.

    Args:
        targets: of all rows.
        row: at each place.
        weights: at each place.
        first: the first place of each place's node.
        last: the last.
    """
    place = jnp.arange(len(row), dtype=jnp.int32)
    start = jnp.concatenate([first, place + 1, first])
    end = jnp.concatenate([place + 1, last + 1, last + 1])

    def one(target: Targets) -> Array:
        cost = range_costs(target.rank[row], weights, target.ordered, start, end)
        left, right, whole = jnp.split(cost, 3)
        return whole - left - right

    return jnp.mean(lax.map(one, targets), axis=0)


@export("trees.deviation.medians", since="0.1")
def medians(
    y: Float[Array, "rows outputs"],
    weights: Float[Array, " rows"],
    group: Int[Array, " rows"],
    num_groups: int,
) -> Float[Array, "groups outputs"]:
    """Weighted median of each group's rows, NaN where it has no weight.

    >>> y = jnp.array([[1.0], [2.0], [4.0], [9.0]])
    >>> medians(y, jnp.ones(4), jnp.zeros(4, jnp.int32), 1).tolist()
    [[3.0]]
    """
    n = len(y)
    group = jnp.where(weights > 0, group, num_groups)

    def one(target: Array) -> Array:
        order = jnp.lexsort((target, group))
        value, of = target[order], group[order]
        with jax.enable_x64(True):
            mass = snap(weights[None].astype(jnp.float32))[0][order]
            total = jnp.zeros(num_groups + 1).at[of].add(mass)
            before = (jnp.cumsum(total) - total)[of]
            inside = prefix_sums(mass[None])[0] - before
            half = total[of] / 2
            reached, passed = inside >= half, inside > half
        place = jnp.arange(n, dtype=jnp.int32)

        def first(mask: Array) -> Array:
            at = jnp.full(num_groups + 1, n - 1, jnp.int32)
            return value[at.at[of].min(jnp.where(mask, place, n - 1))]

        middle = first(reached) / 2 + first(passed) / 2
        known = jnp.zeros(num_groups + 1, bool).at[of].set(True)
        return jnp.where(known, middle, jnp.nan)[:num_groups]

    return lax.map(one, jnp.asarray(y, jnp.float32).T).T
