"""Depth maps: near is bright, unknown is grey, the scale is beside."""

import numpy as np
import pytest

from jaxml.draw import save_depth_map


def colours(picture):
    return {tuple(c) for _, c in picture.getcolors(1 << 24)}


def test_near_is_bright_and_unknown_is_grey(tmp_path):
    depth = np.ones((40, 60), np.float32)
    depth[:, 30:] = 5
    depth[:10] = np.nan
    valid = np.ones((40, 60), bool)
    valid[30:] = False
    path = tmp_path / "depth.png"
    picture = save_depth_map(path, depth, valid=valid, unit="m", title="depth")
    assert path.exists()
    pixels = np.asarray(picture).astype(int)
    grey = (pixels == 0xD8).all(axis=2)
    share = grey.mean()
    assert 0.2 < share < 0.6  # half of the field
    inside = pixels[pixels.shape[0] // 2]
    left, right = (inside[int(f * len(inside))].sum() for f in (0.2, 0.65))
    assert left > right + 150
    bar = pixels[:, int(0.8 * pixels.shape[1]) :]
    bar = bar[np.ptp(bar, axis=2) > 40].sum(axis=1)  # from its top to its end
    assert bar[:20].mean() > bar[-20:].mean() + 100  # near is above


def test_limits_are_kept():
    depth = np.float32([[1, 2], [3, 4]])
    wide = save_depth_map(None, depth, low=0.0, high=100.0)
    assert len(colours(wide)) != len(colours(save_depth_map(None, depth)))
    save_depth_map(None, np.full((3, 3), 2.0, np.float32))  # all alike


def test_nothing_known_is_an_error():
    with pytest.raises(ValueError, match="known somewhere, got none of 4"):
        save_depth_map(None, np.full((2, 2), np.inf, np.float32))
