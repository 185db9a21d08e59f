"""What a source of samples is: sizes and names, and a way to read any samples at random.

A source is a value. `Source.open(split)` gives a function from indices to a batch of
NumPy arrays, and the loader, the slices and the fixed order of evaluation are made of
nothing else. Reading must be a pure function of the indices, because several threads
call it at once.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxml.data.splits import Slice
from jaxml.export import export
from jaxml.typing import Int

Arrays = Mapping[str, np.ndarray]
"""Named arrays with the sample axis first."""

Read = Callable[[Int[np.ndarray, " batch"]], dict[str, np.ndarray]]
"""Indices into a split -> those samples, newly made."""


@export("data.Source", since="0.1")
class Source(NamedTuple):
    """Samples that can be read at random, in named splits.

    Attributes:
        sizes: samples per split.
        open: split -> Read; what must be read or decoded first is done here.
        classes: names of the classes, where there are any.
        endless: whether a split goes on past its size, as generated ones do.
    """

    sizes: Mapping[str, int]
    open: Callable[[str], Read]
    classes: Sequence[str] = ()
    endless: bool = False


@export("data.from_arrays", since="0.1")
def from_arrays(splits: Mapping[str, Arrays], classes: Sequence[str] = ()) -> Source:
    """A source of arrays in memory, for `jaxml.data.load`.

    Args:
        splits: split -> named arrays with the sample axis first.
        classes: names of the classes, if there are any.

    Raises:
        ValueError: if the arrays of a split differ in length.

    >>> source = from_arrays({"train": {"image": np.zeros((9, 32, 32, 3))}})
    >>> source.sizes
    {'train': 9}
    """
    for split, arrays in splits.items():
        if len({len(array) for array in arrays.values()}) != 1:
            got = ", ".join(f"{name} {len(array)}" for name, array in arrays.items())
            raise ValueError(f"arrays must have one length, got {got} in {split}")
    sizes = {
        split: len(next(iter(arrays.values()))) for split, arrays in splits.items()
    }
    return Source(sizes, lambda split: reader(splits[split]), classes)


def reader(arrays: Arrays) -> Read:
    """Reads a batch with one gather per array."""
    return lambda indices: {name: array[indices] for name, array in arrays.items()}


def read_slices(source: Source, slices: Sequence[Slice]) -> tuple[int, Read]:
    """How many samples the slices hold, and how to read them as if they were a split."""
    reads = {part.split: source.open(part.split) for part in slices}
    starts = np.array([part.start for part in slices])
    ends = np.cumsum([part.stop - part.start for part in slices])

    def read(indices: Int[np.ndarray, " batch"]) -> dict[str, np.ndarray]:
        where = np.searchsorted(ends, indices, side="right")
        within = indices - np.append(0, ends)[where] + starts[where]
        groups = [np.flatnonzero(where == k) for k in np.unique(where)]
        parts = [reads[slices[where[g[0]]].split](within[g]) for g in groups]
        if len(parts) == 1:
            return parts[0]
        back = np.argsort(np.concatenate(groups))
        return {
            name: np.concatenate([part[name] for part in parts])[back]
            for name in parts[0]
        }

    return int(ends[-1]), read
