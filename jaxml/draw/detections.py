"""Detections on a photograph: boxes, names with scores, and masks."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from jaxml.draw.canvas import PathLike, save_image
from jaxml.draw.photograph import (
    Colour,
    Tags,
    check_labels,
    class_colour,
    class_name,
    line_width,
    photograph,
)
from jaxml.export import export
from jaxml.ops.color import Number
from jaxml.typing import Array, Bool, Float, Int


@export("draw.save_detections", since="0.1")
def save_detections(
    path: PathLike,
    image: Array,
    boxes: Float[Array, "n 4"],
    labels: Int[Array, "n"],
    scores: Float[Array, "n"] | None = None,
    *,
    class_names: Sequence[str] | None = None,
    mask: Bool[Array, "n"] | None = None,
    masks: Bool[Array, "n height width"] | None = None,
    min_score: Number = 0.0,
    scale: int | None = None,
) -> Image.Image:
    """Boxes with names and scores on a photograph, the best on top.

    Args:
        path: where to write, or None.
        image: [height, width] or [height, width, 1 or 3], floats in [0, 1] or uint8.
        boxes: xyxy pixels of the image.
        labels: from 0 up; a class has one colour in all pictures.
        scores: in [0, 1]; objects that are given have none.
        class_names: by default the numbers.
        mask: False for padding.
        masks: the pixels of each object, filled with its colour.
        min_score: lower ones are left out.
        scale: by how much pixels are magnified; by default small images are.

    Raises:
        ValueError: if the image is none, numbers disagree, or a label has no name.

        save_detections("found.png", image, *detections[:3], class_names=names)
    """
    picture, scale = photograph(image, scale)
    boxes, labels = np.asarray(boxes, np.float32), np.asarray(labels)
    keep = np.ones(len(boxes), bool) if mask is None else np.asarray(mask).copy()
    keep &= np.isfinite(boxes).all(axis=1)
    order = np.arange(len(boxes))
    if scores is not None:
        scores = np.asarray(scores, np.float32)
        keep &= scores >= min_score
        order = np.argsort(scores, kind="stable")
    order = order[keep[order]]
    check_labels(labels[order], class_names)
    if masks is not None:
        shape = (len(boxes), picture.height // scale, picture.width // scale)
        if np.shape(masks) != shape:
            raise ValueError(f"masks must have shape {shape}, got {np.shape(masks)}")
        for i in order:
            picture = _filled(
                picture, np.asarray(masks[i]), class_colour(int(labels[i])), scale
            )
    pen, width = ImageDraw.Draw(picture), line_width(picture)
    for i in order:
        box = _whole(boxes[i] * scale, picture.size)
        dark = tuple(round(0.25 * c) for c in class_colour(int(labels[i])))
        # A dark edge, so that a bright colour is seen on a bright ground.
        pen.rectangle(_grown(box, 1), outline=dark, width=width + 2)
        pen.rectangle(box, outline=class_colour(int(labels[i])), width=width)
    tags = Tags(picture)
    for i in order[::-1]:  # the best has the first choice of places
        text = class_name(int(labels[i]), class_names)
        if scores is not None:
            text += f" {scores[i]:.2f}"
        box = _whole(boxes[i] * scale, picture.size)
        tags.put(text, _grown(box, 1), class_colour(int(labels[i])))
    if path is not None:
        save_image(picture, path)
    return picture


def _filled(
    picture: Image.Image, mask: np.ndarray, colour: Colour, scale: int
) -> Image.Image:
    """The picture with the pixels of a mask tinted."""
    large = mask.astype(bool).repeat(scale, axis=0).repeat(scale, axis=1)
    pixels = np.asarray(picture).astype(np.float32)
    pixels[large] = 0.45 * pixels[large] + 0.55 * np.asarray(colour, np.float32)
    return Image.fromarray(np.round(pixels).astype(np.uint8))


def _whole(box: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """In pixels of the picture, the last of which is at size - 1."""
    left, top, right, bottom = np.round(box).astype(int).tolist()
    x1, x2 = sorted(min(max(x, 0), size[0] - 1) for x in (left, right - 1))
    y1, y2 = sorted(min(max(y, 0), size[1] - 1) for y in (top, bottom - 1))
    return x1, y1, x2, y2


def _grown(box: tuple[int, int, int, int], by: int) -> tuple[int, int, int, int]:
    return box[0] - by, box[1] - by, box[2] + by, box[3] + by
