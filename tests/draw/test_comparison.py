"""Bars are as long as their numbers, and the best of a table stands out."""

import numpy as np
import pytest

from jaxml.draw import COLOURS, save_bars, save_table
from jaxml.draw.comparison import _best


def widths(picture, colour):
    """How many pixels of the colour each bar has in its widest row, from the top."""
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    per_row = (np.abs(np.asarray(picture).astype(int) - rgb).max(axis=2) < 3).sum(1)
    filled = np.flatnonzero(per_row > 3)
    groups = np.split(filled, np.flatnonzero(np.diff(filled) > 1) + 1)
    return [int(per_row[group].max()) for group in groups if group.size]


def texts(path):
    lines = path.read_text("utf-8").splitlines()
    return [line.strip()[5:-4] for line in lines if line.strip().startswith("<!-- ")]


def test_bars_are_as_long_as_their_numbers():
    a, b, c = widths(save_bars(None, {"a": 4.0, "b": 2.0, "c": -3.0}), COLOURS[0])
    assert b == pytest.approx(a / 2, abs=4)
    assert c == pytest.approx(a * 3 / 4, abs=4)


def test_several_runs_are_a_mean_with_its_spread(tmp_path):
    values = {"a": [1.0, 2.0, 6.0], "b": np.float32([3.0]), "c": float("nan")}
    save_bars(tmp_path / "b.svg", values, xlabel="points", title="runs", spec=".2f")
    shown = texts(tmp_path / "b.svg")
    assert {"3.00 ± 2.65", "3.00", "nan", "points", "runs", "a", "b", "c"} == set(shown)
    a, b = widths(save_bars(None, {"a": [1.0, 2.0, 6.0], "b": 3.0}), COLOURS[0])
    assert a == pytest.approx(b, abs=12)  # the dots cover a little


def test_highlights_grey_the_others_out():
    values = {"a": 1.0, "b": 2.0, "c": 3.0}
    assert len(widths(save_bars(None, values), COLOURS[0])) == 3
    picture = save_bars(None, values, highlight=["b"])
    assert len(widths(picture, COLOURS[0])) == 1
    assert len(widths(picture, "#c9ced1")) == 2


def test_bad_bars_are_errors():
    with pytest.raises(ValueError, match="at least one bar, got none"):
        save_bars(None, {})
    with pytest.raises(ValueError, match=r"a must be a number or several, got \(0,\)"):
        save_bars(None, {"a": []})
    with pytest.raises(ValueError, match="highlight must name bars, got b"):
        save_bars(None, {"a": 1.0}, highlight=["b"])


ROWS = {
    "SimCLR": {"kNN": 84.25, "loss": 4.5, "only": 1.0},
    "BYOL": {"kNN": 86.5, "loss": 0.125, "note": "text"},
    "SimSiam": {"kNN": float("nan"), "loss": 0.125},
}


def test_the_best_of_a_column():
    assert _best(ROWS, "kNN", lowest=False) == {"BYOL"}
    assert _best(ROWS, "kNN", lowest=True) == {"SimCLR"}
    assert _best(ROWS, "loss", lowest=True) == {"BYOL", "SimSiam"}
    assert _best(ROWS, "only", lowest=False) == _best(ROWS, "note", lowest=False)
    assert _best(ROWS, "only", lowest=False) == set()


def ink(picture, row):
    """Dark pixels of the kNN cell, which bold letters have more of."""
    pixels = np.asarray(picture.convert("L"))
    height = pixels.shape[0] / 4
    band = pixels[int((row + 0.25) * height) : int((row + 0.75) * height)]
    return (band[:, pixels.shape[1] // 2 :] < 128).sum()


def test_a_table_says_everything_and_the_best_in_bold(tmp_path):
    save_table(tmp_path / "t.svg", ROWS, title="all", lower_is_better=["loss"])
    shown = texts(tmp_path / "t.svg")
    names = {"all", "kNN", "loss", "only", "note", *ROWS}
    values = {"84.25", "86.5", "4.5", "0.125", "nan", "1", "text", "\N{EN DASH}"}
    assert names | values == set(shown)
    rows = {"a": {"kNN": 7.5}, "b": {"kNN": 8.5}, "c": {"kNN": 7.5}}
    high = save_table(None, rows)
    low = save_table(None, rows, lower_is_better=["kNN"])
    assert ink(high, 2) > 1.1 * ink(low, 2)
    assert ink(low, 1) > 1.1 * ink(high, 1)


def test_bad_tables_are_errors():
    with pytest.raises(ValueError, match="rows must hold a value, got 0 rows"):
        save_table(None, {})
    with pytest.raises(ValueError, match="got 1 rows without one"):
        save_table(None, {"a": {}})
    with pytest.raises(ValueError, match="lower_is_better must name columns, got b"):
        save_table(None, {"a": {"c": 1.0}}, lower_is_better=["b"])
