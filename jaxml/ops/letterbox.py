"""Letterbox: an image in a frame of fixed size, with its shape kept.

The image is scaled until it just fits and the rest of the frame is filled,

    scale = min(frame height / height, frame width / width),

so that a batch has one shape and objects keep their proportions. Boxes go along, and come
back: detections in the frame are to be told in pixels of the image.

The trap is the rounding. The scaled image has whole pixels, and its width and height are
each scaled by a little more or less than `scale`. Boxes follow what the pixels did, so
that the two ways are inverse to each other.
"""

from typing import NamedTuple

import jax.numpy as jnp

from jaxml.export import export
from jaxml.ops.boxes import clip_boxes
from jaxml.ops.color import Image, Number, check_image
from jaxml.ops.resize import resize_image
from jaxml.typing import Array, Float


@export("ops.Letterbox", since="0.1")
class Letterbox(NamedTuple):
    """Where an image lies in its frame: whole numbers, pixels.

    Attributes:
        image: (height, width) of the image.
        inner: (height, width) that it has in the frame.
        start: (top, left) of it in the frame.
        frame: (height, width).
    """

    image: tuple[int, int]
    inner: tuple[int, int]
    start: tuple[int, int]
    frame: tuple[int, int]


@export("ops.letterbox", since="0.1")
def letterbox(
    image: tuple[int, int],
    frame: tuple[int, int],
    *,
    centered: bool = True,
    enlarge: bool = True,
) -> Letterbox:
    """Where an image of one size lies in a frame of another, both (height, width).

    Args:
        image: size of the image.
        frame: size of the frame.
        centered: in the middle, or else at the top left.
        enlarge: whether a smaller image is scaled up.

    Raises:
        ValueError: if a size is not positive.

    >>> letterbox((100, 200), (64, 64)).inner
    (32, 64)
    """
    if min(*image, *frame) < 1:
        raise ValueError(f"sizes must be positive, got {image} and {frame}")
    scale = min(n / m for n, m in zip(frame, image, strict=True))
    scale = scale if enlarge else min(scale, 1.0)
    inner = tuple(max(1, round(n * scale)) for n in image)
    start = tuple((n - m) // 2 * centered for n, m in zip(frame, inner, strict=True))
    return Letterbox(image, (inner[0], inner[1]), (start[0], start[1]), frame)


@export("ops.letterbox_image", since="0.1")
def letterbox_image(
    image: Image,
    place: Letterbox,
    *,
    fill: Number = 114 / 255,
    method: str = "bilinear",
) -> Float[Array, "out_height out_width channels"]:
    """The image in its frame.

    Args:
        image: of the size that `place` speaks of.
        place: as `letterbox` gives it.
        fill: value of the rest of the frame.
        method: "bilinear" or "bicubic".

    Raises:
        ValueError: if the image has another size.
    """
    check_image(image)
    if image.shape[:2] != place.image:
        raise ValueError(f"the image must be {place.image}, got {image.shape[:2]}")
    inner = resize_image(image, place.inner, method=method)
    pads = [
        (start, whole - start - part)
        for start, whole, part in zip(
            place.start, place.frame, place.inner, strict=True
        )
    ]
    return jnp.pad(inner, [*pads, (0, 0)], constant_values=fill)


@export("ops.letterbox_boxes", since="0.1")
def letterbox_boxes(
    boxes: Float[Array, "*batch 4"], place: Letterbox
) -> Float[Array, "*batch 4"]:
    """Boxes of the image as boxes in the frame, xyxy pixels."""
    scale, start = _along(boxes, place)
    return jnp.asarray(boxes).astype(jnp.float32) * scale + start


@export("ops.unletterbox_boxes", since="0.1")
def unletterbox_boxes(
    boxes: Float[Array, "*batch 4"], place: Letterbox, *, clip: bool = True
) -> Float[Array, "*batch 4"]:
    """Boxes in the frame as boxes of the image, xyxy pixels.

    Args:
        boxes: such as a detector gives.
        place: as `letterbox` gives it.
        clip: to the image.
    """
    scale, start = _along(boxes, place)
    found = (jnp.asarray(boxes).astype(jnp.float32) - start) / scale
    return clip_boxes(found, *place.image) if clip else found


def _along(boxes: Array, place: Letterbox) -> tuple[Array, Array]:
    """Scale and start of (x, y, x, y)."""
    down, right = (m / n for m, n in zip(place.inner, place.image, strict=True))
    top, left = place.start
    shape = (1,) * (boxes.ndim - 1) + (4,)
    scale = jnp.array([right, down] * 2, jnp.float32).reshape(shape)
    return scale, jnp.array([left, top] * 2, jnp.float32).reshape(shape)
