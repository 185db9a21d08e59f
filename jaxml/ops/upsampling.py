"""Upsampling: every way from a small grid of features to a large one, and what undoes it.

Interpolation reads between pixels, and separates into a matrix per axis:

    out = R x C^T,    R[o, i] = filter(place(o) - i),
    place(o) = (o + 1/2) in / out - 1/2,   or  o (in - 1) / (out - 1) with aligned corners.

A transposed convolution is the gradient of a convolution, out[s i + d a - p] += x[i] K[a];
sub-pixel convolution moves channels into space; unpooling puts maxima back where they
were. The traps are conventions. "Nearest" rounds down from the corner in most code and
from the middle in `jax.image` and as `exact` here. Cubic filters differ in a parameter,
-3/4 here and in PyTorch, -1/2 in `jaxml.ops.resize_image`, which also cuts filters off at
the border, where these repeat the outermost pixel, and widens them when shrinking. Kernels
of transposed convolutions are turned around in one library and not in the other. And
where the stride does not divide the kernel, places get different numbers of taps: the
checkerboard.

Reference: Keys, "Cubic Convolution Interpolation for Digital Image Processing", 1981,
https://doi.org/10.1109/TASSP.1981.1163711 (equation 4); Zeiler et al., "Deconvolutional
Networks", CVPR 2010, https://doi.org/10.1109/CVPR.2010.5539957; Long et al., "Fully
Convolutional Networks for Semantic Segmentation", CVPR 2015,
https://arxiv.org/abs/1411.4038 (bilinear initialisation); Shi et al., "Real-Time Single
Image and Video Super-Resolution", CVPR 2016, https://arxiv.org/abs/1609.05158 (equation
4); Aitken et al., "Checkerboard artifact free sub-pixel convolution", 2017,
https://arxiv.org/abs/1707.02937 (ICNR); Odena et al., "Deconvolution and Checkerboard
Artifacts", 2016, https://doi.org/10.23915/distill.00003.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.nn.initializers import Initializer

from jaxml.export import export
from jaxml.ops.columns import multiply_columns, shifted_columns
from jaxml.typing import Array, Float, PRNGKeyArray

Images = Float[Array, "batch height width channels"]
Larger = Float[Array, "batch height_out width_out channels"]
Shuffled = Float[Array, "batch height_out width_out features"]


@export("ops.upsample_nearest", since="0.1")
def upsample_nearest(
    x: Images, size: tuple[int, int], *, exact: bool = False
) -> Larger:
    """Every output pixel is a copy of an input pixel.

    Args:
        x: images.
        size: (height, width) of the result, of any ratio to the input, also below one.
        exact: take the pixel whose area holds the middle of the output's, as
            `jax.image.resize` does, and not the one that holds its corner.

    >>> line = jnp.arange(3.0).reshape(1, 1, 3, 1)
    >>> upsample_nearest(line, (1, 5)).ravel().tolist()
    [0.0, 0.0, 1.0, 1.0, 2.0]
    """
    _check_size(x, size)
    for axis, (n, out) in enumerate(zip(x.shape[1:3], size, strict=True), start=1):
        # Whole numbers: floor((o + 1/2) n / out) without its rounding.
        o = np.arange(out)
        pixel = (2 * o + 1) * n // (2 * out) if exact else o * n // out
        x = jnp.take(x, pixel, axis=axis)
    return x


@export("ops.upsample_bilinear", since="0.1")
def upsample_bilinear(
    x: Images, size: tuple[int, int], *, align_corners: bool = False
) -> Larger:
    """Linear interpolation on both axes, the outermost pixels repeated beyond.

    Args:
        x: images.
        size: (height, width) of the result. Shrinking does not widen the filter: see
            `resize_image` for that.
        align_corners: put the middles of the corner pixels onto one another, and not
            their outer corners.

    >>> line = jnp.arange(2.0).reshape(1, 1, 2, 1)
    >>> upsample_bilinear(line, (1, 4)).ravel().tolist()
    [0.0, 0.25, 0.75, 1.0]
    >>> upsample_bilinear(line, (1, 3), align_corners=True).ravel().tolist()
    [0.0, 0.5, 1.0]
    """
    return _interpolate(x, size, align_corners, 2, lambda d: 1 - d)


@export("ops.upsample_bicubic", since="0.1")
def upsample_bicubic(
    x: Images, size: tuple[int, int], *, align_corners: bool = False, a: float = -0.75
) -> Larger:
    """Cubic interpolation on both axes, the outermost pixels repeated beyond.

    Args:
        x: images.
        size: (height, width) of the result.
        align_corners: as for `upsample_bilinear`.
        a: slope of the filter at distance 1: -3/4 in PyTorch, -1/2 with Keys.
    """

    def cubic(d: np.ndarray) -> np.ndarray:
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        return np.where(d <= 1, near, a * (((d - 5) * d + 8) * d - 4))

    return _interpolate(x, size, align_corners, 4, cubic)


def _interpolate(
    x: Array, size: tuple[int, int], align_corners: bool, taps: int, weight: Any
) -> Array:
    """Two matrix products."""
    _check_size(x, size)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    y = jnp.asarray(x, wide)
    for axis, (n, out) in enumerate(zip(x.shape[1:3], size, strict=True), start=1):
        matrix = _matrix(n, out, align_corners, taps, weight).astype(wide)
        y = jnp.moveaxis(
            jnp.tensordot(matrix, y, (1, axis), precision=lax.Precision.HIGHEST),
            0,
            axis,
        )
    return y.astype(x.dtype)


def _matrix(
    n: int, out: int, align_corners: bool, taps: int, weight: Any
) -> np.ndarray:
    """Weights [out, n] in float64; they depend on sizes alone."""
    o = np.arange(out)
    at = o * (n - 1) / max(out - 1, 1) if align_corners else (o + 0.5) * n / out - 0.5
    low = np.floor(at).astype(int)
    matrix = np.zeros((out, n))
    for tap in range(1 - taps // 2, 1 + taps // 2):
        np.add.at(
            matrix, (o, np.clip(low + tap, 0, n - 1)), weight(np.abs(at - low - tap))
        )
    return matrix


@export("ops.conv_transpose", since="0.1")
def conv_transpose(
    x: Images,
    kernel: Float[Array, "rows columns channels group_features"],
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    output_padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    flip: bool = False,
) -> Float[Array, "batch height_out width_out features"]:
    """Transposed convolution, the gradient of a convolution: stamps of the kernel, added.

    The output is (in - 1) stride - 2 padding + dilation (kernel - 1) + output_padding + 1
    long. A kernel of PyTorch's [in, out / groups, rows, columns] is this one transposed
    to (2, 3, 0, 1). Flax's `ConvTranspose` with padding "VALID" has the same output with
    `flip`, since it does not turn the kernel around.

    Args:
        x: images.
        kernel: what every input pixel stamps.
        stride: between stamps, one number or (rows, columns), as the next three.
        padding: pixels cut off on all sides.
        output_padding: pixels added at the bottom and on the right.
        dilation: pixels between the kernel's entries.
        groups: parts of the channels that are convolved apart.
        flip: turn the kernel around first.

    Raises:
        ValueError: if the groups do not divide the channels, or the kernel does not fit.

    >>> stamp = jnp.arange(1.0, 4.0).reshape(1, 3, 1, 1)
    >>> conv_transpose(jnp.ones((1, 1, 2, 1)), stamp, stride=2).ravel().tolist()
    [1.0, 2.0, 4.0, 2.0, 3.0]
    """
    s, p, extra, d = map(_pair, (stride, padding, output_padding, dilation))
    rows, columns, channels, features = kernel.shape
    if channels != x.shape[-1] or groups < 1 or channels % groups:
        raise ValueError(
            "kernel must have the channels of x, which groups must divide, got "
            f"{kernel.shape} for {x.shape} in {groups} groups"
        )
    x, k = jnp.asarray(x), jnp.asarray(kernel, x.dtype)
    k = k[::-1, ::-1] if flip else k
    k = k.reshape(rows, columns, groups, channels // groups, features)
    k = k.transpose(0, 1, 3, 2, 4).reshape(rows, columns, -1, groups * features)
    apart = partial(_spread, stride=s, dilation=d, groups=groups)
    # XLA's gradients of spread pixels take ten times as long on a CPU.
    dense = d == (1, 1) and s != (1, 1) and x.size > 0
    on_cpu = partial(_by_phases, stride=s) if dense else apart
    full = lax.platform_dependent(x, k, cpu=on_cpu, default=apart)
    edges = [(-q, e - q, 0) for q, e in zip(p, extra, strict=True)]
    return lax.pad(full, jnp.zeros((), full.dtype), [(0, 0, 0), *edges, (0, 0, 0)])


def _spread(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Array:
    """A convolution of pixels that lie apart, with the kernel turned around."""
    reach = [d * (n - 1) for d, n in zip(dilation, kernel.shape[:2], strict=True)]
    return lax.conv_general_dilated(
        x,
        kernel[::-1, ::-1],
        (1, 1),
        [(r, r) for r in reach],
        lhs_dilation=stride,
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _by_phases(x: jax.Array, kernel: jax.Array, *, stride: tuple[int, int]) -> Array:
    """The same as one product: every place between two pixels is a channel."""
    size = kernel.shape[:2]
    count = [-(-n // s) for n, s in zip(size, stride, strict=True)]
    whole = [(0, c * s - n) for c, s, n in zip(count, stride, size, strict=True)]
    k = jnp.pad(kernel, [*whole, (0, 0), (0, 0)])
    k = k.reshape(count[0], stride[0], count[1], stride[1], *kernel.shape[2:])
    k = k.transpose(0, 2, 4, 5, 1, 3).reshape(*count, kernel.shape[2], -1)
    y = multiply_columns(shifted_columns(x, (count[0], count[1])), k[::-1, ::-1])
    y = _interleave(y, stride)
    height, width = (
        (n - 1) * s + k for n, s, k in zip(x.shape[1:3], stride, size, strict=True)
    )
    return y[:, :height, :width]


@export("ops.pixel_shuffle", since="0.1")
def pixel_shuffle(x: Images, factor: int) -> Shuffled:
    """Moves channels into space: out[f i + a, f j + b, c] = x[i, j, (c f + a) f + b].

    Raises:
        ValueError: unless factor^2 divides the channels.

    >>> pixel_shuffle(jnp.arange(4.0).reshape(1, 1, 1, 4), 2)[0, :, :, 0].tolist()
    [[0.0, 1.0], [2.0, 3.0]]
    """
    channels = x.shape[-1]
    if factor < 1 or channels % factor**2:
        raise ValueError(f"{factor}^2 must divide the channels, got {channels}")
    return _interleave(jnp.asarray(x), (factor, factor))


def _interleave(x: Array, factors: tuple[int, int]) -> Array:
    """Channels [..., channels * rows * columns] become rows and columns."""
    batch, height, width, _ = x.shape
    rows, columns = factors
    x = x.reshape(batch, height, width, -1, rows, columns).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(batch, height * rows, width * columns, -1)


@export("ops.pixel_unshuffle", since="0.1")
def pixel_unshuffle(x: Images, factor: int) -> Shuffled:
    """The inverse of `pixel_shuffle`.

    Raises:
        ValueError: unless the factor divides height and width.
    """
    batch, height, width, channels = x.shape
    if factor < 1 or height % factor or width % factor:
        raise ValueError(f"{factor} must divide height and width, got {x.shape}")
    shape = (batch, height // factor, factor, width // factor, factor, channels)
    x = jnp.asarray(x).reshape(shape)
    x = x.transpose(0, 1, 3, 5, 2, 4)
    return x.reshape(*x.shape[:3], -1)


@export("ops.icnr", since="0.1")
def icnr(initializer: Initializer, factor: int) -> Initializer:
    """An initializer for the convolution before `pixel_shuffle`, without checkerboard.

    All channels that become one pixel's neighbourhood start equal, so that the result is
    what `upsample_nearest` makes of a smaller convolution.

    Args:
        initializer: of that smaller convolution.
        factor: of the shuffle.
    """

    def init(
        key: PRNGKeyArray,
        shape: Sequence[int],
        dtype: Any = jnp.float32,
        out_sharding: Any = None,
    ) -> jax.Array:
        if shape[-1] % factor**2:
            raise ValueError(f"{factor}^2 must divide the features, got {shape[-1]}")
        small = initializer(key, (*shape[:-1], shape[-1] // factor**2), dtype)
        return jnp.repeat(small, factor**2, axis=-1)

    return init


@export("ops.bilinear_kernel", since="0.1")
def bilinear_kernel(
    key: PRNGKeyArray | None,
    shape: Sequence[int],
    dtype: Any = jnp.float32,
    out_sharding: Any = None,
) -> jax.Array:
    """An initializer: a transposed convolution that starts as bilinear interpolation.

    With a kernel of 2 stride - stride % 2 and a padding of ceil((stride - 1) / 2).

    Args:
        key: is not needed.
        shape: [rows, columns, channels, features]; channel i goes to feature i alone.
        dtype: of the kernel.
        out_sharding: is not needed.

    Raises:
        ValueError: unless there are as many features as channels.

    >>> bilinear_kernel(None, (4, 4, 1, 1))[0, :, 0, 0].tolist()
    [0.0625, 0.1875, 0.1875, 0.0625]
    """
    if shape[2] != shape[3]:
        raise ValueError(
            f"a bilinear kernel must have as many channels out as in, got {shape[2:]}"
        )
    lines = []
    for size in shape[:2]:
        factor = (size + 1) // 2
        middle = factor - 1 if size % 2 else factor - 0.5
        lines.append(1 - np.abs(np.arange(size) - middle) / factor)
    tent = np.outer(*lines)[:, :, None, None]
    return jnp.asarray(tent * np.eye(shape[2])[None, None], dtype)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def _check_size(x: Array, size: tuple[int, int]) -> None:
    if x.ndim != 4 or 0 in x.shape[1:3] or min(size) < 1:
        raise ValueError(
            "images must be [batch, height, width, channels], with pixels before and "
            f"after, got {x.shape} to {size}"
        )
