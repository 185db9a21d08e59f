r"""Boxes: areas, overlaps, codes and conversions.

A box is (left, top, right, bottom) in pixels, in continuous coordinates: pixel i covers
[i, i + 1), and nothing is added to a width. How well two boxes agree:

    IoU  = |A & B| / |A | B|
    GIoU = IoU - |hull \\ (A | B)| / |hull|
    DIoU = IoU - distance of the centers^2 / diagonal of the hull^2
    CIoU = DIoU - alpha v,   v = (2 / pi)^2 (arctan(w / h) - arctan(w' / h'))^2,
                             alpha = v / (1 - IoU + v), without gradient.

All are computed in float32 whatever comes in: bfloat16 holds pixels above 256 only to the
next even number. The trap is padding. A box without area has IoU 0 / 0 with itself, and
`where` around the quotient still leaves NaN in the gradient; here the divisor is chosen
first, empty boxes overlap nothing, and values and gradients are finite for all of them.

Reference: Rezatofighi et al., "Generalized Intersection over Union", CVPR 2019,
https://arxiv.org/abs/1902.09630 (algorithm 1); Zheng et al., "Distance-IoU Loss: Faster
and Better Learning for Bounding Box Regression", AAAI 2020,
https://arxiv.org/abs/1911.08287 (equations 7 and 8 to 11); Girshick et al., "Rich feature
hierarchies for accurate object detection and semantic segmentation", CVPR 2014,
https://arxiv.org/abs/1311.2524 (appendix C: the codes); Ren et al., "Faster R-CNN",
NeurIPS 2015, https://arxiv.org/abs/1506.01497 (equation 2). Deviation: CIoU has its own
gradient, while the paper's program leaves 1 / (w^2 + h^2) out of it.
"""

import math

import jax.numpy as jnp
from jax import lax

from jaxml.export import export
from jaxml.ops.color import Number, Scalar
from jaxml.typing import Array, Bool, Float, Int

Length = Scalar | Int[Array, ""]
Weights = tuple[Number, Number, Number, Number]
FORMATS = ("xyxy", "xywh", "cxcywh")
MAX_LOG_SCALE = math.log(1000 / 16)
"""Of a code: a box grows at most to 62.5 times its anchor, and `exp` stays finite."""


@export("ops.box_area", since="0.1")
def box_area(boxes: Float[Array, "*batch 4"]) -> Float[Array, "*batch"]:
    """Square pixels; 0 for a box that ends before it begins.

    >>> box_area(jnp.array([[0.0, 0.0, 2.0, 3.0], [5.0, 5.0, 4.0, 9.0]])).tolist()
    [6.0, 0.0]
    """
    size = jnp.maximum(_sides(_float32(boxes)), 0)
    return size[..., 0] * size[..., 1]


@export("ops.box_iou", since="0.1")
def box_iou(
    a: Float[Array, "*batch n 4"],
    b: Float[Array, "*batch m 4"],
    *,
    paired: bool = False,
) -> Float[Array, "..."]:
    """Intersection over union, in [0, 1].

    Args:
        a: xyxy pixels.
        b: xyxy pixels.
        paired: compare each box of `a` with the one of its row in `b`, as losses do.

    Returns:
        [*batch, n, m], or [*batch, n] if paired. Boxes without area overlap nothing.

    Raises:
        ValueError: if paired boxes differ in number.

    >>> a = jnp.array([[0.0, 0.0, 2.0, 2.0]])
    >>> box_iou(a, jnp.array([[0.0, 0.0, 2.0, 1.0], [5.0, 5.0, 6.0, 6.0]])).tolist()
    [[0.5, 0.0]]
    """
    inter, union, *_ = _overlap(*_facing(a, b, paired))
    return _ratio(inter, union)


@export("ops.box_ioa", since="0.1")
def box_ioa(
    a: Float[Array, "*batch n 4"],
    b: Float[Array, "*batch m 4"],
    *,
    paired: bool = False,
) -> Float[Array, "..."]:
    """Intersection over the area of `a`, in [0, 1]: how much of it lies in `b`.

    It is what COCO takes in place of IoU where `b` is a crowd, and what says that a box
    lies in a region to be ignored. Arguments as for `box_iou`.
    """
    a, b = _facing(a, b, paired)
    inter, *_ = _overlap(a, b)
    return _ratio(inter, jnp.broadcast_to(box_area(a), inter.shape))


