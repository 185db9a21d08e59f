"""Segmentations, read back pixel by pixel."""

import numpy as np
import pytest

from jaxml.draw import save_segmentation
from jaxml.draw.photograph import class_colour

IMAGE = np.full((120, 160, 3), 0.25, np.float32)
LABELS = np.zeros((120, 160), int)
LABELS[:, 80:] = 3


def test_regions_have_the_colours_of_their_classes(tmp_path):
    path = tmp_path / "regions.png"
    picture = np.asarray(save_segmentation(path, IMAGE, LABELS, scale=1)).astype(int)
    assert path.exists()
    for label, part in ((0, picture[:30, :79]), (3, picture[:30, 81:])):
        tint = np.round(0.4 * 64 + 0.6 * np.array(class_colour(label)))
        assert np.abs(part - tint).max() <= 1
    assert (picture[:, 79] == 255).all()  # the border


def test_regions_one_above_the_other_have_a_border():
    image, labels = IMAGE.swapaxes(0, 1), LABELS.T
    picture = np.asarray(save_segmentation(None, image, labels, scale=1))
    assert (picture[79] == 255).all()


def test_ignored_pixels_stay_and_a_name_is_in_its_region():
    picture = save_segmentation(None, IMAGE, LABELS, ignored=[0], scale=1)
    pixels = np.asarray(picture).astype(int)
    assert (pixels[:, :79] == 64).all()
    where = np.argwhere((pixels == np.array(class_colour(3))).all(axis=2))
    assert where[:, 1].min() > 80  # the ground of the name, opaque


def test_large_small_and_thin_regions():
    labels = np.zeros((40, 300), int)
    labels[20] = 1
    labels[3, 7] = 2
    picture = save_segmentation(
        None, np.zeros((40, 300)), labels, class_names=["a", "b", "c"], scale=2
    )
    assert picture.size == (600, 80)
    clear = save_segmentation(None, IMAGE, LABELS, ignored=[0, 3], scale=1)
    assert (np.asarray(clear)[:, :70] == 64).all()


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"image's shape \(120, 160\), got \(2, 2\)"):
        save_segmentation(None, IMAGE, np.zeros((2, 2), int))
    with pytest.raises(ValueError, match=r"opacity must be in \[0, 1\], got 2"):
        save_segmentation(None, IMAGE, LABELS, opacity=2.0)
    with pytest.raises(ValueError, match="classes that have names, got 3"):
        save_segmentation(None, IMAGE, LABELS, class_names=["a", "b"])
