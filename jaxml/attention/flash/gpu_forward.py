"""Flash attention on Hopper, forward: one loader, two or three warpgroups that compute.

Each warpgroup owns `block_q` queries and walks over all tiles of keys of its block, with
an online softmax in base 2 in registers:

    s = q k^T c,  m' = max(m, max s),  p = 2^(s - m'),  acc = acc 2^(m - m') + p v

Two warpgroups take turns: while one multiplies, the other exponentiates (`take_turns`).
All of them visit the same tiles, so that none has to keep the ring moving for another.

Reference: Shah et al., "FlashAttention-3", NeurIPS 2024,
https://arxiv.org/abs/2407.08608 (algorithm 1 and section 3.1).
"""

from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxml.attention.flash.arrange import FLOOR, Layout, layout_of
from jaxml.attention.flash.gpu_logits import LOG2E, Around, Tile, around_of, logits
from jaxml.attention.flash.gpu_walk import (
    Steps,
    block_of,
    load_keys,
    load_own,
    over_steps,
)
from jaxml.attention.flash.schedule import Sizes, schedule
from jaxml.attention.flash.tables import Forward
from jaxml.attention.spec import Context, Operands, Spec
from jaxml.kernels.hopper import (
    WIDTH,
    add_product,
    along,
    buffer,
    call,
    per_row,
    product,
    turned,
    zeros,
)
from jaxml.kernels.rings import guards, in_roles, part_of, slot_of, together
from jaxml.kernels.shapes import like, padded, unpadded
from jaxml.typing import Array


def forward(
    spec: Spec,
    operands: Operands,
    context: Context,
    *,
    config: Forward,
    interpret: Any = None,
) -> tuple[tuple[Array, Array], tuple[()]]:
    """(out, lse), and nothing besides."""
    block_q, block_k, stages, warpgroups = config
    rows = block_q * warpgroups
    sizes = Sizes(operands.query.shape[1], operands.key.shape[1], rows, block_k)
    layout = layout_of(spec, operands, context, sizes)
    q = padded(padded(operands.query, 1, rows), 3, WIDTH)
    k, v = (padded(padded(x, 1, block_k), 3, WIDTH) for x in operands[1:3])
    batch, length, heads, dim = q.shape
    width, dtype = v.shape[3], q.dtype
    own, ring = (warpgroups, block_q), (stages, block_k)
    out, lse = call(
        partial(_kernel, layout, config),
        (
            (q, k, v),
            schedule(spec, context, sizes),
            around_of(operands, context, sizes),
        ),
        [
            like(operands, (batch, length, heads, width), dtype),
            like(operands, (batch, heads, length), jnp.float32),
        ],
        {
            "q_tile": buffer(*own, dim, dtype=dtype),
            "k_ring": buffer(*ring, dim, dtype=dtype),
            "v_ring": buffer(*ring, width, dtype=dtype),
            "out_tile": None if dim == width else buffer(*own, width, dtype=dtype),
            "lse_tile": plgpu.SMEM(own, jnp.float32),
            "stage": buffer(*own, block_k, dtype=dtype) if interpret else None,
            "own_ready": plgpu.Barrier(num_barriers=warpgroups),
            **guards("k", stages, warpgroups),
            **guards("v", stages, warpgroups),
            "turn": plgpu.Barrier(num_arrivals=2) if warpgroups == 2 else None,
        },
        batch * heads * sizes.tall,
        warpgroups,
        interpret,
    )
    out = unpadded(out, (*operands.query.shape[:3], operands.value.shape[3]))
    return (out, unpadded(lse.swapaxes(1, 2), out.shape[:3])), ()


def _kernel(
    layout: Layout,
    config: Forward,
    arrays: tuple[Any, Any, Any],
    ranges: Any,
    around: Around,
    results: Any,
    smem: dict[str, Any],
) -> None:
    """A block: `warpgroups` x `block_q` queries of one head."""
    block_q, block_k, _, warpgroups = config
    q, k, v = arrays
    rows = block_q * warpgroups
    block = block_of(ranges, q, (k, v), rows, last_first=True)

    def compute(number: Any) -> None:
        start = block.start + number * block_q
        tile = Tile(block.batch, block.head, start, 0, (block_q, block_k))
        own = ("q_tile", "out_tile", "lse_tile", "own_ready", "stage")
        mine = part_of(smem, number, *own)
        _sum_over_keys(layout, around, tile, block.steps, number, results, mine)

    def load() -> None:
        load_own(block, warpgroups, smem, {"q": q})
        load_keys(layout, block, smem, k, v)

    in_roles(warpgroups, compute, load)


def _sum_over_keys(
    layout: Layout,
    around: Around,
    tile: Tile,
    steps: Steps,
    number: Any,
    results: Any,
    smem: dict[str, Any],
) -> None:
    """A warpgroup: its queries over all tiles of keys."""
    (block_q, block_k), q_tile = tile.shape, smem["q_tile"]
    out_tile = q_tile if smem["out_tile"] is None else smem["out_tile"]
    dtype = out_tile.dtype
    take_turns = partial(together, smem["turn"])

    def step(masked: bool, n: Any, carry: Any) -> Any:
        acc, m, l = carry
        slot = slot_of(smem, "k", n)
        plgpu.barrier_wait(smem["k_ready"].at[slot])
        keys = turned(smem["k_ring"].at[slot])
        s = product(q_tile, keys, *tile.shape, between=take_turns)
        plgpu.barrier_arrive(smem["k_free"].at[slot])
        here = tile._replace(key=steps.tile(n) * block_k)
        s, factor, _ = logits(layout, around, here, s, masked)
        new = jnp.maximum(m, s.max(axis=1) * factor)
        decay = jnp.exp2(m - new)
        p = jnp.exp2(s * factor - along(new, tile.shape, 0))
        acc = acc * along(decay, acc.shape, 0)
        l = l * decay + p.sum(axis=1)
        weights = p.astype(dtype)
        acc, l, new, weights = lax.optimization_barrier((acc, l, new, weights))
        take_turns()
        plgpu.barrier_wait(smem["v_ready"].at[slot])
        acc = add_product(acc, weights, smem["v_ring"].at[slot], smem["stage"])
        plgpu.barrier_arrive(smem["v_free"].at[slot])
        return acc, new, l

    plgpu.barrier_wait(smem["own_ready"])
    pl.when(number == 1)(take_turns)
    empty = zeros(*out_tile.shape), per_row(FLOOR, block_q), per_row(0.0, block_q)
    acc, m, l = over_steps(layout, steps, step, empty)
    pl.when(number == 0)(take_turns)
    some = l > 0
    l = jnp.where(some, l, 1.0)
    out_tile[...] = (acc * along(1 / l, acc.shape, 0)).astype(dtype)
    log = (m + jnp.log2(l)) * (1 / LOG2E)
    smem["lse_tile"][...] = jnp.where(some, log, -jnp.inf)
    plgpu.commit_smem()
    (out, lse), rows = results, tile.queries()
    plgpu.copy_smem_to_gmem(out_tile, out.at[tile.batch, rows, tile.head])
    plgpu.copy_smem_to_gmem(smem["lse_tile"], lse.at[tile.batch, tile.head, rows])
    plgpu.wait_smem_to_gmem(0)
