"""The order of work on Hopper: which block owns what, who computes, who loads, in which steps.

A block of threads is some warpgroups that compute and one that loads. The loader runs
ahead of them around a ring of buffers: a tile is `ready` when its bytes have come, `free`
when all who compute have read it. What is needed first and what is needed second in a
step have rings of their own, which need not be of one size.

Heavy tiles come first, so that no block starts a long walk when the others are done; and
as many heads at once as L2 holds the keys of.

Reference: Shah et al., "FlashAttention-3", NeurIPS 2024,
https://arxiv.org/abs/2407.08608 (section 3.1, warp specialization).
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

L2 = 32 * 2**20  # bytes of keys and values that may be in use at once
REGISTERS = {1: (240, 40), 2: (240, 24), 3: (160, 32)}  # by warpgroups that compute


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


def in_roles(
    warpgroups: int,
    compute: Callable[[Any], None],
    load: Callable[[], None],
    registers: Mapping[int, tuple[int, int]] = REGISTERS,
) -> None:
    """Runs compute(number) in the warpgroups that do so, and load() in the one beside."""
    number = lax.axis_index("warpgroup")
    more, fewer = registers[warpgroups]

    @pl.when(number < warpgroups)
    def those_that_compute() -> None:
        plgpu.set_max_registers(more, action="increase")
        compute(number)

    @pl.when(number == warpgroups)
    def the_one_beside() -> None:
        plgpu.set_max_registers(fewer, action="decrease")
        load()


def part_of(smem: Mapping[str, Any], number: Any, *names: str) -> dict[str, Any]:
    """Shared memory, with a warpgroup's own part of those that each has one of."""
    there = {name: smem[name] for name in names if smem[name] is not None}
    return {**smem, **{name: ref.at[number] for name, ref in there.items()}}


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


def guards(ring: str, stages: int, readers: int, copies: int = 1) -> dict[str, Any]:
    """The barriers of a ring: bytes come by so many copies and are read by so many."""
    return {
        f"{ring}_ready": plgpu.Barrier(num_arrivals=copies, num_barriers=stages),
        f"{ring}_free": plgpu.Barrier(num_arrivals=readers, num_barriers=stages),
    }


def slot_of(smem: Mapping[str, Any], ring: str, n: Any) -> Any:
    """The number of the buffer that step n finds its tile in."""
    return lax.rem(n, smem[f"{ring}_ring"].shape[0])


def feed(
    smem: Mapping[str, Any],
    count: Any,
    sources: Callable[[Any], dict[str, dict[str, Any]]],
) -> None:
    """Copies step after step into the rings, as far ahead as they reach.

    `sources` gives for a step {barrier: {ring: where it lies in device memory}}.
    """

    def fetch(n: Any, carry: None) -> None:
        for barrier, copies in sources(n).items():
            slot = slot_of(smem, barrier, n)

            @pl.when(n >= smem[f"{barrier}_ring"].shape[0])
            def wait(barrier: str = barrier, slot: Any = slot) -> None:
                plgpu.barrier_wait(smem[f"{barrier}_free"].at[slot])

            for name, source in copies.items():
                plgpu.copy_gmem_to_smem(
                    source,
                    smem[f"{name}_ring"].at[slot],
                    smem[f"{barrier}_ready"].at[slot],
                )
        return carry

    lax.fori_loop(0, count, fetch, None)


def together(barrier: Any) -> None:
    """Waits for the other warpgroups that compute, where there is a barrier to do so."""
    if barrier is not None:
        plgpu.barrier_arrive(barrier)
        plgpu.barrier_wait(barrier)
