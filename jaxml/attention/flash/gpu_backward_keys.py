"""Flash attention on Hopper, backward: the kernel that owns keys, and gives dk and dv.

    dv = sum p^T d_out,   dk = scale sum ds^T q

over the queries of every head that shares the keys, so that nothing is summed outside.
Tiles stand on their side, [keys, queries]: p^T and ds^T leave a product as rows and
enter the next from registers.

At dims above 128 both sums of 64 keys, dk and dv, would be all of a warpgroup's
registers. There two warpgroups share the keys: one sums dv, the other dk (`split`). Both
make the logits, 5 products in place of 4; halves of the columns of both would take 6.

Reference: Dao et al., "FlashAttention", NeurIPS 2022, https://arxiv.org/abs/2205.14135
(algorithm 4); Shah et al., "FlashAttention-3", NeurIPS 2024,
https://arxiv.org/abs/2407.08608 (appendix B.1).
"""

from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxml.attention.flash.arrange import Layout, layout_of
from jaxml.attention.flash.gpu_logits import Around, Tile, around_of
from jaxml.attention.flash.gpu_walk import Block, Steps, block_of, load_own, over_steps
from jaxml.attention.flash.gpu_weights import Arrays, arrays_of, slopes, weights
from jaxml.attention.flash.schedule import Sizes, schedule
from jaxml.attention.flash.tables import Pass
from jaxml.attention.spec import Context, Operands, Spec
from jaxml.kernels.hopper import (
    add_product,
    add_product_beside,
    buffer,
    call,
    product,
    turned,
    vector,
    zeros,
)
from jaxml.kernels.rings import feed, guards, in_roles, part_of, slot_of, together
from jaxml.kernels.shapes import like
from jaxml.typing import Array

BOTH = ("dv", "dk")


def owning_keys(
    spec: Spec,
    operands: Operands,
    context: Context,
    results: tuple[Array, Array],
    changes: Any,
    config: Pass,
    interpret: Any,
) -> tuple[Array, Array]:
    """(dk, dv), padded."""
    block_q, block_k, stages, warpgroups = config[:4]
    owners = 1 if config.split else warpgroups
    lengths = operands.query.shape[1], operands.key.shape[1]
    sizes = Sizes(*lengths, block_q, block_k * owners)
    layout = layout_of(spec, operands, context, sizes)
    arrays = arrays_of(operands, results, changes, sizes)
    k, v = arrays.k, arrays.v
    dim, width, dtype = k.shape[3], v.shape[3], k.dtype
    own, stage = (owners, block_k), (warpgroups, block_k, block_q)
    early, late = (stages, block_q), (config.later, block_q)
    dk, dv = call(
        partial(_kernel, layout, config),
        (
            arrays,
            schedule(spec, context, sizes, by_column=True),
            around_of(operands, context, sizes, on_side=True),
        ),
        [like(operands, k.shape, dtype), like(operands, v.shape, dtype)],
        {
            "k_tile": buffer(*own, dim, dtype=dtype),
            "v_tile": buffer(*own, width, dtype=dtype),
            "q_ring": buffer(*early, dim, dtype=dtype),
            "d_out_ring": buffer(*late, width, dtype=dtype),
            "lse_ring": plgpu.SMEM(early, jnp.float32),
            "delta_ring": plgpu.SMEM(late, jnp.float32),
            "stage": buffer(*stage, dtype=dtype) if interpret else None,
            "own_ready": plgpu.Barrier(num_arrivals=2, num_barriers=owners),
            **guards("q", stages, warpgroups, copies=2),
            **guards("d_out", config.later, warpgroups, copies=2),
            "done": plgpu.Barrier(num_arrivals=2) if config.split else None,
        },
        k.shape[0] * k.shape[2] * sizes.wide,
        warpgroups,
        interpret,
    )
    return dk, dv


