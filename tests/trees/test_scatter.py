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
