"""TFRecord files, which TensorFlow writes, read without it and in any order.

A file is a chain of records: the length (8 bytes, little endian), its checksum (4), the
data, their checksum (4). One walk along the lengths finds every record; the checksums are
not looked at.

The format: https://www.tensorflow.org/tutorials/load_data/tfrecord.
"""

import mmap
import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np


def open_tfrecords(
    paths: Sequence[str | os.PathLike[str]],
) -> tuple[int, Callable[[Sequence[int]], list[bytes]]]:
    """How many records the files hold together, and how to read some of them.

    Raises:
        ValueError: if a file ends within a record.
    """
    shards = [_map(path) for path in paths]
    spans = [list(_walk(view, path)) for view, path in zip(shards, paths, strict=True)]
    ends = np.cumsum([len(span) for span in spans])

    def read(indices: Sequence[int]) -> list[bytes]:
        records = []
        for index in indices:
            shard = int(np.searchsorted(ends, index, side="right"))
            start, size = spans[shard][index - int(ends[shard])]  # counted from behind
            records.append(bytes(shards[shard][start : start + size]))
        return records

    return int(ends[-1]), read


def _map(path: str | os.PathLike[str]) -> memoryview:
    if os.path.getsize(path) == 0:
        return memoryview(b"")
    with open(path, "rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _walk(view: memoryview, path: str | os.PathLike[str]) -> Iterator[tuple[int, int]]:
    """Where each record's data start, and their size."""
    at = 0
    while at < len(view):
        size = int.from_bytes(view[at : at + 8], "little")
        if at + size + 16 > len(view):
            raise ValueError(f"{os.fspath(path)} is cut short: a record at byte {at}")
        yield at + 12, size
        at += size + 16
