"""Point clouds: near before far, colours of classes, several views."""

import numpy as np
import pytest

from jaxml.draw import save_point_cloud
from jaxml.draw.photograph import class_colour

FRONT = [(0.0, 0.0)]  # from positive x


def test_the_near_point_covers_the_far_one(tmp_path):
    points = np.float32([[1, 0, 0], [-1, 0, 0], [0, 0.5, 0.5], [0, -0.5, -0.5]])
    path = tmp_path / "points.png"
    options = {"views": FRONT, "size": 100, "radius": 6.0}
    picture = save_point_cloud(path, points, labels=np.array([1, 2, 0, 0]), **options)
    assert path.exists()
    pixels = np.asarray(picture).astype(int)
    assert np.abs(pixels[50, 50] - class_colour(1)).max() <= 2
    behind = save_point_cloud(None, -points, labels=np.array([1, 2, 0, 0]), **options)
    assert np.abs(np.asarray(behind)[50, 50].astype(int) - class_colour(2)).max() <= 2


def test_right_and_up():
    """Seen from positive x, y is to the right and z is up."""
    points = np.float32([[0, -1, -1], [0, 1, 1]])
    colours = np.float32([[1, 0, 0], [0, 0, 1]])
    options = {"colours": colours, "views": FRONT, "size": 100, "radius": 4.0}
    pixels = np.asarray(save_point_cloud(None, points, **options)).astype(int)
    red = np.argwhere(pixels[..., 0] > pixels[..., 2] + 50).mean(axis=0)
    blue = np.argwhere(pixels[..., 2] > pixels[..., 0] + 50).mean(axis=0)
    assert red[0] > 70
    assert red[1] < 30
    assert blue[0] < 30
    assert blue[1] > 70


def test_views_stand_side_by_side_and_height_is_a_colour(rng):
    points = rng.normal(size=(50, 3)).astype(np.float32)
    points[3] = np.nan
    picture = save_point_cloud(None, points, views=[(0, 0), (90, 0), (0, 90)], size=64)
    assert picture.size == (192, 64)
    halves = np.split(np.asarray(picture), 3, axis=1)
    assert all((half != 255).any() for half in halves)
    assert (halves[0] != halves[1]).any()


def test_bad_input_is_named():
    points = np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match="points must be finite, got none among 2"):
        save_point_cloud(None, points * np.nan)
    with pytest.raises(ValueError, match="by labels or by colours, got both"):
        save_point_cloud(None, points, labels=np.zeros(2, int), colours=points)
    with pytest.raises(ValueError, match="at least one, got none"):
        save_point_cloud(None, points, views=[])
    with pytest.raises(ValueError, match="classes that have names, got 1"):
        save_point_cloud(None, points, labels=np.ones(2, int), class_names=["a"])
