"""Color: the deterministic operations on the values of one image.

Images are [height, width, channels] with values in [0, 1]; the result has the shape and
the type of the image. Brightness, contrast and saturation blend the image x with a
reference y, and hue turns the colors around the gray axis:

    clamp(factor * x + (1 - factor) * y, 0, 1)

where y is black, the mean of the gray image, or the gray image. Hue needs no division:
with c = max - min, the hue angle times c is linear in (r, g, b) on each sextant of the
color circle, whose length is then 6c; gray (c = 0) is a point, not a singularity.

The trap is the weight of red. The three gray weights below (ITU-R BT.601) sum to one, so
that gray images stay what they are. torchvision's tensors have 0.2989 for red and thus
darken gray by 1e-4 with every conversion; all else equals its float tensors.

Reference: Smith, "Color Gamut Transform Pairs", SIGGRAPH 1978 (the HSV hexcone),
https://doi.org/10.1145/965139.807361.
"""

from collections.abc import Sequence

import jax.numpy as jnp

from jaxml.export import export, export_constant
from jaxml.typing import Array, Float

Number = float | int
Scalar = Number | Float[Array, ""]
Image = Float[Array, "height width channels"]
Planes = Float[Array, "channels height width"]

IMAGENET_MEAN = export_constant("ops.IMAGENET_MEAN", (0.485, 0.456, 0.406), since="0.1")
"""Mean of ImageNet's channels, for `normalize`."""

IMAGENET_STD = export_constant("ops.IMAGENET_STD", (0.229, 0.224, 0.225), since="0.1")
"""Standard deviation of ImageNet's channels, for `normalize`."""


def check_image(image: Array, channels: Sequence[int] | None = None) -> None:
    """Checks that an array is one image.

    Raises:
        TypeError: if it does not hold floats.
        ValueError: unless it is [height, width, channels], none of them zero, with a
            permitted number of channels.
    """
    if not jnp.issubdtype(image.dtype, jnp.floating):
        raise TypeError(
            f"image must hold floats in [0, 1], got {image.dtype}; use to_float"
        )
    if image.ndim != 3 or 0 in image.shape:
        raise ValueError(
            "image must have the shape [height, width, channels] and no axis of size "
            f"0, got {image.shape}; use jax.vmap for a batch"
        )
    if channels is not None and image.shape[-1] not in channels:
        allowed = " or ".join(map(str, channels))
        raise ValueError(
            f"image must have {allowed} channels, got {image.shape[-1]} in {image.shape}"
        )


@export("ops.grayscale", since="0.1")
def grayscale(image: Image) -> Image:
    """Gray with as many channels as before: 0.299 r + 0.587 g + 0.114 b.

    An image of one channel is gray already.

    Raises:
        ValueError: unless there are 1 or 3 channels.
    """
    planes = to_planes(image)
    return to_image(jnp.broadcast_to(gray(planes), planes.shape), image)


@export("ops.adjust_brightness", since="0.1")
def adjust_brightness(image: Image, factor: Scalar) -> Image:
    """Blends with black: 0 is black, 1 the image, 2 twice as bright.

    Raises:
        ValueError: if the factor is negative, or unless there are 1 or 3 channels.
    """
    _check_factor(factor)
    return to_image(blend(to_planes(image), 0.0, factor), image)


@export("ops.adjust_contrast", since="0.1")
def adjust_contrast(image: Image, factor: Scalar) -> Image:
    """Blends with the mean of the gray image: 0 is flat, 1 the image.

    Raises:
        ValueError: if the factor is negative, or unless there are 1 or 3 channels.
    """
    _check_factor(factor)
    planes = to_planes(image)
    return to_image(blend(planes, mean_gray(planes), factor), image)


@export("ops.adjust_saturation", since="0.1")
def adjust_saturation(image: Image, factor: Scalar) -> Image:
    """Blends with the gray image: 0 is gray, 1 the image; one channel stays as it is.

    Raises:
        ValueError: if the factor is negative, or unless there are 1 or 3 channels.
    """
    _check_factor(factor)
    planes = to_planes(image)
    if len(planes) == 1:
        return image
    return to_image(blend(planes, gray(planes), factor), image)


@export("ops.adjust_hue", since="0.1")
def adjust_hue(image: Image, turns: Scalar) -> Image:
    """Turns the color circle: 1/3 makes red green; one channel stays as it is.

    Args:
        image: RGB, or one channel.
        turns: in [-0.5, 0.5], parts of the circle.

    Raises:
        ValueError: if `turns` lies outside, or unless there are 1 or 3 channels.

    >>> red = jnp.array([[[1.0, 0.0, 0.0]]])
    >>> adjust_hue(red, 0.5).tolist()
    [[[0.0, 1.0, 1.0]]]
    """
    if isinstance(turns, Number) and not abs(turns) <= 0.5:
        raise ValueError(f"turns must be in [-0.5, 0.5], got {turns}")
    planes = to_planes(image)
    if len(planes) == 1:
        return image
    return to_image(turn_hue(planes, turns), image)


@export("ops.solarize", since="0.1")
def solarize(image: Image, threshold: Scalar = 0.5) -> Image:
    """Inverts what is at least as bright as the threshold."""
    check_image(image)
    return jnp.where(image >= threshold, 1 - image, image)


