"""Pictures of attention, read back pixel by pixel."""

import numpy as np
import pytest
from matplotlib import colormaps

from jaxml.draw import save_attention, save_image_sheet


@pytest.mark.parametrize("channels", [1, 3])
def test_each_head_has_a_map_of_patches(rng, tmp_path, channels):
    images = np.float32(rng.uniform(size=(2, 4, 6, channels)))
    weights = np.float32(rng.uniform(size=(2, 3, 2, 2)))
    path = tmp_path / "attention.png"
    picture = save_attention(path, images, weights)
    assert path.exists()
    cells = []
    for image, heads in zip(images, weights, strict=True):
        cells.append(np.broadcast_to(image, (4, 6, 3)))
        for head in heads:
            level = np.kron(head / head.max(), np.ones((2, 3)))
            cells.append(colormaps["magma"](level)[..., :3])
    titles = ["image", "head 1", "head 2", "head 3"]
    expected = save_image_sheet(None, np.stack(cells), column_titles=titles)
    assert np.abs(np.int32(picture) - np.int32(expected)).max() <= 1


def test_bad_input_is_refused():
    images = np.zeros((2, 4, 4, 3), np.float32)
    for shape in ((1, 1, 2, 2), (2, 1, 3, 2)):
        with pytest.raises((ValueError, TypeError), match=r"tile it|weights"):
            save_attention(None, images, np.ones(shape, np.float32))
