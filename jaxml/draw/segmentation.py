"""A class for every pixel, on the photograph that it was found in."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from jaxml.draw.canvas import PathLike, save_image
from jaxml.draw.photograph import (
    Tags,
    check_labels,
    class_colour,
    class_name,
    photograph,
)
from jaxml.export import export
from jaxml.ops.color import Number
from jaxml.typing import Array, Int


@export("draw.save_segmentation", since="0.1")
def save_segmentation(
    path: PathLike,
    image: Array,
    labels: Int[Array, "height width"],
    *,
    class_names: Sequence[str] | None = None,
    ignored: Sequence[int] = (),
    opacity: Number = 0.6,
    scale: int | None = None,
) -> Image.Image:
    """Regions in the colours of their classes, with a line between them and a name in each.

    Args:
        path: where to write, or None.
        image: [height, width] or [height, width, 1 or 3], floats in [0, 1] or uint8.
        labels: the class of every pixel.
        class_names: by default the numbers.
        ignored: classes that are left as they are, such as what is not labelled.
        opacity: of the colours, in [0, 1].
        scale: by how much pixels are magnified; by default small images are.

    Raises:
        ValueError: if the image is none, sizes differ, the opacity is not in [0, 1] or a
            label has no name.
    """
    picture, scale = photograph(image, scale)
    labels = np.asarray(labels)
    size = (picture.height // scale, picture.width // scale)
    if labels.shape != size:
        raise ValueError(
            f"labels must have the image's shape {size}, got {labels.shape}"
        )
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must be in [0, 1], got {opacity}")
    shown = ~np.isin(labels, ignored)
    check_labels(labels[shown], class_names)
    classes = np.unique(labels[shown]).tolist()
    large = labels.repeat(scale, 0).repeat(scale, 1)
    pixels = np.asarray(picture).astype(np.float32)
    for label in classes:
        mine = large == label
        tint = np.asarray(class_colour(label), np.float32)
        pixels[mine] = (1 - opacity) * pixels[mine] + opacity * tint
    pixels[_borders(large)] = 255
    picture = Image.fromarray(np.round(pixels).astype(np.uint8))
    tags = Tags(picture)
    by_area = sorted(classes, key=lambda c: -int((large == c).sum()))
    for label in by_area:
        y, x = _deepest(large == label)
        name = class_name(label, class_names)
        tags.put(name, (x - 20, y, x + 20, y), class_colour(label))
    if path is not None:
        save_image(picture, path)
    return picture


def _borders(labels: np.ndarray) -> np.ndarray:
    """Pixels whose right or lower neighbour is of another class."""
    border = np.zeros(labels.shape, bool)
    border[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    border[:-1] |= labels[:-1] != labels[1:]
    return border


def _deepest(region: np.ndarray) -> tuple[int, int]:
    """A pixel far from the region's border: where erosion by squares ends."""
    step = max(1, max(region.shape) // 128)
    left = np.pad(region[::step, ::step], 1)
    while True:
        inner = left.copy()
        for axis in (0, 1):
            inner &= np.roll(left, 1, axis) & np.roll(left, -1, axis)
        if not inner.any():
            break
        left = inner
    places = np.argwhere(left) - 1
    if not len(places):  # thinner than the step
        places, step = np.argwhere(region), 1
    middle = places[np.abs(places - places.mean(axis=0)).sum(axis=1).argmin()]
    return int(middle[0]) * step, int(middle[1]) * step
