"""Sums by place against NumPy's, at the edges of the narrow types of places."""

import jax
import numpy as np
import pytest

from jaxml.trees.scatter import add_at, kind_of


@pytest.mark.parametrize(
    ("size", "bits"), [(1, 8), (256, 8), (257, 16), (2**16, 16), (2**16 + 1, 32)]
)
def test_the_last_place_is_reached(size, bits, rng):
    kind = kind_of(size)
    assert kind == np.dtype(f"uint{bits}")
    place = rng.integers(0, size, 200).astype(kind)
    place[:3] = size - 1
    values = rng.integers(-(2**40), 2**40, (2, 200))
    with jax.enable_x64(True):
        told = np.asarray(add_at(values, place, size))
    assert told.dtype == np.int64
    for row, value in zip(told, values, strict=True):
        expected = np.zeros(size, np.int64)
        np.add.at(expected, place, value)
        np.testing.assert_array_equal(row, expected)


@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0)])
def test_batches_are_summed_one_after_the_other(axes, rng):
    values = rng.integers(-(2**40), 2**40, (3, 2, 50))
    place = rng.integers(0, 9, (3, 50)).astype(np.uint8)
    values, place = (
        x if axis == 0 else x[0] for x, axis in zip((values, place), axes, strict=True)
    )
    sums = jax.jit(jax.vmap(lambda v, p: add_at(v, p, 9), axes))
    with jax.enable_x64(True):
        told = np.asarray(sums(values, place))
        text = sums.lower(values, place).as_text()
    assert told.dtype == np.int64
    expected = np.zeros((3, 2, 9), np.int64)
    for batch in range(3):
        at = place[batch] if axes[1] == 0 else place
        for channel in range(2):
            value = values[batch, channel] if axes[0] == 0 else values[channel]
            np.add.at(expected[batch, channel], at, value)
    np.testing.assert_array_equal(told, expected)
    # Each of them is the scatter of scalars that a CPU is fast at.
    assert "stablehlo.while" in text
    assert "input_batching_dims" not in text