@export("ops.generalized_box_iou", since="0.1")
def generalized_box_iou(
    a: Float[Array, "*batch n 4"],
    b: Float[Array, "*batch m 4"],
    *,
    paired: bool = False,
) -> Float[Array, "..."]:
    """GIoU, in [-1, 1]: falls on as boxes move apart. Arguments as for `box_iou`."""
    inter, union, hull, _ = _overlap(*_facing(a, b, paired))
    size = _sides(hull)
    area = size[..., 0] * size[..., 1]
    return _ratio(inter, union) - _ratio(area - union, area)


@export("ops.distance_box_iou", since="0.1")
def distance_box_iou(
    a: Float[Array, "*batch n 4"],
    b: Float[Array, "*batch m 4"],
    *,
    paired: bool = False,
) -> Float[Array, "..."]:
    """DIoU, in [-1, 1]: minds the distance of centers. Arguments as for `box_iou`."""
    inter, union, hull, apart = _overlap(*_facing(a, b, paired))
    diagonal = jnp.sum(jnp.square(_sides(hull)), axis=-1)
    return _ratio(inter, union) - _ratio(apart, diagonal)


@export("ops.complete_box_iou", since="0.1")
def complete_box_iou(
    a: Float[Array, "*batch n 4"],
    b: Float[Array, "*batch m 4"],
    *,
    paired: bool = False,
) -> Float[Array, "..."]:
    """CIoU, in [-2, 1]: DIoU that minds the aspect ratio as well, as for `box_iou`."""
    a, b = _facing(a, b, paired)
    inter, union, hull, apart = _overlap(a, b)
    diagonal = jnp.sum(jnp.square(_sides(hull)), axis=-1)
    iou = _ratio(inter, union)
    v = jnp.square(2 / jnp.pi * (_slant(a) - _slant(b)))
    alpha = lax.stop_gradient(_ratio(v, 1 - iou + v))
    return iou - _ratio(apart, diagonal) - alpha * v


@export("ops.encode_boxes", since="0.1")
def encode_boxes(
    boxes: Float[Array, "*#batch 4"],
    anchors: Float[Array, "*#batch 4"],
    *,
    weights: Weights = (1, 1, 1, 1),
) -> Float[Array, "*batch_ 4"]:
    """What a network regresses: how a box differs from its anchor.

        weights * ((x - xa) / wa, (y - ya) / ha, log(w / wa), log(h / ha)) of the centers

    Args:
        boxes: xyxy pixels. One without width or height, such as padding, gets a finite
            code, which means nothing.
        anchors: xyxy pixels; axes of length 1 broadcast.
        weights: (10, 10, 5, 5) in the box head of Faster R-CNN, 1 in its proposals.

    >>> anchor = jnp.array([0.0, 0.0, 10.0, 20.0])
    >>> encode_boxes(jnp.array([5.0, 0.0, 15.0, 20.0]), anchor).tolist()
    [0.5, 0.0, 0.0, 0.0]
    """
    boxes, anchors = _float32(boxes), _float32(anchors)
    anchor_size = _positive(_sides(anchors), 1.0)
    size = _positive(_sides(boxes), anchor_size)
    move = (_center(boxes) - _center(anchors)) / anchor_size
    code = jnp.concatenate([move, jnp.log(size / anchor_size)], axis=-1)
    return code * _row(weights, code.ndim)


@export("ops.decode_boxes", since="0.1")
def decode_boxes(
    codes: Float[Array, "*#batch 4"],
    anchors: Float[Array, "*#batch 4"],
    *,
    weights: Weights = (1, 1, 1, 1),
    max_log_scale: Number = MAX_LOG_SCALE,
) -> Float[Array, "*batch_ 4"]:
    """The boxes that codes stand for: the inverse of `encode_boxes`.

    Args:
        codes: what the network gives.
        anchors: xyxy pixels; axes of length 1 broadcast, as for classes that have a code
            each: codes [n, classes, 4], anchors [n, 1, 4].
        weights: as in `encode_boxes`.
        max_log_scale: the most that the log of a side may grow by.
    """
    anchors = _float32(anchors)
    code = _float32(codes) / _row(weights, codes.ndim)
    anchor_size = _sides(anchors)
    center = _center(anchors) + code[..., :2] * anchor_size
    half = jnp.exp(jnp.minimum(code[..., 2:], max_log_scale)) * anchor_size / 2
    return jnp.concatenate([center - half, center + half], axis=-1)


