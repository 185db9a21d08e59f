"""Cutting attention into tiles, and running over them in order.

Per head of keys the logits are a rectangle: its rows are the queries of all query heads
that share these keys, its columns the keys. `Tiles` says how it is cut; `cut` brings the
operands into the layout [batch, heads, tile, row of the tile, dim] in one copy, so that
every product afterwards is a plain one of contiguous matrices; `over_heads` runs a
function over batch and heads, one at a time or several where one is small.

An axis of one in a bias or a mask is shared: it is never repeated in memory.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxml.attention.masks import Columns, Limits, Rows
from jaxml.attention.spec import Context, Operands
from jaxml.typing import Array, Float, Int

ROWS = 1024  # of a tile
ENTRIES = 2**19  # of a tile: two megabytes of logits, which stay in a cache


class Tiles(NamedTuple):
    """How the logits [B, K, G T, S] are cut; all but the lengths divide what they cut.

    Attributes:
        groups: query heads per head of keys; a tile has the queries of all of them.
        queries: of a tile, per query head.
        keys: of a tile.
        heads: of keys at once; above 1 only where a head is a single tile.
        batch: samples at once; above 1 only where all heads are taken at once.
    """

    groups: int
    queries: int
    keys: int
    heads: int = 1
    batch: int = 1

    @classmethod
    def of(cls, operands: Operands) -> "Tiles":
        """Tiles that are a matrix product's worth each, and fit into a cache."""
        batch, queries, heads, _ = operands.query.shape
        keys, groups = operands.key.shape[1], operands.groups
        heads //= groups
        size = groups * queries * keys
        if size <= ENTRIES:
            at_once = _divisor(heads, ENTRIES // size)
            samples = _divisor(batch, ENTRIES // (size * heads))
            samples = samples if at_once == heads else 1
            return cls(groups, queries, keys, at_once, samples)
        tall = _even(queries, max(1, ROWS // groups))
        return cls(groups, tall, _even(keys, max(1, ENTRIES // (groups * tall))))


def _divisor(n: int, most: int) -> int:
    return max(d for d in range(1, n + 1) if n % d == 0 and d <= max(1, most))


def _even(length: int, most: int) -> int:
    """The size of equal parts, a multiple of 8 if there are several."""
    parts = -(-length // most)
    return length if parts == 1 else -(-length // (8 * parts)) * 8


class Around(NamedTuple):
    """What the tiles of one head know besides their numbers.

    Attributes:
        limits: offset and lengths.
        rows: number and segment of every query, [tall, rows of a tile].
        columns: of every key, [wide, columns of a tile].
        mask: tiles of a dense mask, cut like a bias.
        head: number of this head of keys.
        seeds: of dropout.
    """

    limits: Limits
    rows: Rows
    columns: Columns
    head: Int[Array, ""]
    mask: Array | None = None
    seeds: Array | None = None


def cut(tiles: Tiles, operands: Operands) -> Operands:
    """Tiles of the operands that are there, all with the axes [batch, heads, ...].

    query: tall, rows, H; key and value: wide, columns, dim; bias: tall, wide, groups,
    queries, keys, where axes of one stay so.
    """
    q, k, v, bias = operands
    return Operands(
        None if q is None else cut_queries(q, tiles),
        None if k is None else _cut_keys(k, tiles),
        None if v is None else _cut_keys(v, tiles),
        None if bias is None else _cut_shared(bias, tiles),
    )


def cut_queries(
    x: Float[Array, "B T N D"], tiles: Tiles
) -> Float[Array, "B K tall rows D"]:
    """Rows of tiles: the queries of a whole group of heads stand in one tile."""
    x = _padded(x, 1, tiles.queries)
    batch, length, heads, dim = x.shape
    groups, queries = tiles.groups, tiles.queries
    shape = (batch, length // queries, queries, heads // groups, groups, dim)
    x = x.reshape(shape).transpose(0, 3, 1, 4, 2, 5)
    return x.reshape(*x.shape[:3], groups * queries, dim)


def uncut(
    x: Float[Array, "B K tall rows D"], tiles: Tiles, operands: Operands
) -> Float[Array, "B T N D"]:
    """The inverse of `cut_queries`."""
    batch, length, heads, _ = operands.query.shape
    x = x.reshape(*x.shape[:3], tiles.groups, tiles.queries, x.shape[-1])
    x = x.transpose(0, 2, 4, 1, 3, 5)
    return x.reshape(batch, -1, heads, x.shape[-1])[:, :length]


def _cut_keys(
    x: Float[Array, "B S K D"], tiles: Tiles
) -> Float[Array, "B K wide columns D"]:
    x = _padded(x, 1, tiles.keys).swapaxes(1, 2)
    return x.reshape(*x.shape[:2], -1, tiles.keys, x.shape[-1])


def _cut_shared(x: Array, tiles: Tiles) -> Array:
    batch, heads, queries, keys = x.shape
    tall = (1, 1) if queries == 1 else (-1, tiles.queries)
    wide = (1, 1) if keys == 1 else (-1, tiles.keys)
    x = x if queries == 1 else _padded(x, 2, tiles.queries)
    x = x if keys == 1 else _padded(x, 3, tiles.keys)
    groups = (1, 1) if heads == 1 else (heads // tiles.groups, tiles.groups)
    sizes = (-(-queries // tall[1]), tall[1], -(-keys // wide[1]), wide[1])
    x = x.reshape(batch, *groups, *sizes)
    return x.transpose(0, 1, 3, 5, 2, 4, 6)


def cut_context(tiles: Tiles, operands: Operands, context: Context) -> Around:
    """The context of every head, [batch, heads, ...]."""
    queries, keys = operands.query.shape[1], operands.key.shape[1]
    limits = Limits(
        offset=context.offset[:, None],
        num_queries=_limit(context.query_lengths, queries, tiles.queries),
        num_keys=_limit(context.key_lengths, keys, tiles.keys),
    )
    rows = Rows(
        _cut_index(queries, tiles.queries, tiles.groups),
        _cut_ids(context.query_segments, tiles.queries, tiles.groups),
    )
    columns = Columns(
        _cut_index(keys, tiles.keys), _cut_ids(context.key_segments, tiles.keys)
    )
    mask, seeds = context.mask, context.dropout_seeds
    return Around(
        limits=limits,
        rows=rows,
        columns=columns,
        head=jnp.arange(operands.key.shape[2])[None, :],
        mask=None if mask is None else _cut_shared(mask, tiles),
        seeds=None if seeds is None else seeds[:, None],
    )


def _limit(lengths: Array | None, length: int, size: int) -> Array | None:
    """Where the real rows end; None if nothing is padded, by the caller or here."""
    if lengths is None:
        return None if length % size == 0 else jnp.full((1, 1), length)
    return jnp.minimum(lengths, length)[:, None]


def _cut_index(length: int, size: int, groups: int = 1) -> Int[Array, "1 1 tiles size"]:
    index = jnp.arange(-(-length // size) * size).reshape(1, 1, -1, size)
    return jnp.tile(index, groups)


def _cut_ids(ids: Array | None, size: int, groups: int = 1) -> Array | None:
    if ids is None:
        return None
    ids = _padded(ids, 1, size, mode="edge").reshape(ids.shape[0], 1, -1, size)
    return jnp.tile(ids, groups)


def _padded(x: Array, axis: int, size: int, mode: str = "constant") -> Array:
    """An axis made a multiple of `size`."""
    missing = -x.shape[axis] % size
    if not missing:
        return x
    return jnp.pad(x, [(0, missing * (a == axis)) for a in range(x.ndim)], mode=mode)


def tile_at(x: Array, i: Array, j: Array) -> Array:
    """Tile (i, j) of a bias or a mask."""
    return x[i if x.shape[0] > 1 else 0, j if x.shape[1] > 1 else 0]


def tree_at(tree: Any, i: Array) -> Any:
    """Entry i of every leaf."""
    return jax.tree.map(lambda x: x[i], tree)


def spread(x: Array, tiles: Tiles) -> Array:
    """A tile [groups, queries, keys] with all its axes, as rows and columns."""
    shape = (tiles.groups, tiles.queries, tiles.keys)
    return jnp.broadcast_to(x, shape).reshape(-1, tiles.keys)


# Loops over axes that some arrays share.


def over_heads(
    f: Callable[..., Any], tiles: Tiles, operands: Operands, parts: tuple[Any, ...]
) -> Any:
    """Maps f over all heads; leaves of `parts` are [batch or 1, heads or 1, ...]."""
    batch, heads = operands.query.shape[0], operands.key.shape[2]

    def sample(parts: tuple[Any, ...]) -> Any:
        return map_axis(lambda x: f(*x), heads, tiles.heads, parts)

    return map_axis(sample, batch, tiles.batch, parts)


def map_axis(f: Callable[[Any], Any], size: int, at_once: int, tree: Any) -> Any:
    """Maps a first axis, of length `size` or else shared; `at_once` divides it."""
    if at_once == 1:
        return scan_axis(lambda _, x: (None, f(x)), None, size, tree)[1]
    axes = jax.tree.map(lambda x: 0 if x.shape[0] == size else None, tree)
    tree = jax.tree.map(lambda x: x if x.shape[0] == size else x[0], tree)
    together = jax.vmap(f, in_axes=(axes,), axis_size=at_once)
    if at_once == size:
        return together(tree)
    grouped = jax.tree.map(
        lambda x, axis: x[None] if axis is None else _group(x, at_once),
        tree,
        axes,
    )
    result = map_axis(together, size // at_once, 1, grouped)
    return jax.tree.map(lambda x: x.reshape(size, *x.shape[2:]), result)


def _group(x: Array, at_once: int) -> Array:
    return x.reshape(-1, at_once, *x.shape[1:])


def scan_axis(
    f: Callable[[Any, Any], tuple[Any, Any]], init: Any, size: int, tree: Any
) -> tuple[Any, Any]:
    """`lax.scan` over a first axis of length `size` or else shared."""
    leaves, structure = jax.tree.flatten(tree)
    scanned = [size > 1 and x.shape[0] == size for x in leaves]

    def step(carry: Any, xs: list[Array]) -> tuple[Any, Any]:
        rest = iter(xs)
        here = [next(rest) if s else x[0] for s, x in zip(scanned, leaves, strict=True)]
        return f(carry, jax.tree.unflatten(structure, here))

    if size == 1:
        carry, y = step(init, [])
        return carry, jax.tree.map(lambda x: x[None], y)
    xs = [x for s, x in zip(scanned, leaves, strict=True) if s]
    return lax.scan(step, init, xs)


def varying_like(x: Any, like: Any) -> Any:
    """Constants, typed by `shard_map` as differing between devices where `like` does.

    No array of `like` may be empty.
    """
    never = jnp.zeros((), bool)
    for leaf in jax.tree.leaves(like):
        never &= leaf.ravel()[0] != 0
    return jax.tree.map(lambda c: c + never.astype(c.dtype), x)
