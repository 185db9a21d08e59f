"""Panels of functions: the right colours at the right heights, and what is refused."""

import numpy as np
import pytest

from jaxml.draw import COLOURS, save_functions, save_surfaces

X = np.linspace(-3, 3, 61)


def rgb(index):
    return [int(COLOURS[index][i : i + 2], 16) for i in (1, 3, 5)]


def where(picture, colour):
    """Rows and columns of the pixels of a colour."""
    image = np.asarray(picture).astype(int)
    return np.nonzero(np.abs(image - colour).max(2) < 12)


def test_values_and_slopes_stand_at_their_heights(tmp_path):
    flat = {"a": (0 * X + 2, 0 * X - 1)}
    picture = save_functions(tmp_path / "f.png", X, flat, title="flat")
    assert (tmp_path / "f.png").exists()
    value, slope = where(picture, rgb(0))[0], where(picture, rgb(6))[0]
    # The longest row of each colour is its line: 2 is far above -1.
    heights = [np.bincount(rows).argmax() for rows in (value, slope)]
    assert heights[0] < heights[1] - 0.3 * picture.height


def test_panels_stand_in_rows():
    pair = (np.tanh(X), 1 - np.tanh(X) ** 2)
    one = save_functions(None, X, {"a": pair})
    many = save_functions(None, X, {str(i): pair for i in range(5)}, columns=3)
    assert many.width > 2.5 * one.width
    assert many.height > 1.7 * one.height


def test_maps_are_blue_above_zero_and_red_below():
    z = np.broadcast_to(X, (61, 61))
    picture = save_surfaces(None, X, X, {"x": z}, xlabel="x", ylabel="y")
    image = np.asarray(picture).astype(int)
    blue = np.nonzero(image[..., 2] - image[..., 0] > 80)[1]
    red = np.nonzero(image[..., 0] - image[..., 2] > 80)[1]
    assert red.max() < blue.min()
    flat = save_surfaces(None, X, X, {"none": 0 * z})  # no height is no error
    assert flat.size[0] > 100


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="at least one function"):
        save_functions(None, X, {})
    with pytest.raises(
        ValueError, match=r"slopes of a must be \(2, 61\), got \(2, 3\)"
    ):
        save_functions(None, X, {"a": (np.ones(3), np.ones(3))})
    with pytest.raises(
        ValueError, match=r"values of a must be \(2, 61\), got \(61, 2\)"
    ):
        save_surfaces(None, X, X[:2], {"a": np.ones((61, 2))})