@export("ops.convert_boxes", since="0.1")
def convert_boxes(
    boxes: Float[Array, "*batch 4"], source: str, target: str
) -> Float[Array, "*batch 4"]:
    """Boxes in another format, in float32.

    Args:
        boxes: in the format `source`.
        source: "xyxy", two corners; "xywh", a corner and the size, as COCO writes it;
            "cxcywh", the center and the size.
        target: likewise.

    Raises:
        ValueError: if a format is unknown.

    >>> convert_boxes(jnp.array([1.0, 2.0, 4.0, 6.0]), "xyxy", "cxcywh").tolist()
    [2.5, 4.0, 3.0, 4.0]
    """
    if source not in FORMATS or target not in FORMATS:
        raise ValueError(
            f"formats must be among {FORMATS}, got {source!r} and {target!r}"
        )
    boxes = _float32(boxes)
    if source == target:
        return boxes
    start, size = boxes[..., :2], boxes[..., 2:]
    if source == "xyxy":
        size = size - start
    elif source == "cxcywh":
        start = start - size / 2
    parts = {
        "xyxy": (start, start + size),
        "xywh": (start, size),
        "cxcywh": (start + size / 2, size),
    }
    return jnp.concatenate(parts[target], axis=-1)


@export("ops.clip_boxes", since="0.1")
def clip_boxes(
    boxes: Float[Array, "*batch 4"], height: Length, width: Length
) -> Float[Array, "*batch 4"]:
    """The part of each box that lies in an image; without area if there is none.

    Args:
        boxes: xyxy pixels.
        height: of the image, a number that may be traced.
        width: likewise.
    """
    boxes = _float32(boxes)
    most = jnp.stack([jnp.float32(n) for n in (width, height, width, height)])
    return jnp.clip(boxes, 0, most.reshape((1,) * (boxes.ndim - 1) + (4,)))


@export("ops.has_size", since="0.1")
def has_size(
    boxes: Float[Array, "*batch 4"], min_size: Scalar = 0
) -> Bool[Array, "*batch"]:
    """Whether both sides of a box are longer than 0, and at least `min_size` pixels."""
    side = jnp.min(_sides(_float32(boxes)), axis=-1)
    return (side > 0) & (side >= min_size)


def _float32(x: Array) -> Array:
    return jnp.asarray(x).astype(jnp.float32)


def _sides(boxes: Array) -> Array:
    """(width, height)."""
    return boxes[..., 2:] - boxes[..., :2]


def _center(boxes: Array) -> Array:
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def _positive(size: Array, otherwise: Array | float) -> Array:
    return jnp.where(size > 0, size, otherwise)


def _row(weights: Weights, ndim: int) -> Array:
    return jnp.asarray(weights, jnp.float32).reshape((1,) * (ndim - 1) + (4,))


def _facing(a: Array, b: Array, paired: bool) -> tuple[Array, Array]:
    """Both in float32, shaped so that they broadcast to the wanted pairs."""
    a, b = _float32(a), _float32(b)
    if not paired:
        return a[..., :, None, :], b[..., None, :, :]
    if a.shape != b.shape:
        raise ValueError(
            f"paired boxes must have one shape, got {a.shape} and {b.shape}"
        )
    return a, b


def _overlap(a: Array, b: Array) -> tuple[Array, Array, Array, Array]:
    """Areas of intersection and union, the hull, the squared distance of centers."""
    low, high = jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:])
    size = jnp.maximum(high - low, 0)
    inter = size[..., 0] * size[..., 1]
    union = box_area(a) + box_area(b) - inter
    starts = jnp.minimum(a[..., :2], b[..., :2])
    hull = jnp.concatenate([starts, jnp.maximum(a[..., 2:], b[..., 2:])], axis=-1)
    return inter, union, hull, jnp.sum(jnp.square(_center(a) - _center(b)), axis=-1)


def _ratio(part: Array, whole: Array) -> Array:
    """0 where the whole is nothing, with gradients that are finite everywhere."""
    is_something = whole > 1e-12
    return jnp.where(is_something, part / jnp.where(is_something, whole, 1), 0)


def _slant(boxes: Array) -> Array:
    """The arctan of width over height; of a point 0."""
    size = jnp.maximum(_sides(boxes), 0)
    is_point = jnp.sum(jnp.square(size), axis=-1) <= 1e-12
    height = jnp.where(is_point, 1, size[..., 1])
    return jnp.arctan2(jnp.where(is_point, 0, size[..., 0]), height)
