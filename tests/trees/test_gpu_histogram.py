"""The kernel of histograms: lowered, interpreted, and the chunks that it is given."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxml.parallel import data_mesh
from jaxml.trees import gpu_histogram as kernel
from jaxml.trees import xgboost
from jaxml.trees.bins import Bins
from tests.kernels.conftest import lowered
from tests.trees.conftest import binned, summed_by_hand


def types(rows=2000, columns=28, channels=2, dtype=jnp.uint8, batch=()):
    """Of bins, channels and nodes."""
    return (
        jax.ShapeDtypeStruct((*batch, columns, rows), dtype),
        jax.ShapeDtypeStruct((*batch, channels, rows), jnp.int32),
        jax.ShapeDtypeStruct((*batch, rows), jnp.int32),
    )


def sums(slots=8, width=256, smaller=False):
    return lambda *args: kernel.sums_by_bin(*args, slots, width, True, smaller)


@pytest.mark.parametrize("slots, smaller", [(1, False), (32, True)])
@pytest.mark.parametrize(
    "columns, width, channels, dtype",
    [(28, 256, 2, jnp.uint16), (1, 2, 1, jnp.uint8), (5, 3000, 9, jnp.uint16)],
)
def test_it_lowers_for_a_gpu(slots, smaller, columns, width, channels, dtype):
    args = types(5000, columns, channels, dtype)
    text = lowered("cuda", sums(slots, width, smaller), *args)
    assert text.count("custom_call @mosaic_gpu") == 1


def test_it_lowers_under_vmap_and_shard_map():
    batched = types(batch=(3,))
    assert "mosaic_gpu" in lowered("cuda", jax.vmap(sums()), *batched)
    shared = jax.vmap(sums(), (None, 0, 0))
    assert "mosaic_gpu" in lowered("cuda", shared, types()[0], *batched[1:])
    rows = P(None, "data")
    split = jax.shard_map(
        sums(),
        mesh=data_mesh(jax.devices()[:2]),
        in_specs=(rows, rows, P("data")),
        out_specs=(P("data"), P("data")),
    )
    assert "mosaic_gpu" in lowered("cuda", split, *types())


@pytest.mark.parametrize(
    "rows, counts, smaller",
    [
        (3000, None, False),
        (3000, None, True),
        (700, [0, 700, 0, 0], False),  # one node has them all
        (700, [350, 350, 0, 0], True),  # as many on both sides
        (700, [0, 300, 400, 0], True),  # empty sides are the smaller ones
        (1, [0, 0, 1, 0], False),
        (1, [0, 0, 1, 0], True),
    ],
)
def test_every_row_has_one_place_among_those_of_its_node(rng, rows, counts, smaller):
    slots, size = 4, 256
    slot = rng.integers(0, slots, rows)
    if counts is not None:
        slot = rng.permutation(np.repeat(np.arange(slots), counts))
    made = kernel.in_chunks(jnp.asarray(slot, jnp.int32), slots, size, smaller)
    count = np.bincount(slot, minlength=slots)
    summed = np.asarray(made.is_summed)
    assert summed.all() or smaller
    if smaller:
        pairs = count.reshape(-1, 2)
        assert (summed.reshape(-1, 2).sum(axis=1) == 1).all()
        assert count[summed].sum() == pairs.min(axis=1).sum()
    chunks = len(made.slot)
    assert chunks == -(-(rows // 2 if smaller else rows) // size) + slots // (
        1 + smaller
    )
    filled = np.asarray(made.filled).reshape(chunks, size)
    row = np.asarray(made.row).reshape(chunks, size)
    assert sorted(row[filled]) == sorted(np.flatnonzero(summed[slot]))
    for chunk in range(chunks):
        of = int(made.slot[chunk])
        assert (slot[row[chunk][filled[chunk]]] == of).all()
        assert filled[chunk].any() or of == slots or not summed[of]


@pytest.mark.parametrize("rows", [1, 255, 1000, 100_000, 10_000_000])
@pytest.mark.parametrize("slots", [1, 2, 64, 8192])
def test_chunks_keep_sums_exact_and_are_not_mostly_padding(rows, slots):
    size = kernel.chunk_size(rows, slots)
    assert size % kernel.ROWS == 0
    assert 255 * size < 2**24
    assert slots * size <= max(rows // 4, slots * kernel.ROWS)


def test_bytes_and_sums_modulo_two_to_the_thirty_second(rng):
    q = rng.integers(-(2**31), 2**31, (3, 40)).astype(np.int32)
    q[0, :2] = -(2**31), 2**31 - 1
    parts = np.asarray(kernel._bytes(jnp.asarray(q)))
    assert (parts.min(), parts.max(), len(parts)) == (0, 255, 12)
    joined = kernel._joined(jnp.asarray(parts.T, jnp.float32))
    np.testing.assert_array_equal(joined, q.T)


@pytest.mark.skipif(
    jax.__version_info__ < (0, 12), reason="its interpreter is not there"
)
@pytest.mark.parametrize(
    "rows, slots, width, channels, has_missing, smaller",
    [
        (700, 3, 100, 3, True, False),
        (600, 2, 300, 2, False, True),  # two blocks of bins
        (5, 1, 2, 1, True, False),
        (8192, 1, 2, 1, False, False),  # eight rounds of the ring
    ],
)
def test_sums_are_exact(rng, rows, slots, width, channels, has_missing, smaller):
    from jax.experimental.pallas import mosaic_gpu as plgpu

    how = plgpu.InterpretGPUParams(detect_races=True)
    bins, q, slot = binned(rng, slots, rows, width, channels, has_missing)
    made, summed = kernel.sums_by_bin(
        bins.index, q, slot, slots, width, has_missing, smaller, how
    )
    want = np.where(summed, summed_by_hand(bins, q, slot, slots), 0)
    np.testing.assert_array_equal(made, want)


def test_many_models_in_one_program_lower_for_a_gpu():
    """A kernel for each level, whatever the batch."""
    config = xgboost.Config(
        num_boost_round=3, max_depth=4, max_bin=64, implementation="mosaic_gpu"
    )
    cuts, lowest = (jax.ShapeDtypeStruct(n, jnp.float32) for n in ((5, 64), (5,)))
    bins = Bins(types(columns=5)[0], cuts, lowest, has_missing=False)
    y = jax.ShapeDtypeStruct((2000,), jnp.float32)
    etas = jax.ShapeDtypeStruct((3,), jnp.float32)

    def fit(bins, y, etas):
        one = lambda eta: xgboost.fit(
            bins, y, replace(config, eta=eta), jax.random.key(0)
        )
        return jax.vmap(one)(etas)

    text = lowered("cuda", fit, bins, y, etas)
    assert text.count("custom_call @mosaic_gpu") == 4
