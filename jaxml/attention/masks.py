"""Who sees whom, of any rectangle of queries and keys, and which rectangles are empty.

Query i stands at position i + offset among the keys, and sees key j where all hold:

    j >= i + offset - left,    j <= i + offset + right      (right = 0 is causal)
    i < query length,          j < key length
    segment of i = segment of j,    mask[i, j]

`visible` answers for one tile from its positions, so that no matrix of the whole is ever
made; `occupied` answers for all tiles at once, from their corners, so that empty tiles
are never computed. It may call an empty tile occupied, never the reverse. `filled` answers
the opposite question, in which tiles nothing is hidden, and errs to the other side.

The trap is a causal mask of unequal lengths: the corner in which the triangle starts is a
choice. Offset 0 aligns the first query with the first key, keys - queries the last with
the last.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxml.attention.spec import Spec
from jaxml.typing import Array, Bool, Float, Int


class Rows(NamedTuple):
    """Queries of one head: their numbers and, if any, their segments."""

    number: Int[Array, "rows"]
    segment: Int[Array, "rows"] | None = None


class Columns(NamedTuple):
    """Keys of one head: their numbers and, if any, their segments."""

    number: Int[Array, "columns"]
    segment: Int[Array, "columns"] | None = None


class Limits(NamedTuple):
    """What one sample says about all of its queries and keys."""

    offset: Int[Array, ""]
    num_queries: Int[Array, ""] | None = None
    num_keys: Int[Array, ""] | None = None


def visible(
    spec: Spec,
    limits: Limits,
    rows: Rows,
    columns: Columns,
    mask: Bool[Array, "rows columns"] | None = None,
) -> Bool[Array, "rows columns"] | None:
    """Whether each query sees each key; None if all see all."""
    i, j = rows.number[:, None], columns.number[None, :]
    position = i + limits.offset
    conditions = [] if mask is None else [mask]
    if spec.left is not None:
        conditions.append(j >= position - spec.left)
    if spec.right is not None:
        conditions.append(j <= position + spec.right)
    if limits.num_queries is not None:
        conditions.append(i < limits.num_queries)
    if limits.num_keys is not None:
        conditions.append(j < limits.num_keys)
    if rows.segment is not None and columns.segment is not None:
        conditions.append(rows.segment[:, None] == columns.segment[None, :])
    if not conditions:
        return None
    result = conditions[0]
    for condition in conditions[1:]:
        result = result & condition
    return result


def occupied(
    spec: Spec,
    limits: Limits,
    rows: Rows,
    columns: Columns,
    mask: Bool[Array, "_ _"] | None = None,
) -> Bool[Array, "tall wide"]:
    """Whether any query of each row of tiles may see any key of each column of tiles.

    Args:
        spec: the window.
        limits: of the sample.
        rows: number and segment of all queries, [tall, rows of a tile].
        columns: of all keys, [wide, columns of a tile].
        mask: whether a dense mask leaves anything of the tile, either axis may be one.
    """
    top, bottom = rows.number[:, :1], rows.number[:, -1:]
    first, last = columns.number[None, :, 0], columns.number[None, :, -1]
    result = jnp.ones((top.shape[0], first.shape[1]), bool)
    if mask is not None:
        result &= mask
    if spec.left is not None:
        result &= last >= top + limits.offset - spec.left
    if spec.right is not None:
        result &= first <= bottom + limits.offset + spec.right
    if limits.num_queries is not None:
        result &= top < limits.num_queries
    if limits.num_keys is not None:
        result &= first < limits.num_keys
    if rows.segment is not None and columns.segment is not None:
        low, high = rows.segment.min(1)[:, None], rows.segment.max(1)[:, None]
        result &= columns.segment.max(1)[None, :] >= low
        result &= columns.segment.min(1)[None, :] <= high
    return result


def filled(
    spec: Spec, limits: Limits, rows: Rows, columns: Columns
) -> Bool[Array, "tall wide"]:
    """Whether every query of a row of tiles sees every key of a column of tiles.

    Args:
        spec: the window.
        limits: of the sample.
        rows: number and segment of all queries, [tall, rows of a tile].
        columns: of all keys, [wide, columns of a tile].
    """
    top, bottom = rows.number[:, :1], rows.number[:, -1:]
    first, last = columns.number[None, :, 0], columns.number[None, :, -1]
    result = jnp.ones((top.shape[0], first.shape[1]), bool)
    if spec.left is not None:
        result &= first >= bottom + limits.offset - spec.left
    if spec.right is not None:
        result &= last <= top + limits.offset + spec.right
    if limits.num_queries is not None:
        result &= bottom < limits.num_queries
    if limits.num_keys is not None:
        result &= last < limits.num_keys
    if rows.segment is not None and columns.segment is not None:
        low, high = rows.segment.min(1)[:, None], rows.segment.max(1)[:, None]
        result &= (low == columns.segment.min(1)[None, :]) & (low == high)
        result &= high == columns.segment.max(1)[None, :]
    return result


def kept(
    rate: float,
    seeds: Array,
    head: Int[Array, ""],
    rows: Int[Array, "rows"],
    columns: Int[Array, "columns"],
) -> Float[Array, "rows columns"]:
    """Factors of dropout: 0 with probability `rate`, else 1 / (1 - rate).

    They are a function of sample, head, query and key, not of the tile, the block size or
    the backend: every pass over the same call, and every way to cut it, sees the same.
    """
    by_row = _words(seeds, 2 * head, rows)
    by_column = _words(seeds, 2 * head + 1, columns)
    bits = _scramble(by_row[:, None] ^ by_column[None, :])
    keep = bits >= jnp.uint32(min(round(rate * 2**32), 2**32 - 1))
    return keep * (1 / (1 - rate))


def _words(seeds: Array, stream: Array, index: Array) -> Array:
    """Random words: a keyed hash of the stream and the index."""
    key = jax.random.fold_in(
        jax.random.wrap_key_data(seeds, impl="threefry2x32"), stream
    )
    return jax.vmap(lambda i: jax.random.bits(jax.random.fold_in(key, i)))(index)


def _scramble(x: Array) -> Array:
    """An invertible mixing of 32 bits: every bit of `x` flips half of the result's."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ (x >> shift)) * jnp.uint32(factor)
    return x ^ (x >> 16)
