"""Every threshold of every open node, in one walk over rows in the order of their codes.

A loop over scalars keeps for each node what it has on the left, its last code and its best
split so far. A row whose code differs from the last one of its node closes a candidate, and
then joins the left side. Rows come in the order of codes alone, not of nodes, which takes
one digit of sorting less, and rows at rest stand last, where the walk does not go. Where
values are missing a second walk starts with the missing rows on the left.

XLA's CPU backend compiles a loop in one piece if its body touches little memory: 11 ns a
row for two channels, where sorting by node, prefix sums and reductions take 36. A body of
more channels, or of logarithms, is run operation by operation, a hundred times slower; hence
`MOST` and `Impurity.light`, and `search.by_sort` for all others and for devices that work
side by side.

The trap: what is known of a node must stand in one row, read in one piece before it is
written, or XLA copies the whole table in every step.

Reference: Breiman et al., "Classification and Regression Trees", 1984,
https://doi.org/10.1201/9781315139470 (section 2.4); one scan over ordered values for all
nodes of a level as in Shafer, Agrawal and Mehta, "SPRINT: A Scalable Parallel Classifier for
Data Mining", VLDB 1996, https://dl.acm.org/doi/10.5555/645922.673491 (section 2.3).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxml.trees import radix
from jaxml.typing import Array, Bool, Float, Int, UInt8

MOST = 3
"""Channels of a walk at most."""

Gain = Callable[[Array, Array, Any], Array]
"""Scores of both sides of sums [channels, ...], -inf where a child may not be."""


class Walked(NamedTuple):
    """What a walk finds of every node.

    Attributes:
        gain: of the best split, the first among equals; -inf where there is none.
        below: the last code on its left.
        above: the first on its right, -1 where the node has one code alone.
        left: sums on the left.
        last: the last code of the node.
    """

    gain: Float[Array, " nodes"]
    below: Int[Array, " nodes"]
    above: Int[Array, " nodes"]
    left: Float[Array, "channels nodes"]
    last: Int[Array, " nodes"]


def walk(
    code: Int[Array, " rows"] | UInt8[Array, " rows"],
    slot: Int[Array, " rows"],
    q: Float[Array, "rows channels"],
    total: Float[Array, "channels nodes"],
    gain: Gain,
    least: Any,
    width: int,
    has_missing: bool,
) -> tuple[Walked, Bool[Array, " nodes"]]:
    """The best splits, and whether missing rows go left; inside `jax.enable_x64(True)`.

    Args:
        code: of every row, `width` where its value is missing.
        slot: the node of each row; the number of nodes or more where it rests.
        q: what is summed, on a grid.
        total: its sums.
        gain: scores two sides, given the least that they must have.
        least: arrays that `gain` takes; it must close over none.
        width: of the codes.
        has_missing: whether values may be missing.
    """
    n, nodes = len(code), total.shape[1]
    row_bits, slot_bits = max(n - 1, 1).bit_length(), nodes.bit_length()
    moves = slot < nodes
    key = jnp.where(moves, code.astype(jnp.int64), width + 1)
    key = (key << row_bits) + jnp.arange(n, dtype=jnp.int64)
    key = (key << slot_bits) + jnp.minimum(slot, nodes).astype(jnp.int64)
    low = row_bits + slot_bits
    key = radix.sort(key, low, low + (width + 1).bit_length())
    each = _walk(gain, row_bits, slot_bits)
    end = jnp.sum(moves, dtype=jnp.int32)
    right = each(key, end, q, total.T, jnp.zeros_like(total.T), least)
    if not has_missing:
        return right, jnp.zeros(nodes, bool)
    absent = moves & (code == width)
    missing = jnp.zeros_like(total.T)
    missing = missing.at[jnp.where(absent, slot, nodes)].add(q, mode="drop")
    end -= jnp.sum(absent, dtype=jnp.int32)
    left = each(key, end, q, total.T, missing, least)
    first = (left.gain == right.gain) & (left.below < right.below)
    goes = (left.above >= 0) & (first | (left.gain > right.gain))
    best = jax.tree.map(lambda a, b: jnp.where(goes, a, b), left, right)
    return best._replace(last=right.last), goes


def _walk(gain: Gain, row_bits: int, slot_bits: int) -> Callable:
    """The loop; under `vmap` batch after batch."""

    @jax.custom_batching.custom_vmap
    def walked(
        key: Array, end: Array, q: Array, total: Array, start: Array, least: Any
    ) -> Walked:
        channels = q.shape[1]
        none = (-1, -jnp.inf, -1, -1)  # last, gain, below, above
        parts = [jnp.full((len(total), 1), fill, q.dtype) for fill in none]
        table = jnp.concatenate([*parts, start, start], axis=1)

        def step(i: Array, table: Array) -> Array:
            word = _read(key, i)
            slot = (word & ((1 << slot_bits) - 1)).astype(jnp.int32)
            row = ((word >> slot_bits) & ((1 << row_bits) - 1)).astype(jnp.int32)
            code = (word >> (row_bits + slot_bits)).astype(q.dtype)
            read = _read(table, slot), _read(total, slot), code, slot
            here, whole, code, slot = lax.optimization_barrier(read)
            last, best, above, left = here[0], here[1], here[3], here[4 : 4 + channels]
            found = gain(left, whole - left, least)
            ends = (last >= 0) & (last != code)
            better = ends & ((found > best) | (above < 0))
            split = jnp.where(better, jnp.stack([found, last, code]), here[1:4])
            kept = jnp.where(better, left, here[4 + channels :])
            new = jnp.concatenate((code[None], split, left + _read(q, row), kept))
            at = slot, jnp.zeros_like(slot)
            return lax.dynamic_update_slice(
                table, new[None], at, allow_negative_indices=False
            )

        table = lax.fori_loop(0, end, step, table)
        last, below, above = (table[:, i].astype(jnp.int32) for i in (0, 2, 3))
        return Walked(table[:, 1], below, above, table[:, 4 + channels :].T, last)

    @walked.def_vmap
    def _(axis_size: int, in_batched: list[Any], *args: Any) -> tuple:
        with jax.enable_x64(True):
            args = jax.tree.map(
                lambda a, batched: (
                    a if batched else jnp.broadcast_to(a, (axis_size, *jnp.shape(a)))
                ),
                args,
                tuple(in_batched),
            )
            told = lax.map(lambda one: walked(*one), args)
        return told, jax.tree.map(lambda _: True, told)

    return walked


def _read(array: Array, at: Array) -> Array:
    return lax.dynamic_index_in_dim(
        array, at, keepdims=False, allow_negative_indices=False
    )
