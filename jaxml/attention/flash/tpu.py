"""Flash attention on a TPU, forward: Pallas, one grid step per tile that is visited.

Tiles stand on their side, [keys, queries]: the maximum and the sum of a query run over
sublanes, which is cheap, its statistics are one row [1, queries], and the logits come
from k q^T. The output is gathered as [dim, queries] and turned once per row of tiles.

    s = k q^T,   m' = max(m, max_k s),   p = exp(s - m'),   acc = acc e^(m - m') + v^T p

The grid's last axis counts steps, not tiles: step n visits tile lo + n of the schedule,
and steps after hi load nothing new and do nothing. A window bounds their number.

Heads share keys through the index of the block alone. Dims are padded to 128 lanes, as
the TPU's memory does anyway.

Reference: Dao, "FlashAttention-2", ICLR 2024, https://arxiv.org/abs/2307.08691
(algorithm 1); Rabe and Staats, "Self-attention Does Not Need O(n^2) Memory", 2021,
https://arxiv.org/abs/2112.05682.
"""

from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxml.attention.flash.arrange import (
    FLOOR,
    Layout,
    bias_and_mask,
    kind_of,
    layout_of,
    limits_table,
)
from jaxml.attention.flash.schedule import (
    FULL_HI,
    FULL_LO,
    HI,
    LO,
    Sizes,
    most_steps,
    schedule,
)
from jaxml.attention.spec import Context, Operands, Spec
from jaxml.kernels.shapes import like, padded, unpadded
from jaxml.typing import Array, Float

LANES = 128


class Around(NamedTuple):
    """Blocks beside query, key and value; None where the call has none."""

    bias: Any
    query_segments: Any
    key_segments: Any