def _kernel(
    layout: Layout,
    config: Pass,
    arrays: Arrays,
    ranges: Any,
    around: Around,
    results: Any,
    smem: dict[str, Any],
) -> None:
    """A block: the keys of its warpgroups, in one head of keys."""
    block_q, block_k, _, warpgroups = config[:4]
    owners = 1 if config.split else warpgroups
    q, k, v, d_out, *_ = arrays
    block = block_of(ranges, k, (q, d_out), block_k * owners, last_first=False)
    made = dict(zip(("dk", "dv"), results, strict=True))

    def compute(number: Any) -> None:
        owner = 0 if config.split else number
        start = block.start + owner * block_k
        tile = Tile(block.batch, block.head, 0, start, (block_k, block_q), 1)
        mine = part_of(smem, owner, "k_tile", "v_tile", "own_ready")
        mine = part_of(mine, number, "stage")
        run = partial(_sum_over_queries, layout, around, tile, block.steps, made, mine)
        if not config.split:
            run(BOTH)
            return
        for part, name in enumerate(BOTH):
            pl.when(number == part)(partial(run, (name,)))

    def load() -> None:
        load_own(block, owners, smem, {"k": k, "v": v})
        _load_queries(layout, block, smem, arrays)

    in_roles(warpgroups, compute, load)


def _load_queries(
    layout: Layout, block: Block, smem: dict[str, Any], arrays: Arrays
) -> None:
    """The loader, then: what lies along the queries of every head that shares the keys."""
    rows, count = smem["q_ring"].shape[1], block.steps.count

    def sources(n: Any) -> dict[str, dict[str, Any]]:
        head = block.head * layout.groups + lax.div(n, count)
        there = pl.ds(block.steps.tile(lax.rem(n, count)) * rows, rows)
        matrix, vector = (block.batch, there, head), (block.batch, head, there)
        return {
            "q": {"q": arrays.q.at[matrix], "lse": arrays.lse.at[vector]},
            "d_out": {
                "d_out": arrays.d_out.at[matrix],
                "delta": arrays.delta.at[vector],
            },
        }

    feed(smem, layout.groups * count, sources)


def _sum_over_queries(
    layout: Layout,
    around: Around,
    tile: Tile,
    steps: Steps,
    results: dict[str, Any],
    smem: dict[str, Any],
    names: tuple[str, ...],
) -> None:
    """A warpgroup: dk and dv of its keys, or the one of them that it is to sum."""
    k_tile, v_tile, stage = smem["k_tile"], smem["v_tile"], smem["stage"]
    dtype, own = k_tile.dtype, {"dk": k_tile, "dv": v_tile}

    def step(head: Any, masked: bool, n: Any, sums: dict[str, Array]) -> Any:
        here = tile._replace(
            head=tile.head * layout.groups + head,
            query=steps.tile(n) * tile.shape[1],
        )
        turn = head * steps.count + n
        early, late = slot_of(smem, "q", turn), slot_of(smem, "d_out", turn)
        q_tile, d_out_tile = smem["q_ring"].at[early], smem["d_out_ring"].at[late]
        plgpu.barrier_wait(smem["q_ready"].at[early])
        s = product(k_tile, turned(q_tile), *tile.shape)
        lse = vector(smem["lse_ring"].at[early], 1)
        p, slope = weights(layout, around, here, s, lse, masked)
        plgpu.barrier_wait(smem["d_out_ready"].at[late])
        of_dv = p.astype(dtype), d_out_tile
        of_dp = v_tile, turned(d_out_tile)
        new, dp, delta = {}, None, None
        if names == BOTH:
            new["dv"], dp = add_product_beside(
                sums["dv"], *of_dv, *of_dp, tile.shape, stage
            )
        elif "dv" in names:
            new["dv"] = add_product(sums["dv"], *of_dv, stage)
        else:
            dp = product(*of_dp, *tile.shape)
        if "dk" in names:
            delta = vector(smem["delta_ring"].at[late], 1)
        plgpu.barrier_arrive(smem["d_out_free"].at[late])
        if "dk" in names:
            ds = slopes(p, dp, delta, here, slope).astype(dtype)
            new["dk"] = add_product(sums["dk"], ds, q_tile, stage)
        plgpu.barrier_arrive(smem["q_free"].at[early])
        return new

    def head(g: Any, sums: dict[str, Array]) -> Any:
        return over_steps(layout, steps, partial(step, g), sums)

    plgpu.barrier_wait(smem["own_ready"])
    empty = {name: zeros(*own[name].shape) for name in names}
    sums = lax.fori_loop(0, layout.groups, head, empty)
    together(smem["done"])  # until now the other may have read these keys
    for name, total in sums.items():
        scaled = total * layout.spec.scale if name == "dk" else total
        own[name][...] = scaled.astype(dtype)
    plgpu.commit_smem()
    for name in names:
        place = (tile.batch, tile.keys(), tile.head)
        plgpu.copy_smem_to_gmem(own[name], results[name].at[place])
    plgpu.wait_smem_to_gmem(0)
