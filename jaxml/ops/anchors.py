"""Anchors: the boxes from which detectors start, at every place of a feature pyramid.

A level with stride s looks at the image in steps of s pixels. At each of its places stand
anchors of all sizes and aspect ratios,

    w = size * scale / sqrt(ratio),   h = size * scale * sqrt(ratio),   ratio = h / w,

about ((x + offset) s, (y + offset) s). Rows of the level come first, then columns, then
ratios, sizes and scales, as a convolution's outputs [y, x, anchors] do when they are
reshaped. All of it is fixed by shapes and made once, on the host.

The trap is where a cell's middle is. Pixel coordinates are continuous here, so it is at
offset 1/2. torchvision and the first Faster R-CNN stand at its corner, offset 0, and round
anchors to whole pixels: `offset=0, rounded=True` gives theirs, for weights trained so.

Reference: Ren et al., "Faster R-CNN: Towards Real-Time Object Detection with Region
Proposal Networks", NeurIPS 2015, https://arxiv.org/abs/1506.01497 (section 3.1.1); Lin et
al., "Feature Pyramid Networks for Object Detection", CVPR 2017,
https://arxiv.org/abs/1612.03144 (section 4.1: one size a level); Lin et al., "Focal Loss
for Dense Object Detection", ICCV 2017, https://arxiv.org/abs/1708.02002 (section 4: three
scales of an octave).
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from jaxml.export import export
from jaxml.ops.color import Number
from jaxml.typing import Array, Float

Pair = tuple[int, int]
OCTAVE = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
"""The scales of RetinaNet."""


@export("ops.cell_anchors", since="0.1")
def cell_anchors(
    sizes: Sequence[Number],
    *,
    aspect_ratios: Sequence[Number] = (0.5, 1, 2),
    scales: Sequence[Number] = (1,),
    rounded: bool = False,
) -> Float[Array, "k 4"]:
    """The anchors of one place, about (0, 0): of all ratios, sizes and scales.

    Args:
        sizes: square roots of areas, in pixels.
        aspect_ratios: heights over widths.
        scales: by which sizes are multiplied.
        rounded: to whole pixels.

    Raises:
        ValueError: if there is none, or a number is not positive.

    >>> cell_anchors([32], aspect_ratios=[0.25]).tolist()
    [[-32.0, -8.0, 32.0, 8.0]]
    """
    for name, numbers in (
        ("sizes", sizes),
        ("aspect_ratios", aspect_ratios),
        ("scales", scales),
    ):
        if not len(numbers) or not min(numbers) > 0:
            raise ValueError(f"{name} must be positive numbers, got {tuple(numbers)}")
    root = np.sqrt(np.asarray(aspect_ratios, np.float32))[:, None]
    side = np.outer(np.asarray(sizes, np.float32), np.asarray(scales, np.float32))
    side = side.reshape(1, -1)
    half = np.stack([(1 / root * side).ravel(), (root * side).ravel()], axis=1) / 2
    cell = np.concatenate([-half, half], axis=1)
    return jnp.asarray(np.round(cell) if rounded else cell)


@export("ops.grid_centers", since="0.1")
def grid_centers(
    grid: Pair, stride: int | Pair, *, offset: Number = 0.5
) -> Float[Array, "places 2"]:
    """(x, y) in pixels of every place of a level, row by row.

    Args:
        grid: (height, width) of the level.
        stride: pixels between places, or those (down, to the right).
        offset: of the place in its cell: 1/2 the middle, 0 the corner.

    Raises:
        ValueError: if the stride is not positive.

    >>> grid_centers((1, 2), 8).tolist()
    [[4.0, 4.0], [12.0, 4.0]]
    """
    down, right = (stride, stride) if isinstance(stride, int) else stride
    if min(down, right) < 1:
        raise ValueError(f"stride must be positive, got {stride}")
    y, x = (
        (np.arange(n, dtype=np.float32) + np.float32(offset)) * step
        for n, step in zip(grid, (down, right), strict=True)
    )
    return jnp.asarray(np.stack([np.tile(x, len(y)), np.repeat(y, len(x))], axis=1))


@export("ops.pyramid_anchors", since="0.1")
def pyramid_anchors(
    grids: Sequence[Pair],
    strides: Sequence[int | Pair],
    sizes: Sequence[Sequence[Number]],
    *,
    aspect_ratios: Sequence[Number] = (0.5, 1, 2),
    scales: Sequence[Number] = (1,),
    offset: Number = 0.5,
    rounded: bool = False,
) -> tuple[Float[Array, "anchors 4"], ...]:
    """The anchors of each level, xyxy pixels of the image.

    Args:
        grids: (height, width) of each level.
        strides: of each level.
        sizes: of each level, such as [[32], [64], [128], [256], [512]].
        aspect_ratios: heights over widths.
        scales: by which sizes are multiplied.
        offset: of a place in its cell.
        rounded: to whole pixels, before they are moved to their places.

    Raises:
        ValueError: if levels disagree in number, or as for `cell_anchors`.

        anchors = jnp.concatenate(pyramid_anchors([(100, 152), (50, 76)], [8, 16], ...))
    """
    if not len(grids) == len(strides) == len(sizes):
        raise ValueError(
            "grids, strides and sizes must have one entry for each level, "
            f"got {len(grids)}, {len(strides)} and {len(sizes)}"
        )
    levels = []
    for grid, stride, some in zip(grids, strides, sizes, strict=True):
        cell = cell_anchors(
            some, aspect_ratios=aspect_ratios, scales=scales, rounded=rounded
        )
        place = jnp.tile(grid_centers(grid, stride, offset=offset), 2)
        levels.append((place[:, None] + cell[None]).reshape(-1, 4))
    return tuple(levels)
