"""The membranes' files, made up and real."""

import numpy as np
import pytest
from PIL import Image

from jaxml.data.catalog import open_source
from jaxml.data.isbi_membrane import isbi_membrane


@pytest.fixture
def folder(tmp_path, rng):
    """Thirty slices whose first pixel is their number, label 255 where it is even."""
    for kind in ("image", "label"):
        (tmp_path / "isbi_membrane" / kind).mkdir(parents=True)
    for i in range(30):
        image = np.full((512, 512), i, np.uint8)
        label = np.full((512, 512), 255 * (i % 2 == 0), np.uint8)
        for kind, pixels in (("image", image), ("label", label)):
            Image.fromarray(pixels).save(tmp_path / "isbi_membrane" / kind / f"{i}.png")
    return tmp_path / "isbi_membrane"


def test_slices_keep_their_order(folder):
    source = open_source("isbi_membrane", data_dir=folder.parent)
    assert source.sizes == {"train": 24, "test": 6}
    assert source.classes == ("membrane", "cell")
    read = source.open("train")(np.array([10, 2]))
    assert read["image"].shape == (2, 512, 512, 1)
    assert read["image"][:, 0, 0, 0].tolist() == [10, 2]  # not 10 before 2 by name
    assert source.open("test")(np.array([5]))["image"][0, 0, 0, 0] == 29
    assert read["label"].dtype == np.uint8
    np.testing.assert_array_equal(read["label"], 1)


def test_other_contents(folder):
    path = folder / "label/7.png"
    Image.fromarray(np.full((512, 512), 3, np.uint8)).save(path)
    with pytest.raises(ValueError, match=r"7\.png must hold 0 and 255, got also 3"):
        isbi_membrane(folder)
    Image.fromarray(np.zeros((512, 500), np.uint8)).save(path)
    with pytest.raises(ValueError, match=r"7\.png must have 512 x 512 pixels"):
        isbi_membrane(folder)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="7"):
        isbi_membrane(folder)


def test_real_files(data_dir):
    """The share of membrane was counted with Pillow in all thirty labels."""
    source = isbi_membrane(data_dir / "isbi_membrane")
    labels = [source.open(s)(np.arange(n))["label"] for s, n in source.sizes.items()]
    assert 1 - np.concatenate(labels).mean() == pytest.approx(0.219631, abs=1e-6)
