"""Integers in ascending order, by counting digits: several times faster than comparisons.

XLA's CPU backend sorts 65,110 int64 numbers in 2.8 ms, 43 ns each. Counting takes them in
order of one digit of twelve bits after the other, from the low bits up: count every digit,
add up where each begins, and put number after number in its place. Two digits take 0.5 ms.
Bits that are in order already cost nothing: where the row stands in the low bits, the
bits above it are all that is sorted.

Backends that work side by side have a sort of their own, and use it.

The trap: what is read from an array that a loop also writes must be used once, or XLA
copies the whole of it in every step. Hence a count is written first, and then read again.

Reference: Knuth, "The Art of Computer Programming", volume 3, 2nd edition, 1998 (sections
5.2, distribution counting, and 5.2.5, digits from the low ones up),
https://www-cs-faculty.stanford.edu/~knuth/taocp.html.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jaxml.trees.scatter import add_at, kind_of
from jaxml.typing import Array, Int

DIGIT = 12
"""Bits of a digit at most: so many counts stay in the nearest cache."""


def sort(keys: Int[Array, " n"], low: int, high: int) -> Int[Array, " n"]:
    """Keys in ascending order.

    Args:
        keys: from 0 up to 2^high, in the order of their bits below `low`.
        low: the first bit that is not in order.
        high: the number of bits.

    >>> sort(jnp.array([5, 3, 4, 1]), 0, 3).tolist()
    [1, 3, 4, 5]
    """
    if high <= low:
        return keys
    return lax.platform_dependent(keys, cpu=by_digits(low, high), default=jnp.sort)


def by_digits(low: int, high: int) -> Callable[[Array], Array]:
    """Sorting by the bits from `low` up to `high`, alone; under `vmap` batch after batch."""
    digits = -(-(high - low) // DIGIT)
    width = -(-(high - low) // digits)

    @jax.custom_batching.custom_vmap
    def ordered(keys: Array) -> Array:
        for first in range(low, high, width):
            keys = _by_digit(keys, first, min(width, high - first))
        return keys

    @ordered.def_vmap
    def _(axis_size: int, in_batched: list[bool], keys: Array) -> tuple[Array, bool]:
        del axis_size, in_batched
        with jax.enable_x64(keys.dtype == jnp.int64):
            return lax.map(ordered, keys), True

    return ordered


def _by_digit(keys: Int[Array, " n"], first: int, width: int) -> Int[Array, " n"]:
    """Keys in the order of `width` bits from the first on, else as they are."""
    mask = (1 << width) - 1
    digit = ((keys >> first) & mask).astype(kind_of(mask + 1))
    count = add_at(jnp.ones((1, len(keys)), jnp.int32), digit, mask + 1)[0]
    start = jnp.cumsum(count, dtype=jnp.int32) - count

    def put(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        ends, ordered = carry
        key = _read(keys, i)
        at = ((key >> first) & mask).astype(jnp.int32)
        ends = _write(ends, _read(ends, at) + 1, at)
        return ends, _write(ordered, key, _read(ends, at) - 1)

    return lax.fori_loop(0, len(keys), put, (start, jnp.zeros_like(keys)))[1]


def _read(array: Array, at: Array) -> Array:
    return lax.dynamic_index_in_dim(
        array, at, keepdims=False, allow_negative_indices=False
    )


def _write(array: Array, value: Array, at: Array) -> Array:
    return lax.dynamic_update_index_in_dim(
        array, value, at, 0, allow_negative_indices=False
    )
