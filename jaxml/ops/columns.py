"""Convolution as a product of matrices: what every place reads, times the kernel.

    out[p, f] = sum_kc columns[p, k C + c] kernel[k, c, f]

Columns hold the taps of a place one after another, all channels of each. The trap is
groups: the channels of one group lie apart in the columns, once for every tap, and a kernel
holds those of one group only.

Reference: Chellapilla, Puri and Simard, "High Performance Convolutional Neural Networks for
Document Processing", 2006, https://inria.hal.science/inria-00112631 (section 3.1).
"""

from typing import Any

import jax.numpy as jnp

from jaxml.typing import Array, Float


def shifted_columns(
    x: Float[Array, "batch height width channels"], size: tuple[int, int]
) -> Float[Array, "batch height_out width_out columns"]:
    """What a kernel of that size reads wherever it touches the image, zeros beyond it."""
    rows, columns = size
    height, width = x.shape[1] + rows - 1, x.shape[2] + columns - 1
    margins = [(0, 0), (rows - 1, rows - 1), (columns - 1, columns - 1), (0, 0)]
    x = jnp.pad(x, margins)
    shifts = [
        x[:, i : i + height, j : j + width] for i in range(rows) for j in range(columns)
    ]
    return jnp.concatenate(shifts, axis=-1)


def multiply_columns(
    columns: Float[Array, "*places columns"],
    kernel: Float[Array, "rows across group_channels features"],
    dtype: Any = None,
) -> Float[Array, "*places features"]:
    """Columns times a kernel, which has as many groups as its channels go into theirs.

    Args:
        columns: what every place reads, taps by channels.
        kernel: of one group's channels, and the features of all groups.
        dtype: of the result; None for that of the operands.
    """
    rows, across, each, features = kernel.shape
    taps = rows * across
    groups = columns.shape[-1] // (taps * each)
    if groups == 1:
        kernel = kernel.reshape(-1, features)
        return jnp.matmul(columns, kernel, preferred_element_type=dtype)
    parts = columns.reshape(*columns.shape[:-1], taps, groups, each)
    kernels = kernel.reshape(taps, each, groups, -1)
    out = jnp.einsum("...kgc,kcgf->...gf", parts, kernels, preferred_element_type=dtype)
    return out.reshape(*columns.shape[:-1], features)
