"""Augmentation on the device: random operations on one image, inside the jitted step.

Every operation takes `(key, image, ...)` for one float image [height, width, channels]
in [0, 1] and gives one of known shape. `jax.vmap` with one key per sample makes it work on
a batch; a sample depends on its own key alone, not on its place nor on its device:

    tint = functools.partial(color_jitter, hue=0.1)
    images = jax.vmap(tint)(jax.random.split(key, len(images)), images)

The trap is a batch that shares one key: every image would be cropped and tinted alike.
Under `vmap` a condition costs both of its branches, so probabilities select between
results here, and a random order of operations is a loop with one slot for each. Recipes
made of these operations stand in `jaxml.ops.views`.

Parameters and their distributions are torchvision's, save where an operation says so.
Reference: Howard, "Some Improvements on Deep Convolutional Neural Network Based Image
Classification", 2013, https://arxiv.org/abs/1312.5402 (random crops and colors).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jaxml.export import export
from jaxml.ops import color
from jaxml.ops.blur import gaussian_blur
from jaxml.ops.color import Image, Number, Scalar, check_image
from jaxml.ops.resize import crop_and_resize
from jaxml.ops.sampling import affine
from jaxml.typing import Array, Float, PRNGKeyArray

Range = tuple[Number, Number]
View = Callable[[PRNGKeyArray, Array], Array]
"""(key, one image) -> one image."""


@export("ops.to_float", since="0.1")
def to_float(image: Array) -> Float[Array, "..."]:
    """Bytes as float32 in [0, 1]; floats pass through. Any shape.

    Raises:
        TypeError: if the image holds neither uint8 nor floats.
    """
    if jnp.issubdtype(image.dtype, jnp.floating):
        return jnp.asarray(image)
    if image.dtype != jnp.uint8:
        raise TypeError(f"image must hold uint8 or floats, got {image.dtype}")
    return jnp.asarray(image, jnp.float32) / 255


@export("ops.apply_with_probability", since="0.1")
def apply_with_probability(
    key: PRNGKeyArray, p: Number, operation: View, image: Image
) -> Image:
    """`operation(key, image)` with probability `p`, otherwise the image itself.

    Raises:
        ValueError: unless `p` is in [0, 1] and the operation keeps shape and type.
    """
    check_image(image)
    _check_range("p", (p, p), 0, 1)
    if p == 0:
        return image
    coin_key, key = jax.random.split(key)
    changed = operation(key, image)
    if (changed.shape, changed.dtype) != (image.shape, image.dtype):
        raise ValueError(
            f"operation must keep shape and type, got {changed.shape} of "
            f"{changed.dtype} from {image.shape} of {image.dtype}"
        )
    return jnp.where(jax.random.uniform(coin_key) < p, changed, image)


@export("ops.random_horizontal_flip", since="0.1")
def random_horizontal_flip(key: PRNGKeyArray, image: Image, p: Number = 0.5) -> Image:
    """Left and right exchanged with probability `p`."""
    return apply_with_probability(key, p, lambda _, x: x[:, ::-1], image)


@export("ops.random_vertical_flip", since="0.1")
def random_vertical_flip(key: PRNGKeyArray, image: Image, p: Number = 0.5) -> Image:
    """Top and bottom exchanged with probability `p`."""
    return apply_with_probability(key, p, lambda _, x: x[::-1], image)


@export("ops.random_grayscale", since="0.1")
def random_grayscale(key: PRNGKeyArray, image: Image, p: Number = 0.1) -> Image:
    """Gray in all channels with probability `p`; needs 1 or 3 channels."""
    return apply_with_probability(key, p, lambda _, x: color.grayscale(x), image)


@export("ops.random_solarize", since="0.1")
def random_solarize(
    key: PRNGKeyArray, image: Image, p: Number = 0.5, *, threshold: Scalar = 0.5
) -> Image:
    """What is at least as bright as the threshold inverted, with probability `p`."""
    return apply_with_probability(
        key, p, lambda _, x: color.solarize(x, threshold), image
    )


@export("ops.random_resized_crop", since="0.1")
def random_resized_crop(
    key: PRNGKeyArray,
    image: Image,
    size: int | tuple[int, int],
    *,
    area: Range = (0.08, 1.0),
    ratio: Range = (3 / 4, 4 / 3),
    method: str = "bilinear",
) -> Float[Array, "out_height out_width channels"]:
    """A random box of the image, resized with antialiasing.

    The crop of Inception (Szegedy et al., 2015, https://arxiv.org/abs/1409.4842): area
    (uniform) and aspect ratio (uniform in the logarithm) are drawn up to ten times, until
    the box fits into the image after rounding to whole pixels; then its place is drawn.
    If no draw fits, it is the largest box with a permitted ratio, in the center.

    Args:
        key: of this image.
        image: any number of channels.
        size: of the result, one number or (height, width).
        area: of the box, as a part of the image's.
        ratio: width / height of the box.
        method: "bilinear" or "bicubic"; the latter is clamped to [0, 1].

    Raises:
        ValueError: if a range descends or leaves its bounds, the size is not positive,
            or the method unknown.
    """
    check_image(image)
    _check_range("area", area, 0, 1)
    _check_range("ratio", ratio, 0, math.inf, above=True)
    height, width, _ = image.shape
    box = _random_box(key, height, width, area, ratio)
    size = (size, size) if isinstance(size, int) else size
    crop = crop_and_resize(image, box, size, method=method)
    return jnp.clip(crop, 0, 1) if method == "bicubic" else crop


@export("ops.pad_and_crop", since="0.1")
def pad_and_crop(
    key: PRNGKeyArray, image: Image, padding: int = 4, *, mode: str = "constant"
) -> Image:
    """The image moved by up to `padding` pixels along each axis, the crop of CIFAR.

    Args:
        key: of this image.
        image: any number of channels.
        padding: pixels on each side.
        mode: of `jnp.pad`: "constant" (black), "reflect", "edge" ...

    Raises:
        ValueError: if the padding is negative.
    """
    check_image(image)
    if padding < 0:
        raise ValueError(f"padding must not be negative, got {padding}")
    sides = ((padding, padding), (padding, padding), (0, 0))
    top, left = jax.random.randint(key, (2,), 0, 2 * padding + 1)
    return lax.dynamic_slice(
        jnp.pad(image, sides, mode=mode), (top, left, 0), image.shape
    )


@export("ops.random_affine", since="0.1")
def random_affine(
    key: PRNGKeyArray,
    image: Image,
    *,
    degrees: Number | Range = 0,
    translate: tuple[Number, Number] = (0, 0),
    scale: Range = (1, 1),
    shear: tuple[Number, Number] = (0, 0),
    border: str = "zeros",
) -> Image:
    """A random rotation, move, scaling and shear, each drawn uniformly.

    Args:
        key: of this image.
        image: any number of channels.
        degrees: range of the rotation; one number d stands for (-d, d).
        translate: largest move along (x, y), as parts of width and height. It need not
            be whole pixels, other than in torchvision.
        scale: range of the factor.
        shear: largest shear along (x, y), in degrees.
        border: "zeros" or "clamp", see `bilinear_sample`.

    Raises:
        ValueError: if a range descends or leaves its bounds, or the border is unknown.
    """
    check_image(image)
    turns = (-degrees, degrees) if isinstance(degrees, Number) else degrees
    _check_range("degrees", turns, -360, 360)
    _check_range("scale", scale, 0, math.inf, above=True)
    for name, values, most in (("translate", translate, 1), ("shear", shear, 89)):
        for value in values:
            _check_range(name, (0, value), 0, most)
    height, width, _ = image.shape
    ranges = [
        turns,
        scale,
        *((-s, s) for s in shear),
        *((-t * n, t * n) for t, n in zip(translate, (width, height), strict=True)),
    ]
    angle, factor, shear_x, shear_y, right, down = _uniform(key, ranges)
    return affine(
        image,
        angle=angle,
        translate=(right, down),
        scale=factor,
        shear=(shear_x, shear_y),
        border=border,
    )


@export("ops.color_jitter", since="0.1")
def color_jitter(
    key: PRNGKeyArray,
    image: Image,
    *,
    brightness: Number | Range = 0,
    contrast: Number | Range = 0,
    saturation: Number | Range = 0,
    hue: Number | Range = 0,
) -> Image:
    """Brightness, contrast, saturation and hue changed at random, in random order.

    Args:
        key: of this image.
        image: RGB, or gray, which has neither saturation nor hue.
        brightness: range of the factor; one number s stands for (max(0, 1 - s), 1 + s).
        contrast: likewise.
        saturation: likewise.
        hue: range of the turn, within [-0.5, 0.5]; one number s stands for (-s, s).

    Raises:
        ValueError: if a range descends or leaves its bounds, or unless there are 1 or 3
            channels.
    """
    strengths = {
        "brightness": brightness,
        "contrast": contrast,
        "saturation": saturation,
    }
    ranges = []
    for name, s in strengths.items():
        ranges.append((max(0, 1 - s), 1 + s) if isinstance(s, Number) else s)
        _check_range(name, ranges[-1], 0, math.inf)
    ranges.append((-hue, hue) if isinstance(hue, Number) else hue)
    _check_range("hue", ranges[-1], -0.5, 0.5)
    planes = color.to_planes(image)
    is_rgb = len(planes) == 3
    factors, priorities = jnp.split(_uniform(key, [*ranges, *[(0, 1)] * 4]), 2)
    order = jnp.argsort(priorities)

    def change(planes: Array, slot: tuple[Array, Array]) -> tuple[Array, None]:
        which, factor = slot
        other = jnp.where(which == 1, color.mean_gray(planes), 0)
        other = jnp.where(which == 2, color.gray(planes), other)
        changed = color.blend(planes, other, factor)
        if is_rgb:
            turned = color.turn_hue(planes, factor)
            changed = jnp.where(which == 3, turned, changed)
        else:
            changed = jnp.where(which < 2, changed, planes)
        return lax.optimization_barrier(changed), None

    # A loop with barriers: XLA on CPU would compute each slot anew for all that reads
    # it. Two slots a turn swap their buffers, where one would copy its own.
    slots = (order, factors[order])
    planes, _ = lax.scan(change, planes, slots, unroll=2)
    return color.to_image(planes, image)


@export("ops.random_intensity", since="0.1")
def random_intensity(
    key: PRNGKeyArray, image: Image, *, gain: Range = (0.7, 1.3), offset: Range = (0, 0)
) -> Image:
    """The image times a gain plus an offset, clamped to [0, 1]; any channels.

    Raises:
        ValueError: if a range descends or the gain is negative.
    """
    check_image(image)
    _check_range("gain", gain, 0, math.inf)
    _check_range("offset", offset, -1, 1)
    factor, term = _uniform(key, [gain, offset])
    return jnp.clip(factor * image + term, 0, 1).astype(image.dtype)


@export("ops.random_noise", since="0.1")
def random_noise(key: PRNGKeyArray, image: Image, sigma: Number | Range) -> Image:
    """Gaussian noise added to every value, clamped to [0, 1].

    Args:
        key: of this image.
        image: any number of channels.
        sigma: standard deviation, or the range that it is drawn from for each image.

    Raises:
        ValueError: if the range descends or is negative.
    """
    check_image(image)
    sigmas = (sigma, sigma) if isinstance(sigma, Number) else sigma
    _check_range("sigma", sigmas, 0, math.inf)
    sigma_key, key = jax.random.split(key)
    noise = _uniform(sigma_key, [sigmas]) * jax.random.normal(key, (image.size,))
    return jnp.clip(image + noise.reshape(image.shape), 0, 1).astype(image.dtype)


@export("ops.cutout", since="0.1")
def cutout(key: PRNGKeyArray, image: Image, size: int, *, fill: Number = 0.0) -> Image:
    """A square of `size` pixels, centered on any pixel, painted over.

    Where it reaches beyond the border, less is painted (DeVries and Taylor, 2017,
    https://arxiv.org/abs/1708.04552).

    Raises:
        ValueError: if the size is not positive.
    """
    check_image(image)
    if size < 1:
        raise ValueError(f"size must be positive, got {size}")
    height, width, _ = image.shape
    limits = jnp.array([height, width])
    top, left = jax.random.randint(key, (2,), 0, limits) - size // 2
    row, column = jnp.arange(height)[:, None, None], jnp.arange(width)[None, :, None]
    rows = (row >= top) & (row < top + size)
    columns = (column >= left) & (column < left + size)
    return jnp.where(rows & columns, jnp.asarray(fill, image.dtype), image)


@export("ops.random_gaussian_blur", since="0.1")
def random_gaussian_blur(
    key: PRNGKeyArray,
    image: Image,
    *,
    sigma: Range = (0.1, 2.0),
    kernel_size: int | None = None,
) -> Image:
    """`gaussian_blur` with a sigma drawn uniformly.

    Raises:
        ValueError: if the range descends or is not positive, or the kernel does not fit.
    """
    _check_range("sigma", sigma, 0, math.inf, above=True)
    return gaussian_blur(image, _uniform(key, [sigma])[0], kernel_size)


def _random_box(
    key: PRNGKeyArray, height: int, width: int, area: Range, ratio: Range
) -> tuple[Array, Array, Array, Array]:
    """(top, left, height, width) in whole pixels, for `random_resized_crop`."""
    tries = 10
    logs = (math.log(ratio[0]), math.log(ratio[1]))
    draws = _uniform(key, [area] * tries + [logs] * tries + [(0, 1)] * 2)
    areas, log_ratios, place = jnp.split(draws, (tries, 2 * tries))
    areas, ratios = areas * height * width, jnp.exp(log_ratios)
    widths = jnp.round(jnp.sqrt(areas * ratios))
    heights = jnp.round(jnp.sqrt(areas / ratios))
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    found, first = jnp.any(fits), jnp.argmax(fits)
    limited = min(max(width / height, ratio[0]), ratio[1])
    largest_height = max(1, round(min(height, width / limited)))
    largest_width = max(1, round(min(width, height * limited)))
    box_height = jnp.where(found, heights[first], largest_height)
    box_width = jnp.where(found, widths[first], largest_width)

    def offset(free: Array, part: Array) -> Array:
        return jnp.where(found, jnp.floor(part * (free + 1)), free // 2)

    top = offset(height - box_height, place[0])
    left = offset(width - box_width, place[1])
    return top, left, box_height, box_width


def _uniform(key: PRNGKeyArray, ranges: list[Range]) -> Float[Array, "draws"]:
    """One uniform draw from each range, all from one call: draws of scalars are dear."""
    low, high = jnp.array(ranges, jnp.float32).T
    return low + (high - low) * jax.random.uniform(key, low.shape, jnp.float32)


def _check_range(
    name: str, bounds: Range, low: Number, high: Number, *, above: bool = False
) -> None:
    """Raises unless low <= bounds[0] <= bounds[1] <= high, or low < ... if `above`."""
    first, last = bounds
    inside = low <= first <= last <= high and not (above and first == low)
    if not inside or math.isinf(last):
        interval = (
            f"{'(' if above else '['}{low}, {high}{')' if high == math.inf else ']'}"
        )
        raise ValueError(
            f"{name} must be a range within {interval} that does not descend, got "
            f"{bounds}"
        )
