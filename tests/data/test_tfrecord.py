"""TFRecord files, written here after their specification."""

import struct

import hypothesis
import pytest
from hypothesis import strategies as st

from jaxml.data.tfrecord import open_tfrecords


def write(path, records):
    """Length, its checksum, data, their checksum; the sums are not looked at."""
    with open(path, "wb") as file:
        for record in records:
            file.write(struct.pack("<QI", len(record), 0xDEADBEEF))
            file.write(record + struct.pack("<I", 0xDEADBEEF))
    return path


@hypothesis.settings(deadline=None)
@hypothesis.given(
    st.lists(st.lists(st.binary(max_size=40), max_size=4), min_size=1, max_size=4),
    st.randoms(),
)
def test_reads_any_records_of_any_shards(tmp_path_factory, shards, random):
    folder = tmp_path_factory.mktemp("records")
    paths = [write(folder / str(i), records) for i, records in enumerate(shards)]
    size, read = open_tfrecords(paths)
    everything = [record for records in shards for record in records]
    assert size == len(everything)
    indices = list(range(size)) * 2
    random.shuffle(indices)
    assert read(indices) == [everything[i] for i in indices]


@pytest.mark.parametrize("cut", [1, 4, 5, 12, 16, 17])
def test_a_file_cut_short_is_an_error(tmp_path, cut):
    path = write(tmp_path / "some.tfrecord", [b"one", b"four"])
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(ValueError, match=r"some\.tfrecord is cut short: .* byte 19"):
        open_tfrecords([path])
