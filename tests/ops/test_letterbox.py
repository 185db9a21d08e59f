"""Frames: what is scaled, what is filled, and boxes there and back."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxml.ops.letterbox import (
    letterbox,
    letterbox_boxes,
    letterbox_image,
    unletterbox_boxes,
)
from jaxml.ops.resize import resize_image

side = st.integers(1, 900)


@settings(deadline=None, max_examples=200)
@given(st.tuples(side, side), st.tuples(side, side), st.booleans(), st.booleans())
def test_the_image_fits_and_touches_the_frame(image, frame, centered, enlarge):
    place = letterbox(image, frame, centered=centered, enlarge=enlarge)
    assert all(1 <= m <= n for m, n in zip(place.inner, frame, strict=True))
    assert all(
        s >= 0 and s + m <= n
        for s, m, n in zip(place.start, place.inner, frame, strict=True)
    )
    if enlarge:
        assert place.inner[0] == frame[0] or place.inner[1] == frame[1]
    else:
        assert all(m <= n for m, n in zip(place.inner, image, strict=True))
    scale = min(n / m for n, m in zip(frame, image, strict=True))
    scale = scale if enlarge else min(scale, 1)
    for m, n in zip(place.inner, image, strict=True):
        assert abs(m - n * scale) <= 0.5 or m == 1
    if centered:
        rest = [
            n - m - 2 * s
            for n, m, s in zip(frame, place.inner, place.start, strict=True)
        ]
        assert set(rest) <= {0, 1}
    else:
        assert place.start == (0, 0)


def test_pixels(rng):
    image = np.float32(rng.random((10, 20, 3)))
    place = letterbox((10, 20), (40, 40))
    framed = letterbox_image(jnp.asarray(image), place, fill=0.25)
    chex.assert_shape(framed, (40, 40, 3))
    chex.assert_trees_all_close(
        framed[10:30], resize_image(jnp.asarray(image), (20, 40))
    )
    assert (framed[:10] == 0.25).all()
    assert (framed[30:] == 0.25).all()
    same = letterbox_image(
        image, letterbox((10, 20), (12, 20), centered=False, enlarge=False)
    )
    chex.assert_trees_all_equal(same[:10], image)
    chex.assert_trees_all_close(same[10:], jnp.full((2, 20, 3), 114 / 255))


def test_a_box_stays_on_its_object(rng):
    """A bright rectangle, found again by its pixels in the frame."""
    image = np.zeros((33, 50, 1), np.float32)
    image[6:24, 10:40] = 1
    box = jnp.array([10.0, 6, 40, 24])
    place = letterbox((33, 50), (128, 96))
    framed = letterbox_image(jnp.asarray(image), place, fill=0.0)[..., 0]
    rows, columns = (
        np.flatnonzero(framed.max(1) > 0.5),
        np.flatnonzero(framed.max(0) > 0.5),
    )
    found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    chex.assert_trees_all_close(
        letterbox_boxes(box, place), np.float32(found), atol=0.6
    )


@pytest.mark.parametrize("sizes", [((33, 51), (64, 97)), ((480, 640), (416, 416))])
@pytest.mark.parametrize("centered", [True, False])
def test_there_and_back(rng, sizes, centered):
    place = letterbox(*sizes, centered=centered)
    corner = rng.uniform(0, 30, (2, 5, 2))
    boxes = np.float32(
        np.concatenate([corner, corner + rng.uniform(0, 3, (2, 5, 2))], 2)
    )
    there = jax.jit(lambda b: letterbox_boxes(b, place))(boxes)
    chex.assert_trees_all_close(unletterbox_boxes(there, place), boxes, atol=1e-4)
    whole = jnp.array([0.0, 0, sizes[0][1], sizes[0][0]])
    (top, left), (height, width) = place.start, place.inner
    expected = [left, top, left + width, top + height]
    chex.assert_trees_all_close(
        letterbox_boxes(whole, place), np.float32(expected), atol=1e-3
    )
    outside = jnp.array([-50.0, -50, 900, 900])
    chex.assert_trees_all_close(unletterbox_boxes(outside, place), whole, atol=1e-3)
    assert unletterbox_boxes(outside, place, clip=False)[0] < 0


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"sizes must be positive, got \(0, 4\) and"):
        letterbox((0, 4), (8, 8))
    place = letterbox((4, 4), (8, 8))
    with pytest.raises(ValueError, match=r"image must be \(4, 4\), got \(4, 5\)"):
        letterbox_image(jnp.zeros((4, 5, 3)), place)
