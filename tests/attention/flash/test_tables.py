"""The table of cuts, and the files that measurements go to."""

import json

import pytest

from jaxml.attention.flash import tables
from jaxml.attention.flash.tables import DIMS, SPLIT, Backward, Entry, Forward, Pass


@pytest.fixture
def tuned(tmp_path, monkeypatch):
    """Writes a file for a device of the name."""
    monkeypatch.setattr(tables, "TUNED", tmp_path)
    tables.tuned.cache_clear()

    def write(device, *rows):
        path = tables.file_of(device)
        path.write_text(json.dumps({"rows": [tables.encoded(*row) for row in rows]}))

    yield write
    tables.tuned.cache_clear()


def test_what_was_measured_comes_back(tuned):
    cuts = Entry(
        Forward(64, 192, 3, 3), Backward(SPLIT, Pass(64, 128, 2, 1)), 612.5, 640.0
    )
    full = cuts._replace(backward=Backward(Pass(128, 64, 2, 2, False, 1)), cudnn=None)
    tuned("NVIDIA H200", (128, True, cuts), (128, False, full), (64, False, full))
    assert tables.file_of("NVIDIA H200").name == "nvidia_h200.json"
    assert tables.file_of("A GPU (80 GB)").name == "a_gpu_80_gb.json"
    assert tables.entry(100, 128, True, "NVIDIA H200") == cuts
    assert tables.entry(100, 128, False, "NVIDIA H200") == full
    # Another mask, dim or device starts where tuning does.
    assert tables.entry(64, 64, True, "NVIDIA H200") == tables.STARTS[64]
    assert tables.entry(256, 64, True, "NVIDIA H200") == tables.STARTS[256]
    assert tables.entry(100, 128, True, "NVIDIA H100") == tables.STARTS[128]


def test_rows_serve_all_dims_up_to_their_own():
    assert [tables.row_of(d, 1) for d in (1, 64, 65, 129, 256)] == [
        64,
        64,
        128,
        192,
        256,
    ]
    assert tables.row_of(192, 256) == 256
    with pytest.raises(ValueError, match="at most 256, got 64 and 257"):
        tables.row_of(64, 257)


def test_nothing_is_claimed_that_was_not_measured():
    assert tables.STARTS.keys() == set(DIMS)
    assert all(e.speed is None and e.cudnn is None for e in tables.STARTS.values())
    for path in tables.TUNED.glob("*.json"):  # each says where it comes from
        made = json.loads(path.read_text())
        assert made["device"]
        assert made["jax"]
        assert all(row["speed"] > 0 for row in made["rows"])
