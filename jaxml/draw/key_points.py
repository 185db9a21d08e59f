"""Key points on a photograph: joints of a body, landmarks of a face."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from jaxml.draw.canvas import PathLike, save_image
from jaxml.draw.photograph import Colour, class_colour, line_width, photograph
from jaxml.export import export
from jaxml.typing import Array, Bool, Float

_FINE = 4  # lines are drawn this much larger, and shrunk


@export("draw.save_key_points", since="0.1")
def save_key_points(
    path: PathLike,
    image: Array,
    points: Float[Array, "n k 2"],
    *,
    visible: Bool[Array, "n k"] | None = None,
    limbs: Sequence[tuple[int, int]] = (),
    scale: int | None = None,
) -> Image.Image:
    """The k points of each of n objects, and the limbs between them, an object a colour.

    Args:
        path: where to write, or None.
        image: [height, width] or [height, width, 1 or 3], floats in [0, 1] or uint8.
        points: (x, y) in pixels.
        visible: False where there is none.
        limbs: pairs of points.
        scale: by how much pixels are magnified; by default small images are.

    Raises:
        ValueError: if the image is none, or a limb has no such point.
    """
    picture, scale = photograph(image, scale)
    points = np.asarray(points, np.float32) * scale
    seen = np.asarray(np.isfinite(points).all(axis=2))
    if visible is not None:
        seen &= np.asarray(visible)
    if limbs and not (np.min(limbs) >= 0 and np.max(limbs) < points.shape[1]):
        raise ValueError(
            f"limbs must join points in [0, {points.shape[1]}), got {list(limbs)}"
        )
    layer = Image.new("RGBA", (picture.width * _FINE, picture.height * _FINE))
    pen, width = ImageDraw.Draw(layer), line_width(picture)
    for number, (mine, is_seen) in enumerate(zip(points * _FINE, seen, strict=True)):
        colour = class_colour(number)
        for a, b in limbs:
            if is_seen[a] and is_seen[b]:
                ends = [tuple(mine[a]), tuple(mine[b])]
                for ink, extra in (((0, 0, 0, 160), 2), ((*colour, 255), 0)):
                    pen.line(ends, ink, (width + extra) * _FINE)
        for x, y in mine[is_seen]:
            discs: list[tuple[str | Colour, float]]
            discs = [("black", 2.2), ("white", 1.8), (colour, 1.3)]
            for fill, radius in discs:
                r = radius * width * _FINE
                pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)
    layer = layer.resize(picture.size, Image.Resampling.BOX)
    picture.paste(layer, mask=layer)
    if path is not None:
        save_image(picture, path)
    return picture
