"""Key points, read back pixel by pixel."""

import numpy as np
import pytest

from jaxml.draw import save_key_points
from jaxml.draw.photograph import class_colour

IMAGE = np.full((100, 160, 3), 0.5, np.float32)
POINTS = np.float32([[[30, 50], [120, 50], [80, 20]], [[30, 80], [120, 80], [80, 95]]])


def test_points_and_limbs_have_the_colour_of_their_object(tmp_path):
    path = tmp_path / "points.png"
    visible = np.array([[True, True, False], [True, False, True]])
    picture = save_key_points(
        path, IMAGE, POINTS, visible=visible, limbs=[(0, 1)], scale=1
    )
    assert path.exists()
    pixels = np.asarray(picture).astype(int)
    for x, y, label in (
        (30, 50, 0),
        (120, 50, 0),
        (80, 50, 0),
        (30, 80, 1),
        (80, 95, 1),
    ):
        assert np.abs(pixels[y, x] - class_colour(label)).max() <= 2, (x, y)
    assert (pixels[20, 80] == 128).all()  # not visible
    assert (pixels[80, 80] == 128).all()  # one end is not


def test_points_grow_with_the_picture():
    pixels = np.asarray(save_key_points(None, IMAGE, POINTS, scale=2)).astype(int)
    assert np.abs(pixels[100, 60] - class_colour(0)).max() <= 2
    assert (pixels[50, 30] == 128).all()


def test_no_object_and_nan():
    assert (np.asarray(save_key_points(None, IMAGE, POINTS[:0], scale=1)) == 128).all()
    nowhere = np.full((1, 2, 2), np.nan, np.float32)
    picture = save_key_points(None, IMAGE, nowhere, limbs=[(0, 1)], scale=1)
    assert (np.asarray(picture) == 128).all()


def test_a_limb_must_have_its_points():
    with pytest.raises(ValueError, match=r"join points in \[0, 3\), got \[\(0, 3\)\]"):
        save_key_points(None, IMAGE, POINTS, limbs=[(0, 3)])
