"""Checksums: any damage to any file is found, and named."""

import json
import zlib

import numpy as np
import pytest

from jaxml.train import checksums


@pytest.fixture
def folder(tmp_path, rng, monkeypatch):
    """Files of all sizes around the block and the reading size."""
    monkeypatch.setattr(checksums, "BLOCK", 1000)
    monkeypatch.setattr(checksums, "READ", 300)
    for i, size in enumerate([0, 1, 999, 1000, 1001, 3500]):
        path = tmp_path / ("deep/er" if i % 2 else ".") / f"file{i}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.bytes(size))
    (tmp_path / "other").write_text("not ours")
    checksums.write(tmp_path, ignore=("other",))
    return tmp_path


def test_whole_files_pass(folder):
    assert checksums.damages(folder) == []
    (folder / "other").write_text("changed")
    (folder / "new").write_text("not there before")
    assert checksums.damages(folder) == []


def test_the_numbers_are_crc32(folder):
    blocks = json.loads((folder / checksums.NAME).read_text())["blocks"]
    content = (folder / "deep/er/file5").read_bytes()
    mine = [(start, stop, crc) for name, start, stop, _, crc in blocks if "5" in name]
    assert mine == [
        (i, min(i + 1000, 3500), zlib.crc32(content[i : i + 1000]))
        for i in range(0, 3500, 1000)
    ]


def test_every_flipped_bit_is_found(folder, rng):
    for path in sorted(folder.rglob("file*")):
        content = path.read_bytes()
        for bit in rng.integers(8 * max(len(content), 1), size=20 * bool(content)):
            changed = np.frombuffer(content, np.uint8).copy()
            changed[bit // 8] ^= 1 << (bit % 8)
            path.write_bytes(changed.tobytes())
            (damage,) = checksums.damages(folder)
            name, start, stop = path.relative_to(folder), *damage[:-1].split()[-3::2]
            assert damage.startswith(f"{name} is not what was written (bytes ")
            assert int(start) <= bit // 8 < int(stop)
        path.write_bytes(content)
    assert checksums.damages(folder) == []


def test_lost_and_added_bytes_are_found(folder):
    path = folder / "deep/er/file5"
    content = path.read_bytes()
    for changed in (b"", content[:-1], content[1:], content + b"\0"):
        path.write_bytes(changed)
        expected = [f"deep/er/file5 has {len(changed)} bytes, not 3500"]
        assert checksums.damages(folder) == expected
    path.unlink()
    (folder / "file0").write_bytes(b"\0")  # was empty
    assert checksums.damages(folder) == [
        "deep/er/file5 is missing",
        "file0 has 1 bytes, not 0",
    ]


def test_two_files_may_not_change_places(folder):
    path, other = folder / "file2", folder / "file4"
    path.rename(folder / "third")
    other.rename(path)
    (folder / "third").rename(other)
    assert len(checksums.damages(folder)) == 2


def test_the_list_itself_is_guarded(folder):
    path = folder / checksums.NAME
    text = path.read_text()
    for changed in ("", text[:-20], text.replace("999", "998"), '{"crc32": 0}', "[]"):
        path.write_text(changed)
        assert checksums.damages(folder) == ["CHECKSUMS is not what was written"]
    path.write_bytes(b"\xff" + text.encode())
    assert checksums.damages(folder) == ["CHECKSUMS is not what was written"]
    path.unlink()
    assert checksums.damages(folder) == ["CHECKSUMS is missing"]


def test_a_part_is_looked_at_alone(folder):
    (folder / "file1").unlink(missing_ok=True)
    (folder / "file4").write_text("damaged")
    (folder / "deep/er/file3").write_text("damaged")
    assert checksums.damages(folder, "deep/") == ["deep/er/file3 has 7 bytes, not 1000"]
