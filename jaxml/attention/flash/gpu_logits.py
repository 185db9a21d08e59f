"""Logits on Hopper: what is added to the products of a tile, and what is hidden of it.

A tile's products come in float32 registers; a bias and segments are read from device
memory where the tile lies, and who sees whom follows from positions. Everything is in
base 2, in which the device has its exponential:

    x c = log2(e) (cap tanh(scale q k^T / cap) + bias)

A factor that is common to all stays aside as c, so that it costs one multiplication and
addition with the subtraction of the maximum. A tile may stand on its side, [keys,
queries], as the kernel that owns keys has it.
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxml.attention.flash.arrange import Layout, bias_and_mask, kind_of, limits_table
from jaxml.attention.flash.schedule import Sizes
from jaxml.attention.spec import Context, Operands
from jaxml.kernels.hopper import along, load, vector
from jaxml.kernels.shapes import padded
from jaxml.typing import Array

LOG2E = math.log2(math.e)


class Around(NamedTuple):
    """What lies in device memory beside query, key and value; None where it does not."""

    limits: Any
    bias: Any = None
    query_segments: Any = None
    key_segments: Any = None


def around_of(
    operands: Operands, context: Context, sizes: Sizes, *, on_side: bool = False
) -> Around:
    """Of a call; a bias without one of its axes loses it.

    A whole bias is turned for tiles that stand on their side: loads go along its rows.
    """
    limits = limits_table(context, sizes)
    bias = bias_and_mask(operands, context, sizes)
    if bias is not None and kind_of(bias) != "tile":
        bias = bias.squeeze(2 if kind_of(bias) == "keys" else 3)
    elif bias is not None and on_side:
        bias = bias.swapaxes(2, 3)
    rows, columns = context.query_segments, context.key_segments
    if rows is None or columns is None:
        return Around(limits, bias)
    rows = padded(rows, 1, sizes.block_q, "edge")
    return Around(limits, bias, rows, padded(columns, 1, sizes.block_k, "edge"))


class Tile(NamedTuple):
    """A rectangle of logits: where it starts, its size, and which axis queries are on."""

    batch: Any
    head: Any
    query: Any
    key: Any
    shape: tuple[int, int]
    query_axis: int = 0

    def queries(self) -> Any:
        """The slice of queries."""
        return pl.ds(self.query, self.shape[self.query_axis])

    def keys(self) -> Any:
        """The slice of keys."""
        return pl.ds(self.key, self.shape[1 - self.query_axis])


def logits(
    layout: Layout, around: Around, tile: Tile, s: Array, masked: bool
) -> tuple[Array, float, Array | None]:
    """From products: (x, c) with logits x c in base 2, c > 0; and the cap's slope."""
    spec = layout.spec
    factor, slope = spec.scale * LOG2E, None
    if spec.soft_cap is not None:
        # tanh by way of exp, whose error is that of a rounding.
        t = 1 - 2 / (1 + jnp.exp2(s * (2 * factor / spec.soft_cap)))
        s, slope, factor = spec.soft_cap * t, 1 - t * t, LOG2E
    if layout.bias is not None or factor <= 0:
        s, factor = s * factor, 1.0
    if layout.bias is not None:
        s = s + _bias(layout, around.bias, tile) * LOG2E
    if masked:
        s = jnp.where(_sees(layout, around, tile), s, -jnp.inf)
    return s, factor, slope


def _bias(layout: Layout, ref: Any, tile: Tile) -> Array:
    first = (
        tile.batch if ref.shape[0] > 1 else 0,
        tile.head if ref.shape[1] > 1 else 0,
    )
    if layout.bias == "tile":
        pair = (tile.queries(), tile.keys())
        place = ref.at[(*first, *(pair[::-1] if tile.query_axis else pair))]
        whole = load(place, plgpu.Layout.WGMMA)
        return whole.astype(jnp.float32)
    by_query = layout.bias == "queries"
    axis = tile.query_axis if by_query else 1 - tile.query_axis
    part = ref.at[(*first, tile.queries() if by_query else tile.keys())]
    return along(vector(part, axis).astype(jnp.float32), tile.shape, axis)


def _sees(layout: Layout, around: Around, tile: Tile) -> Array:
    """Who sees whom."""
    spec, shape, axis = layout.spec, tile.shape, tile.query_axis
    row = tile.batch if around.limits.shape[0] > 1 else 0
    offset, num_queries, num_keys = (around.limits[row, n] for n in range(3))

    def index(axis: int) -> Array:
        where = plgpu.Layout.WGMMA
        return plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=where)

    i, j = index(axis) + tile.query, index(1 - axis) + tile.key
    sees = (i < num_queries) & (j < num_keys)
    if spec.left is not None:
        sees &= j >= i + (offset - spec.left)
    if spec.right is not None:
        sees &= j <= i + (offset + spec.right)
    if layout.has_segments:
        rows = vector(around.query_segments.at[tile.batch, tile.queries()], axis)
        columns = vector(around.key_segments.at[tile.batch, tile.keys()], 1 - axis)
        sees &= along(rows, shape, axis) == along(columns, shape, 1 - axis)
    return sees
