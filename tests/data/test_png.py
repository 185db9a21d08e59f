"""The PNG reader against Pillow, on every filter, and on files it must not read."""

import io
import zlib

import chex
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from jaxml.data import png

sizes = st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3, 4]))


def pillow_decode(file):
    image = np.asarray(Image.open(io.BytesIO(file)))
    return image.reshape(*image.shape[:2], -1)


def pillow_encode(image):
    buffer = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(
        buffer, "PNG"
    )
    return buffer.getvalue()


def with_filters(image, filters):
    """PNG whose rows have the given filters, written after section 9 of the standard."""
    height, width, channels = image.shape
    rows = []
    for y in range(height):
        row = [filters[y % len(filters)]]
        for x in range(width):
            for c in range(channels):
                left = int(image[y, x - 1, c]) if x else 0
                up = int(image[y - 1, x, c]) if y else 0
                corner = int(image[y - 1, x - 1, c]) if x and y else 0
                p = left + up - corner
                nearest = min((left, up, corner), key=lambda v: abs(p - v))
                predicted = [0, left, up, (left + up) // 2, nearest][row[0]]
                row.append((int(image[y, x, c]) - predicted) % 256)
        rows.append(bytes(row))
    data = zlib.compress(b"".join(rows))
    half = len(data) // 2  # in two chunks, as the standard allows
    return (
        png._start(image.shape)
        + png._chunk(b"tEXt", b"Title\0none")
        + png._chunk(b"IDAT", data[:half])
        + png._chunk(b"IDAT", data[half:])
        + png._chunk(b"IEND", b"")
    )


@hypothesis.settings(deadline=None)
@hypothesis.given(sizes, st.integers(0, 2**32), st.lists(st.integers(0, 4), min_size=1))
def test_every_filter(shape, seed, filters):
    images = np.random.default_rng(seed).integers(0, 256, (3, *shape), np.uint8)
    images[1] = images[1] // 128 * 255  # wraps round
    files = [with_filters(images[0], filters), with_filters(images[1], filters[::-1])]
    files += png.encode(images[2:])
    for image, file in zip(images, files, strict=True):
        chex.assert_trees_all_equal(pillow_decode(file), image)
    decoded, others = png.decode(files, shape)
    assert others == []
    chex.assert_trees_all_equal(decoded, images)


@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 31, 3), (5, 6, 4)])
def test_smooth_pictures_of_pillow(shape, rng):
    """Pillow chooses filters by the picture; smooth ones get all kinds."""
    noise = rng.normal(size=(20, *shape)).cumsum(axis=1).cumsum(axis=2)
    images = (noise * 3).astype(int).astype(np.uint8)
    files = [pillow_encode(image) for image in images]
    decoded, others = png.decode(files, shape)
    assert others == []
    chex.assert_trees_all_equal(decoded, images)


def test_files_that_are_not_plain_or_not_whole(rng):
    image = rng.integers(0, 256, (6, 5, 3), np.uint8)
    (good,) = png.encode(image[None])
    flipped = bytearray(good)
    flipped[60] ^= 1
    wrong_sum = bytearray(good)
    wrong_sum[-13] ^= 1  # the last byte of the pixels' checksum
    jpeg, palette, deep = io.BytesIO(), io.BytesIO(), io.BytesIO()
    Image.fromarray(image).save(jpeg, "JPEG")
    Image.fromarray(image).quantize(4).save(palette, "PNG")
    Image.fromarray(image[..., 0].astype(np.uint16)).save(deep, "PNG")
    end = png._chunk(b"IEND", b"")
    bad_rows = png._start(image.shape) + png._chunk(b"IDAT", zlib.compress(b"x")) + end
    bad_filter = with_filters(image, [0]).replace(end, b"")
    rows = np.zeros((6, 16), np.uint8)
    rows[3, 0] = 5
    bad_filter = (
        png._start(image.shape) + png._chunk(b"IDAT", zlib.compress(rows)) + end
    )
    others = {
        "empty": b"",
        "another size": png.encode(image[None, :5])[0],
        "grey": png.encode(image[None, ..., :1])[0],
        "jpeg": jpeg.getvalue(),
        "palette": palette.getvalue(),
        "16 bits": deep.getvalue(),
        "cut short": good[:-13],
        "without end": good[:-12],
        "one bit wrong": bytes(flipped),
        "wrong checksum": bytes(wrong_sum),
        "too few rows": bad_rows,
        "no such filter": bad_filter,
        "not compressed": png._start(image.shape) + png._chunk(b"IDAT", b"abc") + end,
    }
    files = [good, *others.values(), good]
    decoded, failed = png.decode(files, (6, 5, 3))
    assert failed == list(range(1, len(files) - 1))
    chex.assert_trees_all_equal(decoded[0], image)
    chex.assert_trees_all_equal(decoded[-1], image)


def test_two_channels_are_left_to_others():
    _, failed = png.decode([b"a", b"b"], (2, 2, 2))
    assert failed == [0, 1]


def test_encode_is_valid_png(rng):
    images = rng.integers(0, 256, (4, 7, 3, 3), np.uint8)
    chex.assert_trees_all_equal(
        np.stack([*map(pillow_decode, png.encode(images))]), images
    )
