"""Regions of a classifier: on the right side, and with their points."""

import numpy as np
import pytest

from jaxml.draw import COLOURS, save_boundary

POINTS = np.array([[0.0, 0], [1, 0], [0, 1], [1, 1]])
LABELS = np.array([-1, 1, -1, 1])


def tint(index):
    rgb = [int(COLOURS[index][i : i + 2], 16) for i in (1, 3, 5)]
    return 255 - 0.25 * (255 - np.array(rgb))


def test_the_positive_side_is_blue(tmp_path):
    right = lambda x: x[:, 0] - 0.5
    picture = save_boundary(
        tmp_path / "b.png", POINTS, LABELS, {"right": right}, title="a line"
    )
    assert (tmp_path / "b.png").exists()
    image = np.asarray(picture).astype(float)
    middles = []
    for index in (1, 0):
        near = np.abs(image - tint(index)).max(2) < 6
        middles.append(np.nonzero(near)[1].mean())
        assert near.mean() > 0.15
    assert middles[0] < middles[1] - 50


def test_several_panels_and_functions_without_a_boundary():
    ones = lambda x: np.ones(len(x))
    picture = save_boundary(None, POINTS, LABELS, {"a": ones, "b": lambda x: -ones(x)})
    one = save_boundary(None, POINTS, LABELS, {"a": ones})
    assert picture.width > 1.8 * one.width


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="at least one function"):
        save_boundary(None, POINTS, LABELS, {})
    with pytest.raises(ValueError, match=r"got \(4, 2\) and \(3,\)"):
        save_boundary(None, POINTS, LABELS[:3], {"a": lambda x: x[:, 0]})
