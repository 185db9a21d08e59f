"""Flash attention on a TPU, backward: one kernel sums over queries, one over keys.

Both make the tile again, on its side as in the forward pass, and read lse and delta as
rows beside it:

    p = exp(s - lse),   ds = p (v d_out^T - delta) slope
    dv += p d_out,  dk += ds q    for one column of tiles, over rows and query heads
    dq += ds^T k                  for one row of tiles, over columns

Two kernels make the tile twice, and in exchange no sum crosses a grid step that another
core may run: the same bits every time. Heads that share keys are summed in fast memory.

Reference: Dao et al., "FlashAttention", NeurIPS 2022, https://arxiv.org/abs/2205.14135
(algorithm 4).
"""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxml.attention.flash.arrange import Layout, delta_of, layout_of, safe_lse
from jaxml.attention.flash.schedule import most_steps
from jaxml.attention.flash.tpu import (
    Around,
    around_of,
    by_head,
    call,
    limits_at,
    logits,
    product,
    sizes_of,
    specs_of_around,
    tables_of,
    visited,
    when_visited,
)
from jaxml.attention.spec import Context, Operands, Spec
from jaxml.kernels.shapes import like, unpadded
from jaxml.typing import Array


def backward(
    spec: Spec,
    operands: Operands,
    context: Context,
    results: tuple[Array, Array],
    saved: tuple[()],
    changes: tuple[Array, Array],
    *,
    block: int = 512,
    interpret: bool = False,
) -> tuple[Array, Array, Array]:
    """Gradients of query, key and value."""
    del saved
    sizes = sizes_of(operands, block)
    layout = layout_of(spec, operands, context, sizes)
    d_out, delta = delta_of(results[0], changes, sizes.block_q)
    lse = safe_lse(results[1], sizes.block_q)
    q, d_out = (by_head(x, sizes.block_q) for x in (operands.query, d_out))
    k, v = (by_head(x, sizes.block_k) for x in (operands.key, operands.value))
    around = around_of(operands, context, sizes)
    arrays = [q, k, v, d_out, lse[:, :, None], delta[:, :, None], *around]
    dk, dv = _over_rows(layout, arrays, context, interpret)
    dq = _over_columns(layout, arrays, context, interpret)
    return tuple(
        unpadded(x.swapaxes(1, 2), of.shape)
        for x, of in zip((dq, dk, dv), operands[:3], strict=True)
    )


def _specs(layout: Layout, arrays: list[Any], at: Any) -> list[Any]:
    """Blocks of all inputs; `at` gives (batch, query head, row, column of tiles)."""
    sizes, groups = layout.sizes, layout.groups
    dim, width = arrays[0].shape[3], arrays[2].shape[3]

    def of_query(*step: Any) -> tuple[Any, ...]:
        b, h, i, _ = at(*step)
        return b, h, i, 0

    def of_key(*step: Any) -> tuple[Any, ...]:
        b, h, _, j = at(*step)
        return b, lax.div(h, groups), j, 0

    def row(*step: Any) -> tuple[Any, ...]:
        b, h, i, _ = at(*step)
        return b, h, 0, i

    def block_of(rows: int, columns: int, place: Any) -> pl.BlockSpec:
        return pl.BlockSpec((None, None, rows, columns), place)

    return [
        block_of(sizes.block_q, dim, of_query),
        block_of(sizes.block_k, dim, of_key),
        block_of(sizes.block_k, width, of_key),
        block_of(sizes.block_q, width, of_query),
        block_of(1, sizes.block_q, row),
        block_of(1, sizes.block_q, row),
        *specs_of_around(layout, Around(*arrays[6:]), at),
    ]


def _weights(
    layout: Layout, refs: list[Any], place: tuple[Any, Any], ends: Any
) -> tuple[Array, Array]:
    """(p, ds) of a tile on its side, in the dtype they are multiplied in."""
    q, k, v, d_out, lse, delta = (ref[...] for ref in refs[:6])
    s, slope = logits(layout, q, k, Around(*refs[6:]), place, ends)
    p = jnp.exp(s - lse)
    ds = p * (product(v, d_out, (1, 1)) - delta)
    ds = ds if slope is None else ds * slope
    return p.astype(q.dtype), ds.astype(q.dtype)


