"""Who computes and who loads: warpgroups of a block on Hopper, and rings of buffers between.

A block of threads is some warpgroups that compute and one that loads. The loader runs
ahead of them around a ring of buffers: a tile is `ready` when its bytes have come, `free`
when all who compute have read it. What is needed first and what is needed second in a
step have rings of their own, which need not be of one size.

Reference: Shah et al., "FlashAttention-3", NeurIPS 2024,
https://arxiv.org/abs/2407.08608 (section 3.1, warp specialization).
"""

from collections.abc import Callable, Mapping
from typing import Any

from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

REGISTERS = {1: (240, 40), 2: (240, 24), 3: (160, 32)}  # by warpgroups that compute


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
