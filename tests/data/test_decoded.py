"""Decoded files: made once, whole or not at all."""

import os
import threading

import chex
import numpy as np
import pytest

from jaxml.data.decoded import decode_once, fingerprint, load_notes, save_notes

SHAPES = {"x": (5000, 3), "y": (5000,)}
DTYPES = {"x": "float32", "y": "int64"}


@pytest.fixture
def arrays(rng):
    return {
        "x": rng.normal(size=SHAPES["x"]).astype(np.float32),
        "y": rng.integers(0, 2**40, SHAPES["y"]),
    }


def read_from(arrays):
    return lambda: lambda indices: {k: v[indices] for k, v in arrays.items()}


def refuse():
    raise AssertionError("the records must not be read again")


def test_decodes_once(arrays, tmp_path):
    folder = tmp_path / "cache" / "train"
    first = decode_once(folder, read_from(arrays), SHAPES, DTYPES)
    again = decode_once(folder, refuse, SHAPES, DTYPES)
    chex.assert_trees_all_equal(first, arrays)
    chex.assert_trees_all_equal(again, arrays)
    assert sorted(os.listdir(folder)) == ["x.npy", "y.npy"]
    assert os.listdir(folder.parent) == ["train"]  # nothing temporary is left
    with pytest.raises(ValueError, match="read-only"):
        again["x"][0] = 0


def test_a_failure_leaves_nothing_behind(arrays, tmp_path):
    def fail(indices):
        if indices[0] > 3000:
            raise ValueError("a broken record")
        return {k: v[indices] for k, v in arrays.items()}

    folder = tmp_path / "cache" / "train"
    with pytest.raises(ValueError, match="a broken record"):
        decode_once(folder, lambda: fail, SHAPES, DTYPES)
    assert os.listdir(folder.parent) == []
    chex.assert_trees_all_equal(
        decode_once(folder, read_from(arrays), SHAPES, DTYPES), arrays
    )


def test_two_at_the_same_time(arrays, tmp_path):
    """Both start before either has finished; the second finds the first one's files."""
    folder, barrier, results = tmp_path / "cache" / "train", threading.Barrier(2), []

    def open_records():
        barrier.wait(timeout=30)
        return read_from(arrays)()

    def run():
        results.append(decode_once(folder, open_records, SHAPES, DTYPES))

    threads = [threading.Thread(target=run) for _ in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(results) == 2
    for result in results:
        chex.assert_trees_all_equal(result, arrays)
    assert os.listdir(folder.parent) == ["train"]


def test_fingerprint_follows_the_files(tmp_path):
    (tmp_path / "a").write_text("one")
    (tmp_path / "folder").mkdir()
    before = fingerprint(tmp_path, 32)
    (tmp_path / "folder" / "b").write_text("below is not looked at")
    assert fingerprint(tmp_path, 32) == before
    assert fingerprint(tmp_path, None) != before
    os.utime(tmp_path / "a", ns=(1, 1))
    touched = fingerprint(tmp_path, 32)
    assert touched != before
    (tmp_path / "a").write_text("four")
    os.utime(tmp_path / "a", ns=(1, 1))
    assert fingerprint(tmp_path, 32) not in (before, touched)


def test_notes(tmp_path):
    assert load_notes(tmp_path) is None
    save_notes(tmp_path / "absent", [1])
    assert not (tmp_path / "absent").exists()
    save_notes(tmp_path, [1, {"a": ["b"]}])
    assert load_notes(tmp_path) == [1, {"a": ["b"]}]
    assert os.listdir(tmp_path) == ["notes.json"]
