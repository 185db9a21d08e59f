"""Pooling of regions whose bins move: deformable RoI pooling, plain or position-sensitive.

The network predicts for every bin by how much of the box it is to move, and in v2 how much
it is to count:

    out[i, j] = m[i, j] align[i, j](box + gamma (dy[i, j] h, dx[i, j] w)).

The trap is the unit of the offsets, heights and widths of the box times gamma = 0.1; in
pixels they would depend on the size of the box.

Reference: Dai et al., "Deformable Convolutional Networks", ICCV 2017,
https://arxiv.org/abs/1703.06211 (section 2.2, equations 5 and 6); Zhu et al., "Deformable
ConvNets v2", CVPR 2019, https://arxiv.org/abs/1811.11168 (equation 2). Deviation: samples
are those of RoIAlign, bilinear at fixed places of a bin, clamped within a pixel of the
image, where the papers average whole pixels of a rounded box.
"""

import math

import jax
import jax.numpy as jnp

from jaxml.export import export
from jaxml.ops.grids import Axis, sample_grids, sample_slots
from jaxml.ops.regions import Boxes, Features, check_channels, regular_grids
from jaxml.typing import Array, Float


@export("ops.deform_roi_pool", since="0.1")
def deform_roi_pool(
    features: Features,
    boxes: Boxes,
    offsets: Float[Array, "boxes rows columns *classes 2"],
    *,
    mask: Float[Array, "boxes rows columns *classes"] | None = None,
    gamma: float = 0.1,
    spatial_scale: float = 1.0,
    sampling_ratio: int = 2,
    aligned: bool = True,
    position_sensitive: bool = False,
    form: str = "gather",
) -> Float[Array, "boxes rows columns pooled"]:
    """RoIAlign, plain or position-sensitive, with every bin moved by its own offset.

    Args:
        features: of one image; `jax.vmap` for a batch.
        boxes: as for `roi_align`.
        offsets: (dy, dx) of every bin, in heights and widths of the box, before `gamma`;
            a position-sensitive pool may have one for each class, whose number then
            divides the channels of the result.
        mask: what every bin is multiplied by, in v2 a sigmoid of the network.
        gamma: of the paper, which keeps early offsets small.
        spatial_scale: features per pixel.
        sampling_ratio: samples per bin and axis, or 0 for as many as there are pixels.
        aligned: as for `roi_align`.
        position_sensitive: whether bins have channels of their own, as `ps_roi_align`.
        form: "gather" or "matmul".

    Raises:
        ValueError: if shapes or options are out of range.
    """
    classes = offsets.shape[3:-1]
    if offsets.shape[0] != len(boxes) or offsets.ndim not in (4, 5):
        raise ValueError(
            "offsets must have the shape [boxes, rows, columns, 2], or one more axis of "
            f"classes, got {offsets.shape} for {len(boxes)} boxes"
        )
    if classes and not position_sensitive:
        raise ValueError("offsets of classes need position_sensitive=True")
    if mask is not None and mask.shape != offsets.shape[:-1]:
        raise ValueError(
            f"mask must have the shape {offsets.shape[:-1]}, got {mask.shape}"
        )
    n, *sizes = offsets.shape[:3]
    rows, columns = regular_grids(
        features,
        boxes,
        (sizes[0], sizes[1]),
        spatial_scale,
        sampling_ratio,
        aligned,
        form,
        offsets=gamma * jnp.asarray(offsets, jnp.float32),
    )
    bins = math.prod(sizes)
    groups = math.prod(classes)
    if position_sensitive:
        check_channels(features, bins * groups)
        height, width, channels = features.shape
        each = channels // bins // groups
        slots = jnp.asarray(features).reshape(height, width, groups, each, bins)
        # Classes stand before bins among the slots, after them among the offsets.
        slots = slots.transpose(0, 1, 3, 4, 2).reshape(height, width, each, -1)
        out = sample_slots(slots, rows, columns, form=form)
        out = out.reshape(n, *sizes, groups, each)
    else:
        single = [_each_alone(axis, bins) for axis in (rows, columns)]
        out = sample_grids(features, *single, form=form).reshape(n, *sizes, 1, -1)
    if mask is not None:
        out *= mask.reshape(n, *sizes, groups, 1).astype(out.dtype)
    return out.reshape(n, *sizes, -1)


def _each_alone(axis: Axis, bins: int) -> Axis:
    """Every bin as a grid of one."""
    taps = jax.tree.map(lambda a: a.reshape(-1, 1, *a.shape[2:]), axis.taps)
    samples = axis.samples
    return Axis(taps, None if samples is None else jnp.repeat(samples, bins))
