"""Sampling: reading an image between its pixels, and the warps built on that.

A value at (y, x) is the mean of the four pixels around it, weighted by nearness. One trap
is where coordinates begin: here pixel (i, j) sits at (i, j), so that an image reaches from
-1/2 to size - 1/2. The other is the border: "zeros" fades into black within one pixel of
the outermost pixels, "clamp" repeats them.

Reference: Jaderberg et al., "Spatial Transformer Networks", NeurIPS 2015,
https://arxiv.org/abs/1506.02025 (equations 1, 5, and 6 and 7 for the gradients).
"""

import jax.numpy as jnp

from jaxml.export import export
from jaxml.ops.color import Image, Number, Scalar, check_image
from jaxml.typing import Array, Float

BORDERS = ("zeros", "clamp")


@export("ops.sample_bilinear", since="0.1")
def sample_bilinear(
    image: Image,
    y: Float[Array, "*points"],
    x: Float[Array, "*points"],
    *,
    border: str = "zeros",
) -> Float[Array, "*points channels"]:
    """The image at any points, with gradients for the image and for the points.

    Args:
        image: any number of channels, any range of values.
        y: rows; pixel centers are whole numbers.
        x: columns.
        border: "zeros", black outside, or "clamp", the nearest pixel.

    Raises:
        ValueError: if `y` and `x` differ in shape, or the border is unknown.

    >>> image = jnp.array([[[0.0], [1.0]]])
    >>> sample_bilinear(image, jnp.zeros(3), jnp.array([0.0, 0.25, 1.5])).tolist()
    [[0.0], [0.25], [0.5]]
    """
    check_image(image)
    if y.shape != x.shape:
        raise ValueError(f"y and x must have one shape, got {y.shape} and {x.shape}")
    if border not in BORDERS:
        raise ValueError(f"border must be one of {BORDERS}, got {border!r}")
    height, width, channels = image.shape
    if border == "clamp":
        y, x = jnp.clip(y, 0, height - 1), jnp.clip(x, 0, width - 1)
    flat = jnp.asarray(image).reshape(-1, channels)
    total = jnp.zeros((*y.shape, channels), jnp.promote_types(image.dtype, y.dtype))
    for row, row_weight in _neighbors(y, height):
        for column, column_weight in _neighbors(x, width):
            # Indices are clipped, weights zero where they had to be.
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
        border: what lies outside the image, see `sample_bilinear`.

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
    return sample_bilinear(image, y, x, border=border)


def _neighbors(at: Array, size: int) -> list[tuple[Array, Array]]:
    """Index and weight of the pixel before each place, and of the one after."""
    low = jnp.floor(at)
    pairs: list[tuple[Array, Array]] = []
    for pixel, weight in ((low, low + 1 - at), (low + 1, at - low)):
        inside = (pixel >= 0) & (pixel < size)
        index = jnp.clip(pixel.astype(jnp.int32), 0, size - 1)
        pairs.append((index, jnp.where(inside, weight, 0)))
    return pairs
