"""Heat maps, read back pixel by pixel."""

import numpy as np
import pytest

from jaxml.draw import save_heat_map

IMAGE = np.zeros((60, 90, 3), np.float32)
IMAGE[..., 0] = 1.0


def test_heat_covers_and_cold_shows_the_image_in_grey(tmp_path):
    heat = np.float32([[0, 0, 0], [0, 0, 4]])
    path = tmp_path / "heat.png"
    pixels = np.asarray(save_heat_map(path, IMAGE, heat, scale=1)).astype(int)
    assert path.exists()
    assert pixels.shape == (60, 90, 3)
    cold, hot = pixels[5, 5], pixels[55, 85]
    assert (cold == cold[0]).all()
    assert abs(cold[0] - 76) <= 1  # of red, by Rec. 601
    assert hot.sum() > 500


def test_limits_and_unknown_heat():
    heat = np.float32([[1, np.nan]])
    known = np.asarray(save_heat_map(None, IMAGE, heat, low=0.0, high=1.0, scale=1))
    assert known[30, 5].sum() > 500
    assert (known[30, 85] == 76).all()
    flat = np.asarray(save_heat_map(None, IMAGE, np.ones((2, 2), np.float32), scale=1))
    assert (flat == 76).all()


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="heat must be finite somewhere"):
        save_heat_map(None, IMAGE, np.full((2, 2), np.nan, np.float32))
    with pytest.raises(ValueError, match=r"opacity must be in \[0, 1\], got -1"):
        save_heat_map(None, IMAGE, np.ones((2, 2), np.float32), opacity=-1.0)
