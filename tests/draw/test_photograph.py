"""Colours of classes, and where names find room."""

import numpy as np
from PIL import Image

from jaxml.draw.photograph import Tags, class_colour, font_for, ink_on, photograph


def test_thirty_classes_have_thirty_colours():
    colours = [class_colour(i) for i in range(30)]
    assert len(set(colours)) == 30
    assert class_colour(30) == colours[0]


def test_names_can_be_read_on_every_colour():
    """A contrast of 4.5 to 1 at the least, as the guidelines ask of text."""
    for label in range(30):
        part = np.array(class_colour(label)) / 255
        linear = np.where(
            part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4
        )
        luminance = linear @ [0.2126, 0.7152, 0.0722]
        dark = ink_on(class_colour(label)) == "black"
        contrast = (luminance + 0.05) / 0.05 if dark else 1.05 / (luminance + 0.05)
        assert contrast >= 4.5


def test_grey_and_half_precision_images_are_photographs():
    import jax.numpy as jnp

    for image in (np.zeros((9, 7)), jnp.ones((9, 7, 1), jnp.bfloat16)):
        picture, scale = photograph(image)
        assert picture.size == (7 * scale, 9 * scale)
        assert picture.mode == "RGB"
        assert 9 * scale >= 320


def test_names_go_where_there_is_room():
    picture = Image.new("RGB", (200, 120))
    tags = Tags(picture)
    for _ in range(4):
        tags.put("name", (60, 40, 140, 90), (255, 0, 0))
    places = tags._taken
    for i, (left, top, right, bottom) in enumerate(places):
        assert 0 <= left < right <= 200
        assert 0 <= top < bottom <= 120
        for other in places[:i]:
            apart = other[0] >= right or other[2] <= left
            assert apart or other[1] >= bottom or other[3] <= top
    assert font_for(picture).size >= 11
