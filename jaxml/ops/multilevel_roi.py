"""RoIAlign on a pyramid of features: every box on the level that its size belongs to.

    level = floor(4 + log2(sqrt(width height) / 224)),    of stride 2^level

All levels are one list of pixels in which each box finds its own by an offset, so that
the levels to which a box does not belong cost nothing. The trap is a box exactly between
two levels: rounding decides, and 1e-6 is added for it to decide upwards.

Reference: Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017,
https://arxiv.org/abs/1612.03144 (equation 1).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxml.export import export
from jaxml.ops.grids import Axis, sample_grids, sample_table
from jaxml.ops.regions import (
    Boxes,
    check_regions,
    pair,
    region_axes,
    scale_boxes,
)
from jaxml.ops.sampling import check_form
from jaxml.typing import Array, Float, Int


@export("ops.pyramid_level", since="0.1")
def pyramid_level(
    boxes: Boxes,
    lowest: int = 2,
    highest: int = 5,
    *,
    canonical_size: float | int = 224,
    canonical_level: int = 4,
) -> Int[Array, "boxes"]:
    """The level of a feature pyramid that a box belongs to.

    floor(canonical_level + log2(sqrt(width height) / canonical_size)), in [lowest,
    highest]; level l has stride 2^l.

    Args:
        boxes: xyxy in pixels of the image.
        lowest: level there is.
        highest: level there is.
        canonical_size: side of the box that belongs to the canonical level, in pixels.
        canonical_level: 4 in the paper.

    >>> side = jnp.array([[10.0], [112.0], [224.0], [900.0]])
    >>> pyramid_level(side * jnp.array([[0, 0, 1, 1]])).tolist()
    [2, 3, 4, 5]
    """
    boxes = jnp.asarray(boxes, jnp.float32)
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    area = jax.lax.stop_gradient(jnp.maximum(width * height, 0))
    level = canonical_level + 0.5 * jnp.log2(area / canonical_size**2)
    level = jnp.clip(jnp.floor(level + 1e-6), lowest, highest)
    return level.astype(jnp.int32)


@export("ops.multilevel_roi_align", since="0.1")
def multilevel_roi_align(
    pyramid: Sequence[Float[Array, "_ _ channels"]],
    boxes: Boxes,
    output_size: int | tuple[int, int],
    *,
    lowest: int = 2,
    sampling_ratio: int = 2,
    aligned: bool = True,
    canonical_size: float | int = 224,
    canonical_level: int = 4,
    form: str = "gather",
) -> Float[Array, "boxes rows columns channels"]:
    """RoIAlign of every box on the level of a pyramid that its size belongs to.

    All levels are one list of pixels, and each box reads its own: no level is pooled in
    vain. As matrices, all levels are multiplied, most of them by zero.

    Args:
        pyramid: features of strides 2^lowest, 2^(lowest + 1), ..., of any sizes.
        boxes: xyxy in pixels of the image.
        output_size: as for `roi_align`.
        lowest: the first level.
        sampling_ratio: as for `roi_align`, also the next.
        aligned: whether coordinates mean the same in image and features.
        canonical_size: as for `pyramid_level`, also the next.
        canonical_level: 4 in the paper.
        form: "gather" or "matmul".

    Raises:
        ValueError: if shapes or options are out of range, or channels differ.
    """
    if not pyramid or len({level.shape[-1] for level in pyramid}) > 1:
        shapes = [level.shape for level in pyramid]
        raise ValueError(f"pyramid must be levels of as many channels, got {shapes}")
    check_form(form)
    for level in pyramid:
        check_regions(level, boxes, sampling_ratio)
    sizes = pair(output_size)
    level = pyramid_level(
        boxes,
        lowest,
        lowest + len(pyramid) - 1,
        canonical_size=canonical_size,
        canonical_level=canonical_level,
    )
    own = level - lowest
    scaled = scale_boxes(boxes, jnp.exp2(-level.astype(jnp.float32))[:, None], aligned)
    heights, widths = (tuple(x.shape[axis] for x in pyramid) for axis in (0, 1))

    def axes(height: Array, width: Array) -> tuple[Axis, Axis]:
        most = (max(heights), max(widths))
        return region_axes(scaled, (height, width), most, sizes, sampling_ratio)

    if form == "gather":
        starts = np.cumsum([0] + [h * w for h, w in zip(heights, widths, strict=True)])
        height, width, start = (jnp.asarray(a)[own] for a in (heights, widths, starts))
        rows, columns = axes(height, width)
        each = (slice(None), None, None, None)
        pixel = start[each] + rows.taps.pixel * width[each]
        rows = rows._replace(taps=rows.taps._replace(pixel=pixel))
        flat = [jnp.asarray(x).reshape(-1, x.shape[-1]) for x in pyramid]
        return sample_table(jnp.concatenate(flat), rows, columns)
    total = jnp.zeros((), pyramid[0].dtype)
    for i, x in enumerate(pyramid):
        rows, columns = axes(*(jnp.full(own.shape, n) for n in x.shape[:2]))
        weight = jnp.where((own == i)[:, None, None, None], rows.taps.weight, 0)
        rows = rows._replace(taps=rows.taps._replace(weight=weight))
        total += sample_grids(x, rows, columns, form=form)
    return total
