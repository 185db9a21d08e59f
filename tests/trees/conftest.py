"""Binned rows, their sums one row after the other, and a kernel's own step in plain JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.trees import bin_sums, gpu_histogram
from jaxml.trees.bins import Bins


def binned(rng, slots, rows=3000, width=256, channels=2, has_missing=True):
    """Bins, channels of which every second is not negative, and nodes."""
    most = width + has_missing
    kind = np.uint8 if most <= 256 else np.uint16
    index = rng.integers(0, most, (2, rows)).astype(kind)
    bins = Bins(jnp.asarray(index), jnp.zeros((2, width)), jnp.zeros(2), has_missing)
    q = rng.integers(-(2**18), 2**18, (channels, rows)).astype(np.int32)
    q[1::2] = np.abs(q[1::2])
    return bins, jnp.asarray(q), jnp.asarray(rng.integers(0, slots, rows), jnp.int32)


def summed_by_hand(bins, q, slot, slots):
    """Channels by column, bin and slot, one row after the other."""
    index, q = np.asarray(bins.index, int), np.asarray(q, np.int64)
    sums = np.zeros((len(index), len(q), bins.stride, slots), np.int64)
    for column, own in enumerate(index):
        for channel, values in enumerate(q):
            np.add.at(sums[column, channel], (own, np.asarray(slot)), values)
    return sums


@pytest.fixture
def plain_products(monkeypatch):
    """The kernel's own step in plain JAX, so that all around it runs anywhere."""

    def count(codes, parts, size, width, interpret):
        assert interpret == "stand-in"
        columns = len(codes)
        assert columns % gpu_histogram.WARPGROUPS == 0
        hot = jax.nn.one_hot(codes, width, axis=1, dtype=jnp.float32)
        hot = hot.reshape(columns, width, -1, size)
        rows = parts.swapaxes(1, 2).reshape(-1, size, parts.shape[1])
        return jnp.einsum("cbks,ksn->kcbn", hot, rows.astype(jnp.float32))

    monkeypatch.setattr(gpu_histogram, "_count", count)
    monkeypatch.setattr(bin_sums, "gpu_interpreter", lambda: "stand-in")
