"""Sampling: reading an image between its pixels, and the warps built on that.

A value at (y, x) is the mean of the four pixels around it, weighted by nearness; since the
weights are a product of one axis and the other, all that follows is built of the two
pixels and weights of each axis (`neighbors`). They are read where they lie ("gather"), or,
for a TPU, which multiplies faster than it looks up, as rows of two matrices that are zero
elsewhere ("matmul"):

    out = sum_ij max(0, 1 - |y - i|) max(0, 1 - |x - j|) image[i, j].

One trap is where coordinates begin: here pixel (i, j) sits at (i, j), so that an image
reaches from -1/2 to size - 1/2. The other is the border: "zeros" fades into black within
one pixel of the outermost pixels, "clamp" repeats them, and "roi" repeats them within one
pixel, in [-1, size], and is black beyond.

Reference: Jaderberg et al., "Spatial Transformer Networks", NeurIPS 2015,
https://arxiv.org/abs/1506.02025 (equations 1, 5, and 6 and 7 for the gradients).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxml.export import export
from jaxml.ops.color import Image, Number, Scalar, check_image
from jaxml.typing import Array, Float, Int

BORDERS = ("zeros", "clamp", "roi")
FORMS = ("gather", "matmul")
POINTS_PER_PRODUCT = 1024
"""In the form of matrices each point takes as much memory as a row of the image."""


class Taps(NamedTuple):
    """The pixels that samples along one axis read, and their weights.

    Attributes:
        pixel: its place on the axis, never off it.
        weight: zero where there is no pixel.
    """

    pixel: Int[Array, "*samples taps"]
    weight: Float[Array, "*samples taps"]


@export("ops.bilinear_sample", since="0.1")
def bilinear_sample(
    image: Image,
    y: Float[Array, "*points"],
    x: Float[Array, "*points"],
    *,
    border: str = "zeros",
    form: str = "gather",
) -> Float[Array, "*points channels"]:
    """The image at any points, with gradients for the image and for the points.

    Args:
        image: any number of channels, any range of values.
        y: rows; pixel centers are whole numbers.
        x: columns.
        border: "zeros", black outside; "clamp", the nearest pixel; or "roi", the nearest
            pixel at up to one pixel from the outermost, and black beyond.
        form: "gather", or "matmul", which gives the same by matrix products.

    Raises:
        ValueError: if `y` and `x` differ in shape, or border or form are unknown.

    >>> image = jnp.array([[[0.0], [1.0]]])
    >>> bilinear_sample(image, jnp.zeros(3), jnp.array([0.0, 0.25, 1.5])).tolist()
    [[0.0], [0.25], [0.5]]
    """
    check_image(image)
    check_form(form)
    if y.shape != x.shape:
        raise ValueError(f"y and x must have one shape, got {y.shape} and {x.shape}")
    height, width, channels = image.shape
    rows, columns = neighbors(y, height, border), neighbors(x, width, border)
    if form == "matmul":
        return _by_products(image, rows, columns)
    flat = jnp.asarray(image).reshape(-1, channels)
    total = jnp.zeros((*y.shape, channels), jnp.promote_types(image.dtype, y.dtype))
    for row, row_weight in _each(rows):
        for column, column_weight in _each(columns):
            pixels = flat.at[row * width + column].get(mode="promise_in_bounds")
            total += (row_weight * column_weight)[..., None] * pixels
    return total.astype(image.dtype)


@export("ops.affine", since="0.1")
def affine(
    image: Image,
    *,
    angle: Scalar = 0,
    translate: tuple[Scalar, Scalar] = (0, 0),
    scale: Scalar = 1,
    shear: tuple[Scalar, Scalar] = (0, 0),
    border: str = "zeros",
) -> Image:
    """The image sheared, scaled and turned about its center, and then moved.

    Args:
        image: any number of channels.
        angle: degrees, clockwise.
        translate: (right, down) in pixels.
        scale: above 0; 2 doubles every length.
        shear: degrees along x and along y.
        border: what lies outside the image, see `bilinear_sample`.

    Raises:
        ValueError: if the scale is not positive, or the border unknown.

    >>> image = jnp.array([[[0.1], [0.2]]])
    >>> affine(image, translate=(1, 0)).round(3).tolist()
    [[[0.0], [0.1...]]]
    """
    check_image(image)
    if isinstance(scale, Number) and not scale > 0:
        raise ValueError(f"scale must be positive, got {scale}")
    turn, shear_x, shear_y = (jnp.deg2rad(jnp.float32(d)) for d in (angle, *shear))
    cos, sin = jnp.cos(turn), jnp.sin(turn)
    tan_x, tan_y = jnp.tan(shear_x), jnp.tan(shear_y)
    # turn @ shear along y @ shear along x, of determinant one, so that its inverse is
    # its adjugate: each output pixel asks where it comes from.
    a, c = cos + sin * tan_y, sin - cos * tan_y
    b, d = -a * tan_x - sin, -c * tan_x + cos
    height, width, _ = image.shape
    middle_y, middle_x = (height - 1) / 2, (width - 1) / 2
    down = jnp.arange(height, dtype=jnp.float32)[:, None] - middle_y - translate[1]
    right = jnp.arange(width, dtype=jnp.float32)[None, :] - middle_x - translate[0]
    x = (d * right - b * down) / scale + middle_x
    y = (a * down - c * right) / scale + middle_y
    return bilinear_sample(image, y, x, border=border)


def check_form(form: str) -> None:
    """Checks how pixels are to be read.

    Raises:
        ValueError: if the form is unknown.
    """
    if form not in FORMS:
        raise ValueError(f"form must be one of {FORMS}, got {form!r}")


def neighbors(
    at: Float[Array, "*samples"], size: int | Int[Array, "..."], border: str
) -> Taps:
    """The pixel before each place on an axis and the one after: [*samples, 2].

    Args:
        at: places; pixel centers are whole numbers.
        size: pixels of the axis, or, broadcast, of the axis that each place is on.
        border: see `bilinear_sample`.

    Raises:
        ValueError: if the border is unknown.
    """
    if border not in BORDERS:
        raise ValueError(f"border must be one of {BORDERS}, got {border!r}")
    at = jnp.asarray(at)
    last = jnp.broadcast_to(jnp.asarray(size, at.dtype) - 1, at.shape)
    near = (at >= -1) & (at <= last + 1)
    # What is far away may be infinite: its weight is zero, its gradient must be finite.
    margin = 2 if border == "zeros" else 0
    at = jnp.clip(at, -margin, last + margin)
    low = jnp.floor(at)
    pixel = jnp.stack([low, low + 1], axis=-1)
    weight = jnp.stack([low + 1 - at, at - low], axis=-1)
    if border == "zeros":
        weight = jnp.where((pixel >= 0) & (pixel <= last[..., None]), weight, 0)
    elif border == "roi":
        weight = jnp.where(near[..., None], weight, 0)
    # Clipped as integers, so that even NaN reads a pixel of the image.
    pixel = jnp.clip(pixel.astype(jnp.int32), 0, last[..., None].astype(jnp.int32))
    return Taps(pixel, weight)


def dense(taps: Taps, size: int) -> Float[Array, "*samples size"]:
    """Taps as rows of a matrix: a product with it samples an axis of that size."""
    place = jnp.arange(size).reshape(*[1] * (taps.pixel.ndim - 1), size)
    matrix = jnp.zeros((*taps.pixel.shape[:-1], size), taps.weight.dtype)
    for pixel, weight in _each(taps):
        matrix += jnp.where(pixel[..., None] == place, weight[..., None], 0)
    return matrix


def _each(taps: Taps) -> list[tuple[Array, Array]]:
    return [
        (taps.pixel[..., i], taps.weight[..., i]) for i in range(taps.pixel.shape[-1])
    ]


def _by_products(image: Image, rows: Taps, columns: Taps) -> Array:
    height, width, channels = image.shape
    dtype = jnp.promote_types(image.dtype, rows.weight.dtype)
    flat = jnp.asarray(image, dtype)
    shape = rows.pixel.shape[:-1]

    def sample(point: tuple[Taps, Taps]) -> Array:
        row, column = (
            dense(taps, n) for taps, n in zip(point, (height, width), strict=True)
        )
        high = lax.Precision.HIGHEST
        line = jnp.einsum("h,hwc->wc", row, flat, precision=high)
        return jnp.einsum("w,wc->c", column, line, precision=high)

    points = jax.tree.map(lambda a: a.reshape(-1, 2), (rows, columns))
    out = lax.map(sample, points, batch_size=POINTS_PER_PRODUCT)
    return out.reshape(*shape, channels).astype(image.dtype)
