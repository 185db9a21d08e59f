"""The order of work on Hopper: which block owns what, and what it loads, in which steps.

Heavy tiles come first, so that no block starts a long walk when the others are done; and
as many heads at once as L2 holds the keys of.

Reference: Shah et al., "FlashAttention-3", NeurIPS 2024,
https://arxiv.org/abs/2407.08608 (section 3.1).
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxml.attention.flash.arrange import Layout
from jaxml.attention.flash.schedule import FULL_HI, FULL_LO, HI, LO
from jaxml.kernels.rings import feed

L2 = 32 * 2**20  # bytes of keys and values that may be in use at once


class Steps(NamedTuple):
    """The tiles that one block visits, those that hide nothing first.

    Attributes:
        full: how many of them hide nothing.
        count: of all.
        tile: step -> number of the tile.
    """

    full: Any
    count: Any
    tile: Callable[[Any], Any]


class Block(NamedTuple):
    """What a block owns: rows from `start` on of one head; and what it visits."""

    batch: Any
    head: Any
    start: Any
    steps: Steps


def block_of(
    ranges: Any, owned: Any, visited: tuple[Any, ...], rows: int, *, last_first: bool
) -> Block:
    """The block that runs: it owns so many rows of `owned` and walks over `visited`."""
    batch, length, heads, _ = owned.shape
    per_head = (2 * math.prod(x.shape[1:]) // heads for x in visited)
    b, h, tile = place_of(
        lax.axis_index("block"),
        length // rows,
        batch,
        heads,
        sum(per_head),
        last_first=last_first,
    )
    return Block(b, h, tile * rows, steps_at(ranges, b, tile))


def place_of(
    number: Any,
    tiles: int,
    batch: int,
    heads: int,
    bytes_of_head: int,
    *,
    last_first: bool,
) -> tuple[Any, Any, Any]:
    """(batch, head, tile) of a block, heavy tiles first within what fits into L2."""
    pairs = batch * heads
    most = max(1, L2 // max(bytes_of_head, 1))
    section = max(n for n in range(1, pairs + 1) if pairs % n == 0 and n <= most)
    rest = lax.rem(number, section * tiles)
    tile = lax.div(rest, section)
    pair = lax.div(number, section * tiles) * section + lax.rem(rest, section)
    if last_first:
        tile = tiles - 1 - tile
    return lax.div(pair, heads), lax.rem(pair, heads), tile


def steps_at(ranges: Any, batch: Any, tile: Any) -> Steps:
    """Of a row (or column) of tiles."""
    row = batch if ranges.shape[0] > 1 else 0
    lo, full_lo, full_hi, hi = (
        ranges[row, tile, n] for n in (LO, FULL_LO, FULL_HI, HI)
    )
    full = full_hi - full_lo

    def at(step: Any) -> Any:
        partly = lo + step - full
        partly = jnp.where(partly >= full_lo, partly + full, partly)
        return jnp.where(step < full, full_lo + step, partly)

    return Steps(full, hi - lo, at)


def over_steps(layout: Layout, steps: Steps, step: Any, carry: Any) -> Any:
    """Runs step(masked, n, carry): without a mask first, then with it."""
    if not layout.masked:
        return lax.fori_loop(0, steps.count, lambda n, c: step(False, n, c), carry)
    carry = lax.fori_loop(0, steps.full, lambda n, c: step(False, n, c), carry)
    return lax.fori_loop(steps.full, steps.count, lambda n, c: step(True, n, c), carry)


def load_own(
    block: Block, owners: int, smem: Mapping[str, Any], refs: Mapping[str, Any]
) -> None:
    """The loader, first: what the warpgroups own, each under a barrier of its own."""
    for owner in range(owners):
        for name, ref in refs.items():
            tile = smem[f"{name}_tile"].at[owner]
            rows = tile.shape[0]
            place = (block.batch, pl.ds(block.start + owner * rows, rows), block.head)
            plgpu.copy_gmem_to_smem(ref.at[place], tile, smem["own_ready"].at[owner])


def load_keys(
    layout: Layout, block: Block, smem: Mapping[str, Any], k: Any, v: Any
) -> None:
    """The loader, then: keys and values that a block of queries visits."""
    head, rows = lax.div(block.head, layout.groups), smem["k_ring"].shape[1]

    def sources(n: Any) -> dict[str, dict[str, Any]]:
        place = (block.batch, pl.ds(block.steps.tile(n) * rows, rows), head)
        return {"k": {"k": k.at[place]}, "v": {"v": v.at[place]}}

    feed(smem, block.steps.count, sources)
