"""What both backward kernels on Hopper begin with: their arrays, and a tile's weights.

    p = 2^(s c - lse),   ds = p (d_out v^T - delta) slope

where lse is in base 2 and slope is that of the soft cap.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxml.attention.flash.arrange import Layout, delta_of, safe_lse
from jaxml.attention.flash.gpu_logits import LOG2E, Around, Tile, logits
from jaxml.attention.flash.schedule import Sizes
from jaxml.attention.spec import Operands
from jaxml.kernels.hopper import WIDTH, along
from jaxml.kernels.shapes import padded
from jaxml.typing import Array


class Arrays(NamedTuple):
    """Of both kernels; lse in base 2 and delta lie along queries; all are padded."""

    q: Any
    k: Any
    v: Any
    d_out: Any
    lse: Any
    delta: Any


def arrays_of(
    operands: Operands, results: tuple[Array, Array], changes: Any, sizes: Sizes
) -> Arrays:
    """From a call, its results and their gradients."""
    d_out, delta = delta_of(results[0], changes, sizes.block_q)
    lse = safe_lse(results[1], sizes.block_q) * LOG2E

    def whole(x: Array, rows: int) -> Array:
        return padded(padded(x, 1, rows), 3, WIDTH)

    q, d_out = (whole(x, sizes.block_q) for x in (operands.query, d_out))
    k, v = (whole(x, sizes.block_k) for x in (operands.key, operands.value))
    return Arrays(q, k, v, d_out, lse, delta)


def weights(
    layout: Layout, around: Around, tile: Tile, s: Array, lse: Array, masked: bool
) -> tuple[Array, Array | None]:
    """p, from products and the lse of each query, and the cap's slope."""
    s, factor, slope = logits(layout, around, tile, s, masked)
    return jnp.exp2(s * factor - along(lse, tile.shape, tile.query_axis)), slope


def slopes(p: Array, dp: Array, delta: Array, tile: Tile, slope: Array | None) -> Array:
    """The gradient ds of the scaled products."""
    ds = p * (dp - along(delta, tile.shape, tile.query_axis))
    return ds if slope is None else ds * slope
