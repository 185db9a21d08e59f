"""Flash attention on Hopper, backward: the kernel that owns queries, and gives dq.

    dq = scale sum ds k

Each warpgroup keeps q, d_out, lse and delta of its queries and walks over keys, as in
the forward pass. At dim 256 what two warpgroups own is half of the shared memory; there
keys, needed first and last in a step, come ahead, and values, needed once, one at a time.

Reference: Dao et al., "FlashAttention", NeurIPS 2022, https://arxiv.org/abs/2205.14135
(algorithm 4).
"""

from functools import partial
from typing import Any

from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxml.attention.flash.arrange import Layout, layout_of
from jaxml.attention.flash.gpu_logits import Around, Tile, around_of
from jaxml.attention.flash.gpu_walk import (
    Steps,
    block_of,
    load_keys,
    load_own,
    over_steps,
)
from jaxml.attention.flash.gpu_weights import Arrays, arrays_of, slopes, weights
from jaxml.attention.flash.schedule import Sizes, schedule
from jaxml.attention.flash.tables import Pass
from jaxml.attention.spec import Context, Operands, Spec
from jaxml.kernels.hopper import (
    add_product,
    buffer,
    call,
    product,
    turned,
    vector,
    zeros,
)
from jaxml.kernels.rings import guards, in_roles, part_of, slot_of
from jaxml.kernels.shapes import like
from jaxml.typing import Array


def owning_queries(
    spec: Spec,
    operands: Operands,
    context: Context,
    results: tuple[Array, Array],
    changes: Any,
    config: Pass,
    interpret: Any,
) -> Array:
    """dq, padded."""
    block_q, block_k, stages, warpgroups = config[:4]
    lengths = operands.query.shape[1], operands.key.shape[1]
    sizes = Sizes(*lengths, block_q * warpgroups, block_k)
    layout = layout_of(spec, operands, context, sizes)
    arrays = arrays_of(operands, results, changes, sizes)
    q, dtype = arrays.q, arrays.q.dtype
    dim, width = q.shape[3], arrays.v.shape[3]
    own = (warpgroups, block_q)
    (dq,) = call(
        partial(_kernel, layout, config),
        (
            arrays,
            schedule(spec, context, sizes),
            around_of(operands, context, sizes),
        ),
        [like(operands, q.shape, dtype)],
        {
            "q_tile": buffer(*own, dim, dtype=dtype),
            "d_out_tile": buffer(*own, width, dtype=dtype),
            "k_ring": buffer(stages, block_k, dim, dtype=dtype),
            "v_ring": buffer(config.later, block_k, width, dtype=dtype),
            "stage": buffer(*own, block_k, dtype=dtype) if interpret else None,
            "own_ready": plgpu.Barrier(num_arrivals=2, num_barriers=warpgroups),
            **guards("k", stages, warpgroups),
            **guards("v", config.later, warpgroups),
        },
        q.shape[0] * q.shape[2] * sizes.tall,
        warpgroups,
        interpret,
    )
    return dq


def _kernel(
    layout: Layout,
    config: Pass,
    arrays: Arrays,
    ranges: Any,
    around: Around,
    results: Any,
    smem: dict[str, Any],
) -> None:
    """A block: the queries of its warpgroups, in one head."""
    block_q, block_k, _, warpgroups = config[:4]
    q, k, v, d_out, lse, delta = arrays
    block = block_of(ranges, q, (k, v), block_q * warpgroups, last_first=True)

    def compute(number: Any) -> None:
        start = block.start + number * block_q
        tile = Tile(block.batch, block.head, start, 0, (block_q, block_k))
        rows = (block.batch, block.head, tile.queries())
        statistics = vector(lse.at[rows], 0), vector(delta.at[rows], 0)
        mine = part_of(smem, number, "q_tile", "d_out_tile", "own_ready", "stage")
        _sum_over_keys(layout, around, tile, block.steps, statistics, results[0], mine)

    def load() -> None:
        load_own(block, warpgroups, smem, {"q": q, "d_out": d_out})
        load_keys(layout, block, smem, k, v)

    in_roles(warpgroups, compute, load)


def _sum_over_keys(
    layout: Layout,
    around: Around,
    tile: Tile,
    steps: Steps,
    statistics: tuple[Array, Array],
    dq: Any,
    smem: dict[str, Any],
) -> None:
    """A warpgroup: dq of its queries."""
    q_tile, d_out_tile = smem["q_tile"], smem["d_out_tile"]
    lse, delta = statistics

    def step(masked: bool, n: Any, dq_sum: Array) -> Array:
        here = tile._replace(key=steps.tile(n) * tile.shape[1])
        early, late = slot_of(smem, "k", n), slot_of(smem, "v", n)
        k_tile, v_tile = smem["k_ring"].at[early], smem["v_ring"].at[late]
        plgpu.barrier_wait(smem["k_ready"].at[early])
        s = product(q_tile, turned(k_tile), *tile.shape)
        p, slope = weights(layout, around, here, s, lse, masked)
        plgpu.barrier_wait(smem["v_ready"].at[late])
        dp = product(d_out_tile, turned(v_tile), *tile.shape)
        plgpu.barrier_arrive(smem["v_free"].at[late])
        ds = slopes(p, dp, delta, here, slope).astype(dq.dtype)
        dq_sum = add_product(dq_sum, ds, k_tile, smem["stage"])
        plgpu.barrier_arrive(smem["k_free"].at[early])
        return dq_sum

    plgpu.barrier_wait(smem["own_ready"])
    dq_sum = over_steps(layout, steps, step, zeros(*q_tile.shape))
    q_tile[...] = (dq_sum * layout.spec.scale).astype(dq.dtype)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(q_tile, dq.at[tile.batch, tile.queries(), tile.head])
    plgpu.wait_smem_to_gmem(0)
