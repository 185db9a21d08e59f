"""Sheets: every pixel where it belongs, magnified and otherwise unchanged."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.draw import save_image_sheet

GAP = 6


def cells(sheet, rows, columns, height, width, left=GAP, top=GAP):
    pixels = np.asarray(sheet)
    step_y, step_x = height + GAP, width + GAP
    for r in range(rows):
        for c in range(columns):
            y, x = top + r * step_y, left + c * step_x
            yield pixels[y : y + height, x : x + width]


def magnified(image, scale):
    return np.kron(image, np.ones((scale, scale, 1), np.uint8))


@pytest.mark.parametrize("n, columns, rows", [(1, 1, 1), (5, 3, 2), (6, 2, 3)])
@pytest.mark.parametrize("scale", [1, 3])
def test_cells_hold_the_magnified_pixels(rng, tmp_path, n, columns, rows, scale):
    images = rng.integers(0, 256, size=(n, 4, 7, 3), dtype=np.uint8)
    sheet = save_image_sheet(
        tmp_path / "sheet.png", images, columns=columns, scale=scale
    )
    shape = (rows * (4 * scale + GAP) + GAP, columns * (7 * scale + GAP) + GAP, 3)
    assert np.asarray(sheet).shape == shape
    found = list(cells(sheet, rows, columns, 4 * scale, 7 * scale))
    for image, cell in zip(images, found, strict=False):
        np.testing.assert_array_equal(cell, magnified(image, scale))
    for empty in found[n:]:
        assert (empty == 255).all()


def as_uint8(x):
    return np.round(255 * np.asarray(x, np.float64)).astype(np.uint8)


@pytest.mark.parametrize("kind", ["float32", "float64", "bfloat16", "jax"])
def test_floats_between_0_and_1_become_bytes(rng, kind):
    images = rng.random((2, 5, 5, 3))
    if kind == "jax":
        images = jnp.asarray(images)
    else:
        images = images.astype(jnp.bfloat16 if kind == "bfloat16" else kind)
    sheet = save_image_sheet(None, images, columns=2, scale=1)
    wide = np.asarray(images).astype(np.float64)
    for image, cell in zip(as_uint8(wide), cells(sheet, 1, 2, 5, 5), strict=True):
        np.testing.assert_array_equal(cell, image)


@pytest.mark.parametrize("shape", [(3, 4, 5), (3, 4, 5, 1)], ids=str)
def test_grey_and_masks(rng, shape):
    grey = rng.integers(0, 256, size=shape, dtype=np.uint8)
    for images, expected in ((grey, grey), (grey > 99, 255 * (grey > 99))):
        sheet = save_image_sheet(None, images, columns=3, scale=1)
        for image, cell in zip(expected, cells(sheet, 1, 3, 4, 5), strict=True):
            np.testing.assert_array_equal(cell, np.dstack([image.reshape(4, 5)] * 3))


def test_what_is_transparent_shows_the_paper():
    image = np.zeros((1, 2, 2, 4), np.uint8)
    image[0, 0, :, 3] = 255
    sheet = save_image_sheet(None, image, scale=1)
    (cell,) = cells(sheet, 1, 1, 2, 2)
    assert cell[:, 0].tolist() == [[0, 0, 0], [255, 255, 255]]


def test_small_images_are_magnified_to_be_seen():
    for side, shown in ((8, 96), (28, 84), (32, 96), (224, 224)):
        sheet = save_image_sheet(None, np.zeros((1, side, side)))
        assert sheet.size == (shown + 2 * GAP,) * 2


def test_titles_take_room_and_leave_the_pixels(rng):
    images = rng.integers(0, 256, size=(6, 9, 9, 3), dtype=np.uint8)
    plain = save_image_sheet(None, images, columns=3, scale=8)
    titled = save_image_sheet(
        None,
        images,
        column_titles=["image", "view 1", "a title that is far too long for it"],
        row_titles=["first", "second"],
        scale=8,
    )
    left = titled.width - plain.width + GAP
    assert left > GAP + 20
    assert titled.height == plain.height + 20
    found = cells(titled, 2, 3, 72, 72, left=left, top=GAP + 20)
    for image, cell in zip(images, found, strict=True):
        np.testing.assert_array_equal(cell, magnified(image, 8))
    pixels = np.asarray(titled)
    assert (pixels[:20, left:] < 128).any()
    assert (pixels[:, : left - 8] < 128).any()
    # The long title stays above its own column.
    third = left + 2 * (72 + GAP)
    assert (pixels[:20, third - GAP : third - 1] == 255).all()


def test_each_image_can_have_a_title(rng):
    images = rng.integers(0, 256, size=(4, 9, 9, 3), dtype=np.uint8)
    sheet = save_image_sheet(None, images, titles=list("abcd"), scale=8)
    plain = save_image_sheet(None, images, scale=8)
    assert sheet.height == plain.height + 2 * 20


@pytest.mark.parametrize(
    "images, message",
    [
        (np.zeros((0, 4, 4, 3)), r"images must have shape .*, got \(0, 4, 4, 3\)"),
        (np.zeros((2, 4, 4, 2)), r"got \(2, 4, 4, 2\)"),
        (np.zeros((4, 4)), r"got \(4, 4\)"),
        (np.zeros((32, 32, 3)), r"got \(32, 32, 3\), which looks like one"),
        (np.full((1, 2, 2), np.nan), r"must lie in \[0, 1\], got nan to nan"),
        (np.float32([[[-2.1, 2.4]]]), r"must lie in \[0, 1\], got -2.1 to 2.4"),
        (np.ones((1, 2, 2), int), "images must be floats, uint8 or bool, got int64"),
    ],
)
def test_bad_images_are_errors(images, message):
    with pytest.raises(ValueError, match=message):
        save_image_sheet(None, images)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"columns": 0}, "columns and scale must be at least 1, got 0 and 48"),
        ({"scale": 0}, "columns and scale must be at least 1, got 2 and 0"),
        ({"titles": ["a"]}, "titles must be 4, got 1"),
        ({"columns": 2, "column_titles": ["a"]}, "column_titles must be 2, got 1"),
        ({"columns": 2, "row_titles": ["a"] * 3}, "row_titles must be 2, got 3"),
    ],
)
def test_bad_options_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        save_image_sheet(None, np.zeros((4, 2, 2)), **options)
