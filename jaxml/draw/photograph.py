"""The photograph that boxes, masks and points are drawn on, and the names beside them.

A class has one colour in all pictures: the ten of `COLOURS`, then the same ten lighter and
then darker. Names stand on a ground of that colour, in black or white, whichever is the
easier to read, and move to a free corner where two would cover each other.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

from jaxml.draw.canvas import COLOURS
from jaxml.ops.color import Number

Colour = tuple[int, int, int]
Box = tuple[Number, Number, Number, Number]


def photograph(image: Any, scale: int | None = None) -> tuple[Image.Image, int]:
    """One image as RGB, and how many times it was magnified.

    Args:
        image: [height, width] or [height, width, 1 or 3], floats in [0, 1] or uint8.
        scale: by default to at least 320 pixels on the longer side.

    Raises:
        ValueError: if it is no image, or its values are out of range.
    """
    x = np.asarray(image)
    if x.ndim == 2:
        x = x[..., None]
    if x.ndim != 3 or x.shape[2] not in (1, 3) or 0 in x.shape:
        raise ValueError(
            "image must have shape [height, width] or [height, width, 1 or 3], "
            f"got {np.shape(image)}"
        )
    if x.dtype != np.uint8:
        if not np.issubdtype(x.dtype, np.floating) and x.dtype.name != "bfloat16":
            raise ValueError(f"image must be floats or uint8, got {x.dtype}")
        x = x.astype(np.float32)
        if not (x.min() >= -1e-3 and x.max() <= 1 + 1e-3):  # NaN too
            raise ValueError(
                f"a float image must lie in [0, 1], got {x.min():.3g} to {x.max():.3g}"
            )
        x = np.round(255 * np.clip(x, 0, 1)).astype(np.uint8)
    height, width = x.shape[:2]
    if scale is None:
        scale = max(1, -(-320 // max(height, width)))
    if scale < 1:
        raise ValueError(f"scale must be at least 1, got {scale}")
    picture = Image.fromarray(
        np.ascontiguousarray(np.broadcast_to(x, (height, width, 3)))
    )
    return picture.resize(
        (width * scale, height * scale), Image.Resampling.NEAREST
    ), scale


def class_colour(label: int) -> Colour:
    """The colour of a class in every picture."""
    rgb = np.array(to_rgb(COLOURS[label % 10]))
    turn = label // 10 % 3
    if turn == 1:
        rgb = 1 - 0.55 * (1 - rgb)
    elif turn == 2:
        rgb = 0.6 * rgb
    red, green, blue = np.round(255 * rgb).astype(int).tolist()
    return red, green, blue


def ink_on(colour: Colour) -> str:
    """Black or white, whichever has the higher contrast."""
    linear = (np.array(colour) / 255) ** 2.2
    luminance = float(linear @ np.array([0.2126, 0.7152, 0.0722]))
    return "black" if luminance > 0.18 else "white"


def font_for(picture: Image.Image) -> ImageFont.FreeTypeFont:
    """Letters that suit the size of the picture."""
    size = min(22, max(11, round(max(picture.size) / 54)))
    return ImageFont.truetype(findfont("DejaVu Sans:bold"), size)


def line_width(picture: Image.Image) -> int:
    """Of outlines, in pixels."""
    return max(2, round(max(picture.size) / 300))


class Tags:
    """Names that do not cover each other."""

    def __init__(self, picture: Image.Image) -> None:
        self._pen = ImageDraw.Draw(picture)
        self._font = font_for(picture)
        self._size = picture.size
        self._taken: list[Box] = []

    def put(self, text: str, box: Box, colour: Colour) -> None:
        """Writes a name at a corner of a box, where there is room."""
        left, _, right, _ = self._pen.textbbox((0, 0), text, self._font)
        ascent, descent = self._font.getmetrics()
        width, height = right - left + 8, ascent + descent + 2
        spots = [
            (box[0], box[1] - height),
            (box[0], box[1]),
            (box[0], box[3]),
            (box[2] - width, box[1] - height),
            (box[2] - width, box[3]),
            (box[0], box[3] - height),
            (box[2] - width, box[3] - height),
            (box[2] - width, box[1]),
        ]
        places = [self._inside(x, y, width, height) for x, y in spots]
        covered = [sum(_overlap(p, other) for other in self._taken) for p in places]
        moved = [
            abs(p[0] - x) + abs(p[1] - y)
            for p, (x, y) in zip(places, spots, strict=True)
        ]
        best = min(range(len(spots)), key=lambda i: (covered[i], moved[i], i))
        x, y, *_ = place = places[best]
        self._taken.append(place)
        self._pen.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)
        self._pen.text((x + 4 - left, y + 1), text, ink_on(colour), self._font)

    def _inside(self, x: Number, y: Number, width: Number, height: Number) -> Box:
        x = max(0, min(round(x), self._size[0] - width))
        y = max(0, min(round(y), self._size[1] - height))
        return x, y, x + width, y + height


def class_name(label: int, names: Sequence[str] | None) -> str:
    """What a class is called: its number, if there are no names."""
    return str(label) if names is None else names[label]


def check_labels(labels: np.ndarray, names: Sequence[str] | None) -> None:
    """Raises unless every label is a class, and has a name if there are names."""
    if labels.size and labels.min() < 0:
        raise ValueError(f"labels must not be negative, got {labels.min()}")
    if names is not None and labels.size and labels.max() >= len(names):
        raise ValueError(
            f"labels must be in [0, {len(names)}), the classes that have names, "
            f"got {labels.max()}"
        )


def _overlap(a: Box, b: Box) -> Number:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0)
