"""Files appear whole, and drawing leaves no trace in the process."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from jaxml.draw import COLOURS, save_bars, save_image_sheet
from jaxml.draw.canvas import write_bytes


@pytest.mark.parametrize("kind", ["png", "pdf", "svg"])
def test_charts_are_written_by_their_suffix(tmp_path, kind):
    path = tmp_path / "new" / f"bars.{kind}"
    picture = save_bars(path, {"a": 1.0})
    start = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[kind]
    assert path.read_bytes().startswith(start)
    assert isinstance(picture, Image.Image)
    if kind == "png":
        assert np.array_equal(np.asarray(Image.open(path)), np.asarray(picture))
    assert os.listdir(path.parent) == [path.name]


def test_other_suffixes_are_errors(tmp_path):
    with pytest.raises(ValueError, match=r"must be \.png, \.pdf or \.svg, got '.*gif'"):
        save_bars(tmp_path / "bars.gif", {"a": 1.0})
    with pytest.raises(ValueError, match=r"an image must be \.png, got '.*jpg'"):
        save_image_sheet(tmp_path / "sheet.jpg", np.zeros((1, 2, 2)))
    assert not os.listdir(tmp_path)


def test_a_path_may_be_a_text(tmp_path):
    save_bars(str(tmp_path / "bars.png"), {"a": 1.0})
    assert (tmp_path / "bars.png").exists()


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "picture.png"
    write_bytes(path, b"old")

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["picture.png"]


DRAW = """
import sys
import matplotlib
import numpy as np
before = repr(matplotlib.rcParams)
from jaxml.draw import save_bars, save_curves, save_embedding, save_table
save_bars(None, {"a": 1.0})
save_curves(None, {"a": ([0, 1], [1, 2])}, log_y=True)
save_embedding(None, np.random.default_rng(0).normal(size=(9, 3)), np.arange(9) % 2)
save_table(None, {"a": {"b": 1.0}})
print("matplotlib.pyplot" in sys.modules, before == repr(matplotlib.rcParams))
"""


def test_drawing_touches_no_global_state():
    """No pyplot, no style, and no display is asked for."""
    environment = {**os.environ, "MPLBACKEND": "tkagg", "DISPLAY": ""}
    result = subprocess.run(
        [sys.executable, "-c", DRAW], capture_output=True, text=True, env=environment
    )
    assert result.stdout.split() == ["False", "True"], result.stderr


def test_colours_stay_apart_without_red_or_green():
    """Also for protanopes and deuteranopes, by the matrices of Machado et al. 2009."""
    rgb = np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in COLOURS])
    linear = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    protan = [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ]
    deutan = [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ]
    for matrix in (np.eye(3), protan, deutan):
        seen = np.clip(linear @ np.transpose(matrix), 0, 1)
        lms = seen @ np.array(  # to Oklab, where distances are perceptual
            [
                [0.4122214708, 0.2119034982, 0.0883024619],
                [0.5363325363, 0.6806995451, 0.2817188376],
                [0.0514459929, 0.1073969566, 0.6299787005],
            ]
        )
        lab = np.cbrt(lms) @ np.array(
            [
                [0.2104542553, 1.9779984951, 0.0259040371],
                [0.7936177850, -2.4285922050, 0.7827717662],
                [-0.0040720468, 0.4505937099, -0.8086757660],
            ]
        )
        apart = np.linalg.norm(lab[:, None] - lab[None], axis=-1)
        assert apart[~np.eye(10, dtype=bool)].min() > 0.04
