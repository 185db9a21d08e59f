"""Pooling of regions of interest: a box of any size becomes a grid of a fixed size.

RoIAlign averages S x S bilinear samples in each of k x k bins, RoIPool takes the largest
pixel of a bin of whole pixels:

    align[i, j] = mean over s, t of x(y0 + (i + (s + 1/2) / S) h / k, x0 + ...)
    pool[i, j]  = max of x over floor(i h / k) .. ceil((i + 1) h / k), ...

The position-sensitive kinds give bin (i, j) of class c a channel of its own, number
(c k + i) k + j, so that where a part lies is told by the channel that sees it.

The traps are half a pixel and one pixel. Pixel i covers [i, i + 1), and its value sits in
the middle, hence `aligned`; torchvision's default lacks that half. The two kinds that
round boxes to pixels do it each in its own way. A sample within one pixel of the image is
clamped to it, one further out is black.

Reference: Girshick, "Fast R-CNN", ICCV 2015, https://arxiv.org/abs/1504.08083 (section
2.1, RoIPool); He et al., "Mask R-CNN", ICCV 2017, https://arxiv.org/abs/1703.06870
(section 3, RoIAlign); Dai et al., "R-FCN", NeurIPS 2016, https://arxiv.org/abs/1605.06409
(equation 1). Equal to torchvision's operators, with these deviations: gradients reach the
boxes; where samples are as many as pixels, a box without area yields zero, never NaN, and
a box over twice as large as the image is sampled as often as one just so; whole pixels are found
in integers, not rounded floats; and `ps_roi_pool` reads the last row and column of the
image, which torchvision's forward pass leaves out.
"""

import math

import jax
import jax.numpy as jnp

from jaxml.export import export
from jaxml.ops.grids import Axis, sample_grids, sample_slots, sample_table
from jaxml.ops.max_grids import max_grids
from jaxml.ops.regions import (
    Boxes,
    Features,
    check_channels,
    check_regions,
    pair,
    per_bin,
    regular_grids,
)
from jaxml.ops.sampling import Taps, check_form
from jaxml.typing import Array, Float

STRIPS = 8
"""Of the image, for the order of regions."""


@export("ops.roi_align", since="0.1")
def roi_align(
    features: Features,
    boxes: Boxes,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 2,
    aligned: bool = True,
    *,
    form: str = "gather",
) -> Float[Array, "boxes rows columns channels"]:
    """Bilinear samples of every box, averaged in bins.

    Args:
        features: of one image; `jax.vmap` for a batch.
        boxes: xyxy in pixels of the image, of which features are 1 / spatial_scale.
        output_size: bins, (rows, columns) or one number for both.
        spatial_scale: features per pixel, 1/8 for features of stride 8.
        sampling_ratio: samples per bin and axis. 0 takes as many as the bin has rows (or
            columns) of features, rounded up, so that none is missed, and at most those
            of a box twice as large as the image.
        aligned: whether coordinates mean the same in image and features, which takes
            half a pixel off. Without it boxes are at least one feature wide and high.
        form: "gather", or "matmul" for a TPU.

    Raises:
        ValueError: if shapes or options are out of range.

    >>> features = jnp.arange(16.0).reshape(4, 4, 1)
    >>> roi_align(features, jnp.array([[1.0, 1.0, 3.0, 3.0]]), 1).tolist()
    [[[[7.5]]]]
    """
    rows, columns = regular_grids(
        features, boxes, output_size, spatial_scale, sampling_ratio, aligned, form
    )
    return sample_grids(features, rows, columns, form=form)


@export("ops.ps_roi_align", since="0.1")
def ps_roi_align(
    features: Features,
    boxes: Boxes,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 2,
    *,
    form: str = "gather",
) -> Float[Array, "boxes rows columns classes"]:
    """RoIAlign of score maps: bin (i, j) of class c reads channel (c rows + i) columns + j.

    Args:
        features: as many channels as classes times bins.
        boxes: as for `roi_align`, also the next two; coordinates are `aligned`.
        output_size: bins.
        spatial_scale: features per pixel.
        sampling_ratio: samples per bin and axis, or 0 for as many as there are pixels.
        form: "gather" or "matmul".

    Raises:
        ValueError: if shapes or options are out of range.

    >>> features = jnp.arange(4.0).reshape(1, 1, 4)  # one class, 2 x 2 bins
    >>> ps_roi_align(features, jnp.array([[0.0, 0.0, 1.0, 1.0]]), 2)[0, :, :, 0].tolist()
    [[0.0, 1.0], [2.0, 3.0]]
    """
    rows, columns = regular_grids(
        features, boxes, output_size, spatial_scale, sampling_ratio, True, form
    )
    return _sample_bins(features, rows, columns, form)