@export("ops.rgb_to_hsv", since="0.1")
def rgb_to_hsv(image: Image) -> Image:
    """Hue in [0, 1), saturation and value in [0, 1]; the hue of gray is 0.

    Raises:
        ValueError: unless there are 3 channels.
    """
    check_image(image, (3,))
    sextants, chroma, value = _hue(to_planes(image))
    # Twice where: no gradient passes through a division by zero.
    hue = sextants / (6 * jnp.where(chroma == 0, 1, chroma))
    saturation = chroma / jnp.where(value == 0, 1, value)
    # A tiny negative hue rounds to 1, which is 0.
    hue = jnp.where(hue < 0, hue + 1, hue)
    hue = jnp.where(hue >= 1, 0, hue)
    return to_image(jnp.concatenate([hue, saturation, value]), image)


@export("ops.hsv_to_rgb", since="0.1")
def hsv_to_rgb(image: Image) -> Image:
    """The inverse of `rgb_to_hsv`.

    Raises:
        ValueError: unless there are 3 channels.
    """
    check_image(image, (3,))
    hue, saturation, value = jnp.split(to_planes(image), 3)
    chroma = value * saturation
    return to_image(_from_hue(6 * hue * chroma, chroma, value), image)


@export("ops.normalize", since="0.1")
def normalize(
    image: Float[Array, "*batch channels"],
    mean: float | Sequence[float] = IMAGENET_MEAN,
    std: float | Sequence[float] = IMAGENET_STD,
) -> Float[Array, "*batch channels"]:
    """(image - mean) / std for each channel; one image, or any batch of them.

    Raises:
        ValueError: unless `mean` and `std` are numbers or have one per channel, and
            `std` is positive.
    """

    def per_channel(name: str, values: float | Sequence[float]) -> Array:
        array = jnp.asarray(values, image.dtype)
        if array.shape not in ((), image.shape[-1:]):
            raise ValueError(
                f"{name} must be one number or one per channel, got shape "
                f"{array.shape} for an image of shape {image.shape}"
            )
        return jnp.broadcast_to(array, (1,) * (image.ndim - 1) + image.shape[-1:])

    if min([std] if isinstance(std, Number) else std) <= 0:
        raise ValueError(f"std must be positive, got {std}")
    return (image - per_channel("mean", mean)) / per_channel("std", std)


# What follows works on planes [channels, height, width] of float32: XLA vectorizes
# over the last axis, and three channels are too few for that.


def to_planes(image: Array) -> Planes:
    """The channels of a gray or RGB image, first axis, in at least float32."""
    check_image(image, (1, 3))
    dtype = jnp.promote_types(image.dtype, jnp.float32)
    return jnp.moveaxis(image, -1, 0).astype(dtype)


def to_image(planes: Planes, like: Array) -> Image:
    """The inverse of `to_planes`, in the type of `like`."""
    return jnp.moveaxis(planes, 0, -1).astype(like.dtype)


def gray(planes: Planes) -> Float[Array, "1 height width"]:
    """The gray plane; the weights sum to one."""
    if len(planes) == 1:
        return planes
    red, green, blue = jnp.split(planes, 3)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def mean_gray(planes: Planes) -> Float[Array, "1 1 1"]:
    """The mean of the gray plane, from the means of the channels (gray is linear)."""
    return gray(jnp.mean(planes, axis=(1, 2), keepdims=True))


def blend(planes: Planes, other: Scalar | Array, factor: Scalar) -> Planes:
    """`factor` of the image and the rest of `other`, clamped to [0, 1]."""
    return jnp.clip(factor * planes + (1 - factor) * other, 0, 1)


def turn_hue(planes: Planes, turns: Scalar) -> Planes:
    """Adds to the hue of RGB planes; `turns` in [-0.5, 0.5]."""
    sextants, chroma, value = _hue(planes)
    return _from_hue(sextants + 6 * turns * chroma, chroma, value)


def _hue(planes: Planes) -> tuple[Array, Array, Array]:
    """Hue in sextants times chroma, in [-1, 5] * chroma; chroma; value."""
    red, green, blue = jnp.split(planes, 3)
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    not_red = jnp.where(
        value == green, 2 * chroma + blue - red, 4 * chroma + red - green
    )
    return jnp.where(value == red, green - blue, not_red), chroma, value


def _from_hue(sextants: Array, chroma: Array, value: Array) -> Planes:
    """RGB planes from `_hue`'s triple; `sextants` in [-4, 8] * chroma."""
    half = 3 * chroma  # half of the color circle
    sextants = jnp.where(sextants > half, sextants - 2 * half, sextants)
    sextants = jnp.where(sextants < -half, sextants + 2 * half, sextants)
    # A channel is full within one sextant of its own hue, and gone beyond two.
    own = jnp.array([0, 2, -2], chroma.dtype).reshape(3, 1, 1)
    distance = half - jnp.abs(half - jnp.abs(sextants - own * chroma))
    return value - jnp.clip(distance - chroma, 0, chroma)


def _check_factor(factor: Scalar) -> None:
    if isinstance(factor, Number) and not factor >= 0:
        raise ValueError(f"factor must not be negative, got {factor}")
