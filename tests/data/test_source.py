"""Slices of splits, added up, against concatenation."""

import chex
import numpy as np
import pytest

from jaxml.data.source import from_arrays, read_slices
from jaxml.data.splits import Slice


@pytest.fixture
def source():
    return from_arrays(
        {
            "a": {"x": np.arange(10), "y": 10 * np.arange(20).reshape(10, 2)},
            "b": {"x": 100 + np.arange(4), "y": 1000 + np.arange(8).reshape(4, 2)},
        },
        classes=("one",),
    )


def test_from_arrays(source):
    assert dict(source.sizes) == {"a": 10, "b": 4}
    assert source.classes == ("one",)
    chex.assert_trees_all_equal(
        source.open("b")(np.array([3, 3, 0])),
        {
            "x": np.array([103, 103, 100]),
            "y": np.array([[1006, 1007]] * 2 + [[1000, 1001]]),
        },
    )


@pytest.mark.parametrize(
    "slices",
    [
        [Slice("a", 0, 10)],
        [Slice("a", 2, 7)],
        [Slice("a", 2, 7), Slice("b", 1, 3)],
        [Slice("b", 0, 4), Slice("a", 9, 10), Slice("b", 2, 4), Slice("a", 0, 3)],
    ],
)
def test_slices_read_like_their_concatenation(source, slices, rng):
    size, read = read_slices(source, slices)
    whole = {
        key: np.concatenate(
            [source.open(s.split)(np.arange(s.start, s.stop))[key] for s in slices]
        )
        for key in ("x", "y")
    }
    assert size == len(whole["x"])
    for indices in (np.arange(size), rng.integers(0, size, 50), np.array([size - 1])):
        chex.assert_trees_all_equal(
            read(indices), {key: values[indices] for key, values in whole.items()}
        )


def test_batches_are_copies(source):
    _, read = read_slices(source, [Slice("a", 0, 10)])
    read(np.arange(10))["x"][:] = -1
    assert read(np.arange(10))["x"].tolist() == list(range(10))


def test_arrays_must_have_one_length():
    with pytest.raises(ValueError, match="one length, got x 3, y 4 in train"):
        from_arrays({"train": {"x": np.zeros(3), "y": np.zeros(4)}})