@export("ops.ps_roi_pool", since="0.1")
def ps_roi_pool(
    features: Features,
    boxes: Boxes,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    *,
    form: str = "gather",
) -> Float[Array, "boxes rows columns classes"]:
    """The mean of every bin's pixels in its own channel, as R-FCN pools its score maps.

    Boxes are rounded to whole pixels, halves away from zero, and bins outwards, so that
    they overlap. Empty bins are zero.

    Args:
        features: as for `ps_roi_align`, also the next two.
        boxes: xyxy in pixels of the image.
        output_size: bins.
        spatial_scale: features per pixel.
        form: "gather" or "matmul".

    Raises:
        ValueError: if shapes or options are out of range.
    """
    check_form(form)
    check_regions(features, boxes)
    sizes = pair(output_size)
    low, high = jnp.split(_rounded(boxes, spatial_scale), 2, axis=1)
    length = jnp.maximum(high - low, 1)
    axes = []
    for axis, size, bins in zip((1, 0), features.shape, sizes, strict=False):
        start, stop = _whole_bins(low[:, axis], length[:, axis], bins, size)
        place = start[..., None] + jnp.arange(size)[None, None]
        weight = (place < stop[..., None]) / jnp.maximum(stop - start, 1)[..., None]
        taps = Taps(jnp.minimum(place, size - 1), weight.astype(jnp.float32))
        taps = jax.tree.map(lambda a: a[..., None], taps)
        axes.append(Axis(taps, jnp.max(stop - start, axis=1)))
    return _sample_bins(features, axes[0], axes[1], form)


@export("ops.roi_pool", since="0.1")
def roi_pool(
    features: Features,
    boxes: Boxes,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
) -> Float[Array, "boxes rows columns channels"]:
    """The largest pixel of every bin, as Fast R-CNN pools.

    Boxes are rounded to whole pixels, halves away from zero, and end with their last
    pixel; bins are rounded outwards, so that they overlap. Empty bins are zero. Gradients
    go to the largest pixel, the first of several, and none to the boxes.

    Args:
        features: of one image; `jax.vmap` for a batch.
        boxes: xyxy in pixels of the image.
        output_size: bins, (rows, columns) or one number for both.
        spatial_scale: features per pixel.

    Raises:
        ValueError: if shapes are out of range.

    >>> features = jnp.arange(16.0).reshape(4, 4, 1)
    >>> roi_pool(features, jnp.array([[0.0, 0.0, 3.0, 1.0]]), (1, 2))[0, 0, :, 0].tolist()
    [5.0, 7.0]
    """
    check_regions(features, boxes)
    sizes = pair(output_size)
    low, high = jnp.split(_rounded(boxes, spatial_scale), 2, axis=1)
    length = jnp.maximum(high - low + 1, 1)
    rows, columns = (
        jnp.stack(_whole_bins(low[:, axis], length[:, axis], bins, size), axis=-1)
        for axis, size, bins in zip((1, 0), features.shape, sizes, strict=False)
    )
    return max_grids(jnp.asarray(features), rows, columns)


def _sample_bins(features: Array, rows: Axis, columns: Axis, form: str) -> Array:
    """Each bin of a regular grid from channels of its own."""
    sizes = rows.taps.pixel.shape[1], columns.taps.pixel.shape[1]
    bins = math.prod(sizes)
    check_channels(features, bins)
    height, width, _ = features.shape
    slots = jnp.asarray(features).reshape(height, width, -1, bins)
    if form == "gather":
        shape = (len(rows.taps.pixel), *sizes)
        slot = jnp.broadcast_to(jnp.arange(bins).reshape(1, *sizes), shape)
        table = slots.reshape(height * width, -1, bins)
        order = _along_strips(rows, columns)
        rows, columns = jax.tree.map(lambda a: a[order], (rows, columns))
        out = sample_table(table, rows.scaled(width), columns, slot)
        return out[jnp.argsort(order)]
    single = [
        Axis(jax.tree.map(lambda a, e=e: per_bin(a, sizes, e), axis.taps))
        for e, axis in enumerate((rows, columns))
    ]
    out = sample_slots(slots, *single, form=form)
    return out.reshape(len(out), *sizes, -1)


def _along_strips(rows: Axis, columns: Axis) -> Array:
    """Grids by the strip of the image that they lie in, from left to right: [grids].

    What a bin reads of its own channels lies in lines far apart, each in the cache for the
    next grid if that one lies near.
    """
    y, x = (jnp.mean(axis.taps.pixel[:, :, 0, 0], axis=1) for axis in (rows, columns))
    y, x = (a / (1 + jnp.max(a, initial=0)) for a in (y, x))
    return jnp.argsort(jnp.floor(STRIPS * y) + x)


def _rounded(boxes: Array, spatial_scale: float) -> Array:
    """Boxes in whole pixels, halves away from zero."""
    boxes = jnp.asarray(boxes, jnp.promote_types(boxes.dtype, jnp.float32))
    boxes = jax.lax.stop_gradient(boxes * spatial_scale)
    boxes = jnp.sign(boxes) * jnp.floor(jnp.abs(boxes) + 0.5)
    return jnp.clip(boxes, -(2**23), 2**23).astype(jnp.int32)


def _whole_bins(low: Array, length: Array, bins: int, size: int) -> tuple[Array, Array]:
    """First pixel of every bin and the one after its last, on the axis: [boxes, bins]."""
    # In integers, so that no rounding error decides about a pixel.
    place = jnp.arange(bins)[None]
    start = low[:, None] + place * length[:, None] // bins
    stop = low[:, None] - (-(place + 1) * length[:, None] // bins)
    start, stop = jnp.clip(start, 0, size), jnp.clip(stop, 0, size)
    return start, jnp.maximum(start, stop)
