"""Resizing as two small matrix products, one per axis.

An output pixel is a weighted mean of input pixels; the weights are a filter around its
place in the input, and they separate into rows and columns:

    out = R image C^T,    R[o, i] ~ filter((i + 1/2 - center_o) / max(1, scale)),

with center_o = start + (o + 1/2) * scale and scale = input length / output size. Cropping
is the choice of start and length, mirroring is a negative length, and nothing depends on
data in its shape: the box may be drawn at random inside jit and under vmap. Matrix units
do the work where a gather would be slow.

The trap is the filter's width. When shrinking it must grow with the scale (antialiasing),
or fine texture turns into noise that a network can see. Pixels outside the box do not
contribute, as if the image had been cropped first; each row of weights sums to one.

Reference: Heckbert, "Fundamentals of Texture Mapping and Image Warping", 1989,
https://www2.eecs.berkeley.edu/Pubs/TechRpts/1989/CSD-89-516.pdf (separable resampling);
Keys, "Cubic Convolution Interpolation for Digital Image Processing", 1981,
https://doi.org/10.1109/TASSP.1981.1163711 (the cubic, with a = -1/2).
"""

import jax.numpy as jnp
from jax import lax

from jaxml.export import export
from jaxml.ops.color import Image, Number, Scalar, check_image
from jaxml.typing import Array, Float


@export("ops.resize_image", since="0.1")
def resize_image(
    image: Image,
    size: tuple[int, int],
    *,
    method: str = "bilinear",
    antialias: bool = True,
) -> Float[Array, "out_height out_width channels"]:
    """The whole image in another size; see `crop_and_resize`."""
    check_image(image)
    height, width, _ = image.shape
    box = (0, 0, height, width)
    return crop_and_resize(image, box, size, method=method, antialias=antialias)


@export("ops.crop_and_resize", since="0.1")
def crop_and_resize(
    image: Image,
    box: tuple[Scalar, Scalar, Scalar, Scalar],
    size: tuple[int, int],
    *,
    method: str = "bilinear",
    antialias: bool = True,
) -> Float[Array, "out_height out_width channels"]:
    """A part of the image in a given size.

    Args:
        image: any number of channels, any range of values.
        box: (top, left, height, width) in pixels, which may be traced and need not be
            whole. A negative height or width mirrors: (top, left + width, height,
            -width) is the box (top, left, height, width) seen in a mirror.
        size: (height, width) of the result.
        method: "bilinear", or "bicubic", which can leave the range of the image.
        antialias: widen the filter when shrinking.

    Raises:
        ValueError: if the size is not positive, the method unknown, or a box of Python
            numbers does not lie in the image.

    >>> image = jnp.arange(16.0).reshape(4, 4, 1)
    >>> crop_and_resize(image, (0, 2, 2, 2), (1, 1)).tolist()
    [[[4.5]]]
    """
    check_image(image)
    if min(size) < 1:
        raise ValueError(f"size must be positive, got {size}")
    dtype = jnp.promote_types(image.dtype, jnp.float32)
    rows, columns = (
        resize_weights(
            image.shape[axis],
            size[axis],
            box[axis],
            box[axis + 2],
            method=method,
            antialias=antialias,
        ).astype(dtype)
        for axis in (0, 1)
    )
    x = image.astype(dtype)
    # Full precision: rounded weights no longer sum to one and change the brightness.
    x = jnp.einsum("oh,hwc->owc", rows, x, precision=lax.Precision.HIGHEST)
    x = jnp.einsum("pw,owc->opc", columns, x, precision=lax.Precision.HIGHEST)
    return x.astype(image.dtype)


def resize_weights(
    size_in: int,
    size_out: int,
    start: Scalar = 0,
    length: Scalar | None = None,
    *,
    method: str = "bilinear",
    antialias: bool = True,
) -> Float[Array, "size_out size_in"]:
    """The matrix that resizes one axis; its rows sum to one.

    Args:
        size_in: pixels of the whole axis.
        size_out: pixels of the result.
        start: where the part begins, in pixels.
        length: of the part, in pixels, at least 1; negative reads it backwards.
        method: "bilinear" or "bicubic".
        antialias: widen the filter when shrinking.

    Raises:
        ValueError: if the method is unknown, or a part given in Python numbers does not
            lie in the axis.
    """
    if method not in _FILTERS:
        raise ValueError(f"method must be one of {sorted(_FILTERS)}, got {method!r}")
    length = size_in if length is None else length
    if all(isinstance(number, Number) for number in (start, length)):
        low, high = sorted((start, start + length))
        if low < 0 or high > size_in or high - low < 1:
            raise ValueError(
                f"a box must lie in the image and be 1 pixel long at least, got "
                f"[{low}, {high}] on an axis of {size_in} pixels"
            )
    start, length = jnp.float32(start), jnp.float32(length)
    scale = length / size_out
    center = start + (jnp.arange(size_out, dtype=jnp.float32) + 0.5) * scale
    pixel = jnp.arange(size_in, dtype=jnp.float32)[None, :]
    stretch = jnp.maximum(jnp.abs(scale), 1) if antialias else 1
    weights = _FILTERS[method]((pixel + 0.5 - center[:, None]) / stretch)
    low, high = jnp.minimum(start, start + length), jnp.maximum(start, start + length)
    weights = jnp.where((pixel + 1 > low) & (pixel < high), weights, 0)
    return weights / jnp.sum(weights, axis=1, keepdims=True)


def _triangle(x: Array) -> Array:
    return jnp.maximum(1 - jnp.abs(x), 0)


def _cubic(x: Array) -> Array:
    x = jnp.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return jnp.where(x < 1, near, jnp.where(x < 2, far, 0))


_FILTERS = {"bilinear": _triangle, "bicubic": _cubic}
