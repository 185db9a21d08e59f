"""Boxes as samples on two axes: what every kind of pooling of regions starts with.

A box is k bins of S samples on either axis, the samples in the middle of S equal parts:

    at[i, s] = low + (i + (s + 1/2) / S) (high - low) / k

The trap is S = 0, which stands for as many samples as a bin has pixels, rounded up: it
differs from box to box, so that shapes hold the most there can be and weights of zero.
"""

import jax
import jax.numpy as jnp

from jaxml.ops.grids import Axis
from jaxml.ops.sampling import check_form, neighbors
from jaxml.typing import Array, Float

Features = Float[Array, "height width channels"]
Boxes = Float[Array, "boxes 4"]


def regular_grids(
    features: Array,
    boxes: Array,
    output_size: int | tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    form: str,
    offsets: Array | None = None,
) -> tuple[Axis, Axis]:
    """The rows and columns of samples that lie evenly in every box, or bin by bin."""
    check_form(form)
    check_regions(features, boxes, sampling_ratio)
    scaled = scale_boxes(boxes, spatial_scale, aligned)
    sizes, most = features.shape[:2], features.shape[:2]
    bins = pair(output_size)
    return region_axes(scaled, sizes, most, bins, sampling_ratio, offsets)


def scale_boxes(boxes: Array, spatial_scale: float | Array, aligned: bool) -> jax.Array:
    """Boxes in the coordinates of features, whose pixel centers are whole numbers."""
    boxes = jnp.asarray(boxes, jnp.promote_types(boxes.dtype, jnp.float32))
    boxes = boxes * spatial_scale
    if aligned:
        return boxes - 0.5
    low, high = boxes[:, :2], boxes[:, 2:]
    return jnp.concatenate([low, low + jnp.maximum(high - low, 1)], axis=1)


def region_axes(
    boxes: jax.Array,
    sizes: tuple[int | Array, ...],
    most: tuple[int, ...],
    bins: tuple[int, int],
    ratio: int,
    offsets: Array | None = None,
) -> tuple[Axis, Axis]:
    """Rows and columns: [boxes, bins, samples, 2], with offsets one bin per bin."""
    axes = []
    for e in (0, 1):
        low, high = boxes[:, 1 - e], boxes[:, 3 - e]
        at, weight, samples = _samples(low, high, most[e], bins[e], ratio)
        if offsets is not None:
            at, weight = (per_bin(a, bins, e) for a in (at, weight))
            moves = offsets[..., e] * (high - low).reshape(
                -1, *[1] * (offsets.ndim - 2)
            )
            moves = moves.reshape(*at.shape[:2], -1, 1)  # [boxes, bins, classes, 1]
            at = at[:, :, None] + moves
            weight = jnp.broadcast_to(weight[:, :, None], at.shape)
            at, weight = (a.reshape(len(a), -1, a.shape[-1]) for a in (at, weight))
        size = sizes[e]
        size = size if isinstance(size, int) else size[:, None, None]
        taps = neighbors(at, size, "roi")
        taps = taps._replace(weight=taps.weight * weight[..., None])
        axes.append(Axis(taps, samples))
    return axes[0], axes[1]


def _samples(
    low: jax.Array, high: jax.Array, size: int, bins: int, ratio: int
) -> tuple[Array, Array, Array | None]:
    """Places and weights [boxes, bins, samples] between two, and how many count."""
    step = (high - low) / bins
    if ratio:
        most, samples = ratio, None
        count = jnp.full_like(low, ratio)
    else:
        most = -(-2 * size // bins)
        samples = jnp.clip(jnp.ceil(step).astype(jnp.int32), 0, most)
        count = samples.astype(step.dtype)
    place = jnp.arange(bins, dtype=low.dtype)[None, :, None]
    sample = jnp.arange(most, dtype=low.dtype)[None, None, :]
    low, step, count = (a[:, None, None] for a in (low, step, count))
    some = jnp.maximum(count, 1)
    at = low + place * step + (sample + 0.5) * step / some
    weight = jnp.where(sample < count, 1 / some, 0)
    return at, jnp.broadcast_to(weight, at.shape), samples


def per_bin(a: Array, sizes: tuple[int, int], axis: int) -> Array:
    """What one axis says of its bins, for every bin of the grid."""
    a = jnp.expand_dims(a, 2 - axis)
    shape = (a.shape[0], *sizes, *a.shape[3:])
    return jnp.broadcast_to(a, shape).reshape(a.shape[0], -1, *a.shape[3:])


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """Rows and columns.

    Raises:
        ValueError: unless both are positive.
    """
    rows, columns = (size, size) if isinstance(size, int) else size
    if min(rows, columns) < 1:
        raise ValueError(f"output_size must be positive, got {size}")
    return rows, columns


def check_regions(features: Array, boxes: Array, sampling_ratio: int = 0) -> None:
    """Checks what is common to all pooling of regions.

    Raises:
        ValueError: if a shape or the number of samples is out of range.
    """
    if features.ndim != 3 or 0 in features.shape:
        raise ValueError(
            "features must have the shape [height, width, channels] and no axis of "
            f"size 0, got {features.shape}; use jax.vmap for a batch"
        )
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes must have the shape [boxes, 4], got {boxes.shape}")
    if sampling_ratio < 0:
        raise ValueError(
            f"sampling_ratio must be positive, or 0 to adapt, got {sampling_ratio}"
        )


def check_channels(features: Array, bins: int) -> None:
    """Checks that bins can have channels of their own.

    Raises:
        ValueError: unless the channels can be shared out.
    """
    if features.shape[-1] % bins:
        raise ValueError(
            f"features must have as many channels for each of {bins} bins, "
            f"got {features.shape[-1]}"
        )
