"""Sums by bin and node on Hopper: products with one-hot bins, in tensor cores, exact.

A histogram is a product: the one-hot bins of 64 rows, [bins, 64], times what is summed,
[64, bytes]. Both sides are small integers, the sums stay below 2^24, so that bfloat16
factors and float32 sums hold them without rounding: the bits are those of any other way to
add the integers up, and no block waits for another.

    sum_r [bin_r = b] q_r = sum_i 2^(8 i) sum_r [bin_r = b] byte_i(q_r)   (mod 2^32)

Rows are put in the order of their nodes, each node in chunks of its own, the last one
filled up with zeros; of the two children of a node only the smaller one, where the sums
of their parent are known. A block owns a chunk, some columns, and 256 bins at most: a
warpgroup for every column keeps its sums in registers (16 of them for two channels), and
makes the one-hot bins there too, so that all it reads are bins and bytes. The chunks of a
node are added up behind the kernel.

The missing bin takes no product: it is what the others leave of the whole.

Not measured on a device yet, so it is used by name only.

Reference: Chen and Guestrin, "XGBoost: A Scalable Tree Boosting System", KDD 2016,
https://arxiv.org/abs/1603.02754 (algorithm 2); Mitchell and Frank, "Accelerating the
XGBoost algorithm using GPU computing", PeerJ Computer Science 2017,
https://doi.org/10.7717/peerj-cs.127 (theirs adds by atomics in shared memory).
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxml.kernels.hopper import WIDTH, add_products, buffer, call, load, turned, zeros
from jaxml.kernels.rings import feed, guards, in_roles, slot_of
from jaxml.kernels.shapes import like, padded
from jaxml.trees.scatter import kind_of
from jaxml.typing import Array, Bool, Int, Integer

BYTES = 4  # of an int32
ROWS = 256  # in flight together
STAGES = 4  # of them
WARPGROUPS = 3  # each with a column of its own
TILES = 4  # of 64 bins, in the registers of a warpgroup
LARGEST = 2**14  # rows of a chunk: 255 times as many are below 2^24


class Chunks(NamedTuple):
    """Rows in the order of their nodes.

    Attributes:
        row: which row stands at each place; any where there is none.
        filled: whether there is one.
        slot: the node of every chunk; `slots` where it is empty.
        is_summed: which nodes have chunks, if they have rows.
    """

    row: Int[Array, " places"]
    filled: Bool[Array, " places"]
    slot: Int[Array, " chunks"]
    is_summed: Bool[Array, " slots"]


def sums_by_bin(
    index: Integer[Array, "columns rows"],
    q: Int[Array, "channels rows"],
    slot: Int[Array, " rows"],
    slots: int,
    width: int,
    has_missing: bool,
    smaller: bool = False,
    interpret: Any = None,
) -> tuple[Int[Array, "columns channels stride slots"], Bool[Array, " slots"]]:
    """Sums of int32 channels by column, bin and slot, and which slots are summed.

    Args:
        index: the bin of every value, `width` where it is missing.
        q: what is summed; no sum of them overflows.
        slot: the node of every row.
        slots: how many nodes there are.
        width: bins for values.
        has_missing: whether there is a bin for missing values, the last.
        smaller: sum that of slots 2 i and 2 i + 1 alone which has fewer rows; 0 for others.
        interpret: what runs it without a GPU.
    """
    columns, rows = index.shape
    size = chunk_size(rows, slots)
    chunks = in_chunks(slot, slots, size, smaller)
    codes = padded(_fetched(index, chunks.row), 0, WARPGROUPS)
    filled = jnp.where(chunks.filled[None], _fetched(q, chunks.row), 0)
    parts = padded(_bytes(filled).astype(jnp.bfloat16), 0, 8)
    parts = parts.reshape(len(parts), -1, WIDTH).swapaxes(0, 1)
    counted = _count(codes, parts, size, width, interpret)
    counted = counted[:, :columns, :width, : BYTES * len(q)]
    by_chunk = _joined(counted)
    whole = parts.reshape(len(chunks.slot), -1, *parts.shape[1:])
    whole = jnp.sum(whole, axis=(1, 3), dtype=jnp.float32)[:, : BYTES * len(q)]
    if has_missing:
        rest = _joined(whole)[:, None] - jnp.sum(by_chunk, axis=2)
        by_chunk = jnp.concatenate((by_chunk, rest[:, :, None]), axis=2)
    sums = jnp.zeros((slots, *by_chunk.shape[1:]), jnp.int32)
    sums = sums.at[chunks.slot].add(by_chunk, mode="drop")
    return jnp.transpose(sums, (1, 3, 2, 0)), chunks.is_summed


def chunk_size(rows: int, slots: int) -> int:
    """Rows of a chunk: a power of two, so that what fills up nodes is a quarter at most.

    >>> chunk_size(10_000_000, 32), chunk_size(100_000, 32), chunk_size(10, 1)
    (16384, 512, 256)
    """
    most = max(rows // (4 * slots), ROWS)
    return min(2 ** (most.bit_length() - 1), LARGEST)


def in_chunks(
    slot: Int[Array, " rows"], slots: int, size: int, smaller: bool = False
) -> Chunks:
    """Places for the rows of every slot, or of smaller ones, from a multiple of `size` on."""
    rows = len(slot)
    number = jnp.arange(rows, dtype=jnp.int32)
    ordered, row = slot.astype(kind_of(slots)), number
    if slots > 1:
        ordered, row = lax.sort((ordered, number), num_keys=1, is_stable=True)
    every = jnp.arange(slots, dtype=jnp.int32)
    start = jnp.searchsorted(ordered.astype(jnp.int32), every).astype(jnp.int32)
    count = jnp.diff(start, append=jnp.int32(rows))
    is_summed = jnp.ones(slots, bool)
    if smaller:
        rows, slots = rows // 2, slots // 2
        first, second = count[0::2], count[1::2]
        is_summed = jnp.stack((first <= second, first > second), axis=1).reshape(-1)
    num_chunks = jnp.where(is_summed, -(-count // size), 0)
    behind = jnp.cumsum(num_chunks, dtype=jnp.int32)
    chunk = jnp.arange(-(-rows // size) + slots, dtype=jnp.int32)
    of_chunk = jnp.searchsorted(behind, chunk, side="right").astype(jnp.int32)
    here = jnp.minimum(of_chunk, len(every) - 1)
    first_row = (chunk - (behind - num_chunks)[here]) * size
    left = jnp.where(of_chunk < len(every), count[here] - first_row, 0)
    within = jnp.arange(size, dtype=jnp.int32)[None]
    place = (start[here] + first_row)[:, None] + within
    row = row[jnp.clip(place, 0, len(row) - 1).reshape(-1)]
    filled = within < left[:, None]
    return Chunks(row, filled.reshape(-1), of_chunk, is_summed)


def _fetched(x: Array, row: Int[Array, " places"]) -> Array:
    """These rows of [columns, rows]: all of a row at once, and turned only then."""
    return lax.optimization_barrier(x.T[row]).T


def _bytes(q: Int[Array, "channels rows"]) -> Int[Array, "parts rows"]:
    """From the lowest up, channel after channel."""
    shifts = 8 * jnp.arange(BYTES, dtype=jnp.int32)
    parts = jax.vmap(lambda s: lax.shift_right_logical(q, jnp.full_like(q, s)))(shifts)
    parts = parts.swapaxes(0, 1) & jnp.int32(255)
    return parts.reshape(-1, q.shape[1])


def _joined(sums: Array) -> Int[Array, "... channels"]:
    """Sums of int32 numbers from those of their bytes, [..., parts], modulo 2^32."""
    parts = sums.astype(jnp.int32).reshape(*sums.shape[:-1], -1, BYTES)
    return sum(parts[..., i] << (8 * i) for i in range(BYTES))


def _count(codes: Array, parts: Array, size: int, width: int, interpret: Any) -> Array:
    """Sums of the bytes by chunk, column and bin; [chunks, columns, bins, parts]."""
    columns, places = codes.shape
    all_tiles = -(-width // WIDTH)
    blocks = -(-all_tiles // TILES)
    tiles = -(-all_tiles // blocks)
    shape = places // size, columns, blocks * tiles * WIDTH, parts.shape[1]
    steps = ROWS // WIDTH
    (sums,) = call(
        partial(_kernel, tiles, size),
        (codes, parts),
        [like((codes, parts), shape, jnp.float32)],
        {
            "code_ring": plgpu.SMEM((STAGES, WARPGROUPS, ROWS), codes.dtype),
            "part_ring": buffer(
                STAGES, steps, parts.shape[1], WIDTH, dtype=parts.dtype
            ),
            "stage": buffer(WARPGROUPS, WIDTH, WIDTH, dtype=parts.dtype)
            if interpret
            else None,
            **guards("code", STAGES, WARPGROUPS, copies=2),
        },
        shape[0] * (columns // WARPGROUPS) * blocks,
        WARPGROUPS,
        interpret,
    )
    return sums


def _kernel(
    tiles: int, size: int, codes: Any, parts: Any, results: Any, smem: dict[str, Any]
) -> None:
    """A block: a chunk, a column for each warpgroup, and so many tiles of bins."""
    (out,) = results
    blocks = out.shape[2] // (tiles * WIDTH)
    groups = codes.shape[0] // WARPGROUPS
    block = lax.axis_index("block")
    bins = lax.rem(block, blocks) * (tiles * WIDTH) if blocks > 1 else 0
    group = lax.rem(lax.div(block, blocks), groups)
    chunk = lax.div(block, blocks * groups)

    def compute(number: Any) -> None:
        stage = None if smem["stage"] is None else smem["stage"].at[number]
        sums = _sum_over_rows(tiles, size // ROWS, number, bins, stage, smem)
        for tile, total in enumerate(sums):
            there = pl.ds(bins + tile * WIDTH, WIDTH)
            out.at[chunk, group * WARPGROUPS + number, there][...] = total

    def load_rows() -> None:
        def sources(n: Any) -> dict[str, dict[str, Any]]:
            start = chunk * size + n * ROWS
            columns = pl.ds(group * WARPGROUPS, WARPGROUPS)
            steps = pl.ds(lax.div(start, WIDTH), ROWS // WIDTH)
            here = codes.at[columns, pl.ds(start, ROWS)]
            return {"code": {"code": here, "part": parts.at[steps]}}

        feed(smem, size // ROWS, sources)

    in_roles(WARPGROUPS, compute, load_rows)


def _sum_over_rows(
    tiles: int, count: int, number: Any, bins: Any, stage: Any, smem: dict[str, Any]
) -> list[Array]:
    """A warpgroup: [64, parts] for each of its tiles of bins."""
    shape = WIDTH, WIDTH
    part_ring, code_ring = smem["part_ring"], smem["code_ring"]
    along_rows = plgpu.Layout.WGMMA.reduce(0)

    def product(slot: Any, k: Any, sums: list[Array]) -> list[Array]:
        here = code_ring.at[slot, number, pl.ds(k * WIDTH, WIDTH)]
        code = load(here, along_rows).astype(jnp.int32) - bins
        code = lax.broadcast_in_dim(code, shape, [1])
        own = plgpu.broadcasted_iota(jnp.int32, shape, 0, layout=plgpu.Layout.WGMMA)
        hot = [
            jnp.where(code == own + tile * WIDTH, 1.0, 0.0).astype(part_ring.dtype)
            for tile in range(tiles)
        ]
        return add_products(sums, hot, turned(part_ring.at[slot, k]), stage)

    def step(n: Any, sums: list[Array]) -> list[Array]:
        slot = slot_of(smem, "code", n)
        plgpu.barrier_wait(smem["code_ready"].at[slot])
        sums = lax.fori_loop(0, ROWS // WIDTH, partial(product, slot), sums)
        plgpu.barrier_arrive(smem["code_free"].at[slot])
        return sums

    empty = [zeros(WIDTH, part_ring.shape[2]) for _ in range(tiles)]
    return lax.fori_loop(0, count, step, empty)
