"""COCO128's maps, made up and real."""

import json

import numpy as np
import pytest
from PIL import Image

from jaxml.data.catalog import open_source
from jaxml.data.coco128 import coco128_masks


@pytest.fixture
def folder(tmp_path, rng):
    """Ten pictures of 20 x 30 whose left half is class 7 and right half class 1."""
    root = tmp_path / "coco128"
    for kind in ("images", "masks_semantic"):
        (root / kind).mkdir(parents=True)
    names = {"0": "unlabeled", "7": "train", "1": "person", "100": "sky"}
    (root / "classes.json").write_text(json.dumps({"semantic_masks": names}))
    mask = np.repeat(np.uint8([7, 1]), 15)[None].repeat(20, 0)
    mask[:10, 14] = 0
    for i in range(10):
        image = np.uint8(30 * mask[..., None] + np.arange(3))
        Image.fromarray(image).save(root / "images" / f"{i:03}.jpg", quality=95)
        Image.fromarray(mask).save(root / "masks_semantic" / f"{i:03}.png")
    Image.fromarray(image).save(root / "images" / "999.jpg")  # without a map
    return root


def test_maps_go_with_their_pictures(folder):
    source = open_source("coco128_masks", data_dir=folder.parent, image_size=20)
    assert source.sizes == {"train": 8, "test": 2}
    assert source.classes == ("person", "train", "sky")
    read = source.open("train")(np.array([0, 7]))
    assert read["image"].shape == (2, 20, 20, 3)
    assert read["label"].dtype == np.uint8
    label = read["label"][0]
    # The middle 20 of 30 columns: 10 of each half.
    assert (label[10:, :10] == 1).all()
    assert (label[:, 10:] == 0).all()
    assert (label[:10, 9] == 255).all()
    bright = read["image"][0, ..., 0].astype(int)
    assert bright[:, :8].min() > 150 > 60 > bright[:, 12:].max()


def test_some_classes(folder):
    source = coco128_masks(folder, image_size=(20, 30), only=("train",))
    assert source.classes == ("other", "train")
    label = source.open("test")(np.array([1]))["label"][0]
    assert (label[:, :14] == 1).all()
    assert (label[:, 15:] == 0).all()
    assert (label[:10, 14] == 255).all()


def test_bad_input_is_refused(folder):
    with pytest.raises(ValueError, match=r"of COCO, got \['tiger'\]"):
        coco128_masks(folder, only=("train", "tiger"))
    with pytest.raises(ValueError, match="needs an image_size"):
        coco128_masks(folder, image_size=None)
    (folder / "images/003.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="003"):
        coco128_masks(folder)
    for path in (folder / "masks_semantic").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match="no masks"):
        coco128_masks(folder)


def test_real_files(data_dir):
    source = coco128_masks(data_dir / "coco128", image_size=64)
    assert source.sizes == {"train": 80, "test": 20}
    assert len(source.classes) == 129
    label = source.open("train")(np.arange(80))["label"]
    assert set(np.unique(label)) <= {*range(129), 255}
    assert (label == source.classes.index("person")).mean() > 0.01
