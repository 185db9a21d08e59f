"""What kernels of attention are given: masks, lengths and statistics as few kinds.

A mask becomes a bias of -inf, so that a kernel knows one thing that is added to logits.
Its axes of one stay so, in three kinds: a whole `tile`, a number per key (`keys`), or a
number per query (`queries`). Offset and lengths become a table of three numbers per
sample. lse and delta lie along queries, where a tile of the backward pass reads them.

The trap is a query that sees nothing: its lse is -inf, and exp(s - lse) would be inf.
`safe_lse` gives 1e30 there, from which every weight is 0.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from jaxml.attention.flash.schedule import Sizes, limits_of
from jaxml.attention.spec import Context, Operands, Spec
from jaxml.kernels.shapes import padded
from jaxml.typing import Array, Float, Int

NEVER = 2**30  # an end where there is none
FLOOR = -1e30  # the maximum of no logits: finite, so that differences are


class Layout(NamedTuple):
    """What the kernels of one call know before any number.

    Attributes:
        spec: of the call.
        sizes: lengths and tiles.
        groups: query heads per head of keys.
        bias: its kind.
        has_segments: whether tokens have segments.
        masked: whether anything but a bias may hide a key.
    """

    spec: Spec
    sizes: Sizes
    groups: int
    bias: str | None
    has_segments: bool
    masked: bool


def layout_of(spec: Spec, operands: Operands, context: Context, sizes: Sizes) -> Layout:
    """The static side of a call."""
    window = spec.left is not None or spec.right is not None
    ends = context.query_lengths is not None or context.key_lengths is not None
    segments = context.query_segments is not None
    padding = sizes.keys % sizes.block_k != 0
    return Layout(
        spec,
        sizes,
        operands.groups,
        kind_of(bias_and_mask(operands, context, sizes)),
        segments,
        window or ends or segments or padding,
    )


def bias_and_mask(
    operands: Operands, context: Context, sizes: Sizes
) -> Float[Array, "b n t s"] | None:
    """One bias, -inf where the mask hides; padded; not both t and s are one."""
    bias, mask = operands.bias, context.mask
    if bias is None and mask is None:
        return None
    if bias is None:
        bias = jnp.zeros((1, 1, 1, 1), operands.query.dtype)
    if mask is not None:
        bias = jnp.where(mask, bias, -jnp.inf)
    if bias.shape[2] == bias.shape[3] == 1:
        bias = jnp.broadcast_to(bias, (*bias.shape[:2], sizes.queries, 1))
    bias = bias if bias.shape[2] == 1 else padded(bias, 2, sizes.block_q)
    return bias if bias.shape[3] == 1 else padded(bias, 3, sizes.block_k)


def kind_of(bias: Array | None) -> str | None:
    """`tile`, `keys` or `queries`: which axes of a bias are there."""
    if bias is None:
        return None
    return "keys" if bias.shape[2] == 1 else "queries" if bias.shape[3] == 1 else "tile"


def limits_table(context: Context, sizes: Sizes) -> Int[Array, "batch 3"]:
    """(offset, end of queries, end of keys) of every sample, or once for all."""
    limits = limits_of(context, sizes)
    ends = [
        jnp.full((1,), NEVER, jnp.int32) if x is None else x.astype(jnp.int32)
        for x in limits
    ]
    batch = max(x.shape[0] for x in ends)
    return jnp.stack([jnp.broadcast_to(x, (batch,)) for x in ends], axis=1)


def safe_lse(lse: Float[Array, "B T N"], block: int) -> Float[Array, "B N rows"]:
    """Along queries, padded, and large where nothing is seen."""
    lse = jnp.where(lse > -jnp.inf, lse, -FLOOR)
    return padded(lse.swapaxes(1, 2), 2, block)


def delta_of(
    out: Float[Array, "B T N V"],
    changes: tuple[Float[Array, "B T N V"], Float[Array, "B T N"]],
    block: int,
) -> tuple[Float[Array, "B T N V"], Float[Array, "B N rows"]]:
    """d_out as it is multiplied, and sum(out * d_out) - d_lse along queries, padded.

    The barrier keeps the compiler from taking the sum of gradients before they were
    rounded, which would not be those that the kernel multiplies.
    """
    d_out, d_lse = changes
    d_out = lax.optimization_barrier(d_out.astype(out.dtype))
    total = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=-1)
    total = total - d_lse.astype(jnp.float32)
    return d_out, padded(total.swapaxes(1, 2), 2, block)