def sizes_of(operands: Operands, block: int) -> Sizes:
    """Tiles of at most so many queries and keys, multiples of the lanes."""
    queries, keys = operands.query.shape[1], operands.key.shape[1]
    block_q, block_k = (min(block, -(-n // LANES) * LANES) for n in (queries, keys))
    return Sizes(queries, keys, block_q, block_k)


def by_head(x: Float[Array, "B T N D"], block: int) -> Float[Array, "B N rows lanes"]:
    """Heads first, lengths and dims padded."""
    return padded(padded(x.swapaxes(1, 2), 2, block), 3, LANES)


def around_of(operands: Operands, context: Context, sizes: Sizes) -> Around:
    """A bias turned where that is cheap, and segments along lanes and along sublanes."""
    bias = bias_and_mask(operands, context, sizes)
    if bias is not None and kind_of(bias) != "tile":
        bias = bias.swapaxes(2, 3)
    if context.query_segments is None or context.key_segments is None:
        return Around(bias, None, None)
    rows = padded(context.query_segments, 1, sizes.block_q, "edge")[:, None, :]
    columns = padded(context.key_segments, 1, sizes.block_k, "edge")[:, :, None]
    return Around(bias, rows, jnp.broadcast_to(columns, (*columns.shape[:2], LANES)))


def tables_of(
    layout: Layout, context: Context, *, by_column: bool = False
) -> tuple[Array, Array]:
    """The schedule and the limits, flat for the scalar memory."""
    ranges = schedule(layout.spec, context, layout.sizes, by_column=by_column)
    limits = limits_table(context, layout.sizes)
    return ranges.reshape(-1), limits.reshape(-1)


def range_at(ranges: Any, batch: Any, tile: Any, tiles: int, entry: int) -> Any:
    """An entry of the schedule; one sample's serves all where there is one."""
    rows = ranges.shape[0] // (4 * tiles)
    row = tile if rows == 1 else batch * tiles + tile
    return ranges[row * 4 + entry]


def visited(ranges: Any, batch: Any, tile: Any, tiles: int, step: Any) -> Any:
    """The tile of a step; the last one again when there are no more."""
    lo, hi = (range_at(ranges, batch, tile, tiles, at) for at in (LO, HI))
    return jnp.minimum(lo + step, jnp.maximum(hi - 1, 0))


def specs_of_around(layout: Layout, around: Around, at: Any) -> Around:
    """Their blocks; `at` gives (batch, head, row, column of tiles) of a grid step."""
    block_q, block_k = layout.sizes.block_q, layout.sizes.block_k

    def bias_at(*step: Any) -> tuple[Any, ...]:
        b, h, i, j = at(*step)
        shape = around.bias.shape
        first = (b if shape[0] > 1 else 0, h if shape[1] > 1 else 0)
        places = {"tile": (i, j), "keys": (j, 0), "queries": (0, i)}
        return (*first, *places[layout.bias or "tile"])

    blocks = {
        "tile": (block_q, block_k),
        "keys": (block_k, 1),
        "queries": (1, block_q),
    }
    bias = rows = columns = None
    if layout.bias is not None:
        bias = pl.BlockSpec((None, None, *blocks[layout.bias]), bias_at)
    if layout.has_segments:
        rows = pl.BlockSpec((None, 1, block_q), lambda *s: (at(*s)[0], 0, at(*s)[2]))
        columns = pl.BlockSpec(
            (None, block_k, LANES), lambda *s: (at(*s)[0], at(*s)[3], 0)
        )
    return Around(bias, rows, columns)


def product(a: Array, b: Array, contract: tuple[int, int]) -> Array:
    """The product a b over one axis of each, in float32."""
    dims = ((contract[:1], contract[1:]), ((), ()))
    exact = a.dtype == jnp.float32
    return lax.dot_general(
        a,
        b,
        dims,
        precision=lax.Precision.HIGHEST if exact else lax.Precision.DEFAULT,
        preferred_element_type=jnp.float32,
    )


def logits(
    layout: Layout,
    q: Array,
    k: Array,
    around: Around,
    place: tuple[Any, Any],
    limits: tuple[Any, Any, Any] | None,
) -> tuple[Float[Array, "keys queries"], Array | None]:
    """Of a tile on its side; hidden where `limits` are given; and the cap's slope."""
    s = product(k, q, (1, 1)) * layout.spec.scale
    slope = None
    cap = layout.spec.soft_cap
    if cap is not None:
        t = jnp.tanh(s / cap)
        s, slope = cap * t, 1 - t * t
    if around.bias is not None:
        bias = around.bias[...].astype(jnp.float32)
        s = s + (bias.T if layout.bias == "tile" else bias)
    if limits is not None:
        s = jnp.where(_sees(layout, around, place, limits), s, -jnp.inf)
    return s, slope


def _sees(
    layout: Layout,
    around: Around,
    place: tuple[Any, Any],
    limits: tuple[Any, Any, Any],
) -> Array:
    """Who sees whom in tile `place`, on its side."""
    spec, sizes = layout.spec, layout.sizes
    offset, num_queries, num_keys = limits
    shape = (sizes.block_k, sizes.block_q)
    i = lax.broadcasted_iota(jnp.int32, shape, 1) + place[0] * sizes.block_q
    j = lax.broadcasted_iota(jnp.int32, shape, 0) + place[1] * sizes.block_k
    sees = (i < num_queries) & (j < num_keys)
    if spec.left is not None:
        sees &= j >= i + (offset - spec.left)
    if spec.right is not None:
        sees &= j <= i + (offset + spec.right)
    if around.query_segments is not None:
        sees &= around.key_segments[:, :1] == around.query_segments[...]
    return sees


def limits_at(limits: Any, batch: Any) -> tuple[Any, Any, Any]:
    """(offset, end of queries, end of keys) of a sample."""
    row = 0 if limits.shape[0] == 3 else batch
    return tuple(limits[row * 3 + n] for n in range(3))


def when_visited(
    layout: Layout, ranges: Any, at: tuple[Any, Any], tiles: int, step: Any
) -> Any:
    """Runs f(masked) if this step visits a tile; unmasked where nothing is hidden."""
    batch, tile = at
    entry = partial(range_at, ranges, batch, tile, tiles)
    there = entry(LO) + step
    inside = there < entry(HI)
    full = (there >= entry(FULL_LO)) & (there < entry(FULL_HI))

    def run(f: Any) -> None:
        if not layout.masked:
            pl.when(inside)(partial(f, False))
            return
        pl.when(inside & full)(partial(f, False))
        pl.when(inside & ~full)(partial(f, True))

    return run


def call(
    kernel: Any,
    name: str,
    tables: tuple[Array, Array],
    arrays: list[Any],
    specs: list[Any],
    results: list[tuple[Any, Any]],
    scratch: list[Any],
    grid: tuple[int, ...],
    serial: int,
    interpret: bool,
) -> Any:
    """A Pallas call whose first two arrays are scalars known before its blocks load.

    Args:
        kernel: gets refs of the tables, of the arrays, of the results, of the scratch.
        name: in a profile.
        tables: the scalars.
        arrays: inputs, None where there is none.
        specs: of their blocks.
        results: of each, its type and its block.
        scratch: shapes in fast memory.
        grid: steps of each axis.
        serial: how many of the last axes must run in order.
        interpret: run it without a TPU.
    """
    there = [n for n, x in enumerate(arrays) if x is not None]

    def body(*refs: Any) -> None:
        given = dict(zip(there, refs[2:], strict=False))
        inputs = [given.get(n) for n in range(len(arrays))]
        kernel(*refs[:2], *inputs, *refs[2 + len(there) :])

    semantics = ("parallel",) * (len(grid) - serial) + ("arbitrary",) * serial
    return pl.pallas_call(
        body,
        [shape for shape, _ in results],
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=grid,
            in_specs=[specs[n] for n in there],
            out_specs=[spec for _, spec in results],
            scratch_shapes=scratch,
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=semantics),
        interpret=interpret,
        name=name,
    )(*tables, *(arrays[n] for n in there))


def forward(
    spec: Spec,
    operands: Operands,
    context: Context,
    *,
    block: int = 512,
    interpret: bool = False,
) -> tuple[tuple[Array, Array], tuple[()]]:
    """(out, lse), and nothing besides."""
    sizes = sizes_of(operands, block)
    layout = layout_of(spec, operands, context, sizes)
    q = by_head(operands.query, sizes.block_q)
    k, v = (by_head(x, sizes.block_k) for x in (operands.key, operands.value))
    around = around_of(operands, context, sizes)
    batch, heads, length, dim = q.shape
    width, groups, tall = v.shape[3], layout.groups, sizes.tall
    most = most_steps(spec, sizes)

    def at(b: Any, h: Any, i: Any, n: Any, ranges: Any, _: Any) -> tuple[Any, ...]:
        return b, h, i, visited(ranges, b, i, tall, n)

    def of_query(b: Any, h: Any, i: Any, *_: Any) -> tuple[Any, ...]:
        return b, h, i, 0

    def of_key(*step: Any) -> tuple[Any, ...]:
        b, h, _, j = at(*step)
        return b, lax.div(h, groups), j, 0

    def row(b: Any, h: Any, i: Any, *_: Any) -> tuple[Any, ...]:
        return b, h, 0, i

    def block_of(rows: int, columns: int, place: Any) -> pl.BlockSpec:
        return pl.BlockSpec((None, None, rows, columns), place)

    out, lse = call(
        partial(_kernel, layout, most),
        "flash_forward",
        tables_of(layout, context),
        [q, k, v, *around],
        [
            block_of(sizes.block_q, dim, of_query),
            block_of(sizes.block_k, dim, of_key),
            block_of(sizes.block_k, width, of_key),
            *specs_of_around(layout, around, at),
        ],
        [
            (
                like(operands, (batch, heads, length, width), q.dtype),
                block_of(sizes.block_q, width, of_query),
            ),
            (
                like(operands, (batch, heads, 1, length), jnp.float32),
                block_of(1, sizes.block_q, row),
            ),
        ],
        [
            pltpu.VMEM((1, sizes.block_q), jnp.float32),
            pltpu.VMEM((1, sizes.block_q), jnp.float32),
            pltpu.VMEM((width, sizes.block_q), jnp.float32),
        ],
        (batch, heads, tall, most),
        1,
        interpret,
    )
    shape = operands.query.shape[:3]
    out = unpadded(out.swapaxes(1, 2), (*shape, operands.value.shape[3]))
    return (out, unpadded(lse[:, :, 0].swapaxes(1, 2), shape)), ()


def _kernel(
    layout: Layout,
    most: int,
    ranges: Any,
    limits: Any,
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    bias: Any,
    query_segments: Any,
    key_segments: Any,
    out_ref: Any,
    lse_ref: Any,
    m_ref: Any,
    l_ref: Any,
    acc_ref: Any,
) -> None:
    """One step: a tile absorbed into the running softmax of its row."""
    b, _, i, n = (pl.program_id(axis) for axis in range(4))
    tall = layout.sizes.tall
    around = Around(bias, query_segments, key_segments)

    @pl.when(n == 0)
    def start() -> None:
        m_ref[...] = jnp.full_like(m_ref, FLOOR)
        l_ref[...] = jnp.zeros_like(l_ref)
        acc_ref[...] = jnp.zeros_like(acc_ref)

    @when_visited(layout, ranges, (b, i), tall, n)
    def absorb(masked: bool) -> None:
        place = i, visited(ranges, b, i, tall, n)
        ends = limits_at(limits, b) if masked else None
        s, _ = logits(layout, q_ref[...], k_ref[...], around, place, ends)
        before = m_ref[...]
        m = jnp.maximum(before, jnp.max(s, axis=0, keepdims=True))
        p = jnp.exp(s - m)
        decay = jnp.exp(before - m)
        m_ref[...] = m
        l_ref[...] = l_ref[...] * decay + jnp.sum(p, axis=0, keepdims=True)
        v = v_ref[...]
        acc_ref[...] = acc_ref[...] * decay + product(v, p.astype(v.dtype), (0, 0))

    @pl.when(n == most - 1)
    def finish() -> None:
        total = l_ref[...]
        some = total > 0
        total = jnp.where(some, total, 1)
        out_ref[...] = (acc_ref[...] / total).T.astype(out_ref.dtype)
        lse_ref[...] = jnp.where(some, m_ref[...] + jnp.log(total), -jnp.inf)
