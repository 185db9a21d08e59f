"""Which tiles a kernel visits: one description for every backend and every pass.

For each row of tiles (or, in the pass over keys, each column) four numbers say it all:

    lo <= full_lo <= full_hi <= hi

Tiles outside [lo, hi) are empty and never loaded. Those in [full_lo, full_hi) hide
nothing and need no mask; they come first, in a loop without one. Four numbers per row
stay small where a list of tiles would grow with the square of the length.

The trap is a mask with holes: [lo, hi) is the hull of what is occupied, so every tile
that is not full must mask its elements, also an empty one.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxml.attention.masks import Columns, Limits, Rows, filled, occupied
from jaxml.attention.spec import Context, Spec
from jaxml.typing import Array, Int


class Sizes(NamedTuple):
    """Of a pass: lengths are padded to multiples of the tile's."""

    queries: int
    keys: int
    block_q: int
    block_k: int

    @property
    def tall(self) -> int:
        """Rows of tiles."""
        return -(-self.queries // self.block_q)

    @property
    def wide(self) -> int:
        """Columns of tiles."""
        return -(-self.keys // self.block_k)


LO, FULL_LO, FULL_HI, HI = range(4)


def schedule(
    spec: Spec, context: Context, sizes: Sizes, *, by_column: bool = False
) -> Int[Array, "batch tiles 4"]:
    """(lo, full_lo, full_hi, hi) of every row of tiles, or of every column.

    The batch axis is one where all samples share a schedule.
    """
    limits = limits_of(context, sizes)
    shared = [context.offset, limits.num_queries, limits.num_keys]
    shared += [context.query_segments]
    batch = max(x.shape[0] for x in shared if x is not None)
    i = _numbers(sizes.tall, sizes.block_q)
    j = _numbers(sizes.wide, sizes.block_k)

    def sample(
        limits: Limits, query_segments: Array | None, key_segments: Array | None
    ) -> Array:
        rows = Rows(i, _cut(query_segments, sizes.tall, sizes.block_q))
        columns = Columns(j, _cut(key_segments, sizes.wide, sizes.block_k))
        some = occupied(spec, limits, rows, columns)
        full = filled(spec, limits, rows, columns)
        if by_column:
            some, full = some.T, full.T
        lo, hi = _hull(some)
        full_lo, full_hi = _first_run(full)
        none = full_lo >= full_hi
        full_lo, full_hi = (jnp.where(none, lo, x) for x in (full_lo, full_hi))
        return jnp.stack([lo, full_lo, full_hi, hi], axis=-1).astype(jnp.int32)

    def whole(x: Array | None) -> Array | None:
        return None if x is None else jnp.broadcast_to(x, (batch, *x.shape[1:]))

    parts = jax.tree.map(whole, (limits, context.query_segments, context.key_segments))
    return jax.vmap(sample)(*parts)


def limits_of(context: Context, sizes: Sizes) -> Limits:
    """Where the real rows end, where that is not the end of the last tile."""
    queries, keys = context.query_lengths, context.key_lengths
    if queries is not None:
        queries = jnp.minimum(queries, sizes.queries)
    if keys is not None:
        keys = jnp.minimum(keys, sizes.keys)
    elif sizes.keys % sizes.block_k:
        keys = jnp.full((1,), sizes.keys, jnp.int32)
    return Limits(context.offset, queries, keys)


def most_steps(spec: Spec, sizes: Sizes, *, by_column: bool = False) -> int:
    """A bound of hi - lo that is known before any number: a window has one."""
    along, across = sizes.wide, sizes.tall
    block, step = sizes.block_q, sizes.block_k
    if by_column:
        along, across, block, step = across, along, step, block
    if spec.left is None or spec.right is None:
        return along
    return min(along, -(-(block + spec.left + spec.right) // step) + 1)


def _numbers(tiles: int, size: int) -> Int[Array, "tiles size"]:
    return jnp.arange(tiles * size, dtype=jnp.int32).reshape(tiles, size)


def _cut(ids: Array | None, tiles: int, size: int) -> Array | None:
    if ids is None:
        return None
    missing = tiles * size - ids.shape[0]
    return jnp.pad(ids, (0, missing), mode="edge").reshape(tiles, size)


def _hull(some: Array) -> tuple[Array, Array]:
    """First and one past the last of each row that is True; (0, 0) where none is."""
    size = some.shape[1]
    lo = jnp.argmax(some, axis=1)
    hi = size - jnp.argmax(some[:, ::-1], axis=1)
    any_ = jnp.any(some, axis=1)
    return jnp.where(any_, lo, 0), jnp.where(any_, hi, 0)


def _first_run(full: Array) -> tuple[Array, Array]:
    """Where the first run of True begins, and where it ends."""
    size = full.shape[1]
    index = jnp.arange(size)[None, :]
    start = jnp.where(jnp.any(full, axis=1), jnp.argmax(full, axis=1), size)
    after = ~full & (index > start[:, None])
    end = jnp.where(jnp.any(after, axis=1), jnp.argmax(after, axis=1), size)
    return start, end
