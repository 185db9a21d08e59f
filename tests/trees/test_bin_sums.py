"""Sums by column, bin and node: the scatter, and what is done around the kernel."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.trees import bin_sums
from jaxml.trees.bins import Bins
from tests.kernels.conftest import lowered
from tests.trees.conftest import binned, summed_by_hand


def told(table, channels):
    """The channels of a table of words."""
    with jax.enable_x64(True):
        return np.asarray(bin_sums.unpack(jnp.moveaxis(table, 1, 0)))[
            :channels
        ].swapaxes(0, 1)


def run(*args, **options):
    f = partial(bin_sums.sums_by_bin, **options)
    return jax.jit(f, static_argnums=3)(*args)


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize(
    "slots, width", [(1, 255), (4, 256), (512, 256)]
)  # places of 8, 16 and 32 bits
def test_rows_are_added_at_their_bin_and_slot(rng, slots, width, channels):
    bins, q, slot = binned(rng, slots, width=width, channels=channels)
    table = run(bins, q, slot, slots)
    np.testing.assert_array_equal(
        told(table, channels), summed_by_hand(bins, q, slot, slots)
    )


def test_words_hold_two_channels(rng):
    q = rng.integers(-(2**31), 2**31, (3, 50)).astype(np.int32)
    q[1] = np.abs(q[1] // 2)
    words = bin_sums.pack(jnp.asarray(q))
    assert (words.dtype, words.shape) == (np.int64, (2, 50))
    with jax.enable_x64(True):
        np.testing.assert_array_equal(bin_sums.unpack(words)[:3], q)


@pytest.mark.parametrize("has_missing", [True, False])
@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("slots", [1, 2, 8])
def test_around_the_kernel(rng, plain_products, slots, channels, has_missing):
    sizes = {"width": 60, "channels": channels, "has_missing": has_missing}
    bins, q, slot = binned(rng, slots, **sizes)
    options = {"implementation": "mosaic_gpu", "interpret": True}
    want = summed_by_hand(bins, q, slot, slots)
    np.testing.assert_array_equal(
        told(run(bins, q, slot, slots, **options), channels), want
    )
    if slots == 1:
        return
    parents = run(bins, q, slot // 2, slots // 2)
    table = run(bins, q, slot, slots, parents, **options)
    np.testing.assert_array_equal(told(table, channels), want)


def test_the_larger_child_takes_no_product(rng, plain_products):
    """It is what the smaller one leaves: wrong where the parent is."""
    bins, q, _ = binned(rng, 4, width=60)
    slot = jnp.asarray(rng.choice(4, len(q[0]), p=[0.1, 0.2, 0.4, 0.3]), jnp.int32)
    options = {"implementation": "mosaic_gpu", "interpret": True}
    above = run(bins, 2 * q, slot // 2, 2)
    table = told(run(bins, q, slot, 4, above, **options), 2)
    want = summed_by_hand(bins, q, slot, 4)
    smaller, larger = [0, 3], [1, 2]
    np.testing.assert_array_equal(table[..., smaller], want[..., smaller])
    twice = 2 * summed_by_hand(bins, q, slot // 2, 2)
    np.testing.assert_array_equal(table[..., larger], twice - want[..., smaller])


def test_one_program_for_all_platforms(rng):
    bins, q, slot = binned(rng, 4, rows=500)

    def both(index, q, slot):
        above = bin_sums.sums_by_bin(
            Bins(index, bins.cuts, bins.lowest), q, slot // 2, 2, None, "mosaic_gpu"
        )
        return bin_sums.sums_by_bin(
            Bins(index, bins.cuts, bins.lowest), q, slot, 4, above, "mosaic_gpu"
        )

    args = bins.index, q, slot
    assert lowered("cuda", both, *args).count("custom_call @mosaic_gpu") == 2
    assert lowered("cpu", both, *args).count("custom_call @mosaic_gpu") == 0
    np.testing.assert_array_equal(jax.jit(both)(*args), run(bins, q, slot, 4))


def test_what_cannot_be_is_refused(rng, monkeypatch):
    with pytest.raises(ValueError, match=r"one of \['scatter', 'mosaic_gpu'\]"):
        bin_sums.check("atomics")
    monkeypatch.setattr(bin_sums, "gpu_interpreter", lambda: None)
    with pytest.raises(ValueError, match=r"needs jax 0\.12"):
        bin_sums.check("mosaic_gpu", interpret=True)
    monkeypatch.setattr(bin_sums, "capability", lambda: "8.0")
    bin_sums.check("scatter")
    with pytest.raises(ValueError, match=r"9\.0, got 8\.0"):
        bin_sums.check("mosaic_gpu")