def _over_rows(
    layout: Layout, arrays: list[Any], context: Context, interpret: bool
) -> Any:
    """(dk, dv): for each column of tiles, over the queries of all heads that share it."""
    sizes, groups = layout.sizes, layout.groups
    k, v = arrays[1], arrays[2]
    most = most_steps(layout.spec, sizes, by_column=True)

    def at(b: Any, h: Any, j: Any, g: Any, n: Any, ranges: Any, _: Any) -> Any:
        return b, h * groups + g, visited(ranges, b, j, sizes.wide, n), j

    def mine(b: Any, h: Any, j: Any, *_: Any) -> tuple[Any, ...]:
        return b, h, j, 0

    def kernel(ranges: Any, limits: Any, *refs: Any) -> None:
        *inputs, dk_ref, dv_ref, dk_sum, dv_sum = refs
        b, _, j, g, n = (pl.program_id(axis) for axis in range(5))

        @pl.when((g == 0) & (n == 0))
        def start() -> None:
            dk_sum[...] = jnp.zeros_like(dk_sum)
            dv_sum[...] = jnp.zeros_like(dv_sum)

        @when_visited(layout, ranges, (b, j), sizes.wide, n)
        def add(masked: bool) -> None:
            place = visited(ranges, b, j, sizes.wide, n), j
            ends = limits_at(limits, b) if masked else None
            p, ds = _weights(layout, inputs, place, ends)
            dk_sum[...] += product(ds, inputs[0][...], (1, 0))
            dv_sum[...] += product(p, inputs[3][...], (1, 0))

        @pl.when((g == groups - 1) & (n == most - 1))
        def finish() -> None:
            dk_ref[...] = (dk_sum[...] * layout.spec.scale).astype(dk_ref.dtype)
            dv_ref[...] = dv_sum[...].astype(dv_ref.dtype)

    shapes = [(sizes.block_k, x.shape[3]) for x in (k, v)]
    return call(
        kernel,
        "flash_backward_keys",
        tables_of(layout, context, by_column=True),
        arrays,
        _specs(layout, arrays, at),
        [
            (
                like(arrays, x.shape, x.dtype),
                pl.BlockSpec((None, None, *shape), mine),
            )
            for x, shape in zip((k, v), shapes, strict=True)
        ],
        [pltpu.VMEM(shape, jnp.float32) for shape in shapes],
        (*k.shape[:2], sizes.wide, groups, most),
        2,
        interpret,
    )


def _over_columns(
    layout: Layout, arrays: list[Any], context: Context, interpret: bool
) -> Any:
    """dq: for each row of tiles, over the keys."""
    sizes, q = layout.sizes, arrays[0]
    most = most_steps(layout.spec, sizes)

    def at(b: Any, h: Any, i: Any, n: Any, ranges: Any, _: Any) -> Any:
        return b, h, i, visited(ranges, b, i, sizes.tall, n)

    def kernel(ranges: Any, limits: Any, *refs: Any) -> None:
        *inputs, dq_ref, dq_sum = refs
        b, _, i, n = (pl.program_id(axis) for axis in range(4))

        @pl.when(n == 0)
        def start() -> None:
            dq_sum[...] = jnp.zeros_like(dq_sum)

        @when_visited(layout, ranges, (b, i), sizes.tall, n)
        def add(masked: bool) -> None:
            place = i, visited(ranges, b, i, sizes.tall, n)
            ends = limits_at(limits, b) if masked else None
            _, ds = _weights(layout, inputs, place, ends)
            dq_sum[...] += product(ds, inputs[1][...], (0, 0))

        @pl.when(n == most - 1)
        def finish() -> None:
            dq_ref[...] = (dq_sum[...] * layout.spec.scale).astype(dq_ref.dtype)

    block = (sizes.block_q, q.shape[3])
    place = pl.BlockSpec((None, None, *block), lambda b, h, i, *_: (b, h, i, 0))
    (dq,) = call(
        kernel,
        "flash_backward_queries",
        tables_of(layout, context),
        arrays,
        _specs(layout, arrays, at),
        [(like(arrays, q.shape, q.dtype), place)],
        [pltpu.VMEM(block, jnp.float32)],
        (*q.shape[:2], sizes.tall, most),
        1,
        interpret,
    )
    return dq
