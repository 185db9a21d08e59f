"""Augmentation side by side with torchvision's v2 functions on float tensors."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.ops.augment import cutout, random_resized_crop
from jaxml.ops.blur import gaussian_blur
from jaxml.ops.color import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    grayscale,
    hsv_to_rgb,
    normalize,
    rgb_to_hsv,
    solarize,
)
from jaxml.ops.resize import crop_and_resize, resize_image
from jaxml.ops.sampling import affine

torch = pytest.importorskip("torch")
v2 = pytest.importorskip("torchvision.transforms.v2")
functional = v2.functional
bilinear = v2.InterpolationMode.BILINEAR
bicubic = v2.InterpolationMode.BICUBIC

pytestmark = pytest.mark.oracle

FACTORS = [0.0, 0.4, 1.0, 1.7]


def to_torch(image):
    return torch.from_numpy(np.moveaxis(image, -1, 0).copy())


def from_torch(tensor):
    return np.moveaxis(tensor.numpy(), 0, -1)


def draw_image(rng, shape=(13, 18, 3)):
    return rng.random(shape, dtype=np.float32)


def for_all(f, image, amounts):
    """`f` with every amount, compiled once."""
    return jax.jit(jax.vmap(f, (None, 0)))(image, jnp.array(amounts, jnp.float32))


@pytest.fixture
def full_gray(monkeypatch):
    """torchvision with 0.299 for red: its 0.2989 loses a ten-thousandth of white."""

    def gray(image, num_output_channels=1, preserve_dtype=True):
        red, green, blue = image.split(1, dim=-3)
        out = 0.299 * red + 0.587 * green + 0.114 * blue
        return out.expand_as(image) if num_output_channels == 3 else out

    module = __import__("torchvision.transforms.v2.functional._color", fromlist=["_"])
    monkeypatch.setattr(module, "_rgb_to_grayscale_image", gray)


def test_grayscale_differs_by_the_weight_of_red_alone(rng):
    image = draw_image(rng)
    expected = from_torch(functional.rgb_to_grayscale(to_torch(image), 3))
    chex.assert_trees_all_close(
        grayscale(image), expected + 1e-4 * image[..., :1], atol=1e-6
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "ours, theirs",
    [
        (adjust_brightness, functional.adjust_brightness),
        (adjust_contrast, functional.adjust_contrast),
        (adjust_saturation, functional.adjust_saturation),
    ],
)
def test_blends(rng, full_gray, ours, theirs, channels):
    image = draw_image(rng, (13, 18, channels))
    expected = [from_torch(theirs(to_torch(image), f)) for f in FACTORS]
    chex.assert_trees_all_close(
        for_all(ours, image, FACTORS), np.array(expected), atol=2e-6
    )


def test_blends_with_the_released_weights(rng):
    image = draw_image(rng)
    for name in ("adjust_contrast", "adjust_saturation"):
        expected = from_torch(getattr(functional, name)(to_torch(image), 1.7))
        ours = {
            "adjust_contrast": adjust_contrast,
            "adjust_saturation": adjust_saturation,
        }
        chex.assert_trees_all_close(ours[name](image, 1.7), expected, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
def test_hue(rng, channels):
    image, turns = draw_image(rng, (13, 18, channels)), [-0.5, -0.2, 0.0, 0.1, 0.5]
    image[0] = image[0, :, :1]  # gray
    image[1, :, 0] = image[1, :, -1]  # two channels equal
    expected = [from_torch(functional.adjust_hue(to_torch(image), t)) for t in turns]
    actual = for_all(adjust_hue, image, turns)
    chex.assert_trees_all_close(actual, np.array(expected), atol=2e-6)


def test_hsv(rng):
    module = __import__("torchvision.transforms.v2.functional._color", fromlist=["_"])
    image = draw_image(rng)
    expected = from_torch(module._rgb_to_hsv(to_torch(image)))
    chex.assert_trees_all_close(rgb_to_hsv(image), expected, atol=2e-6)
    expected = from_torch(module._hsv_to_rgb(to_torch(image)))
    chex.assert_trees_all_close(hsv_to_rgb(image), expected, atol=2e-6)


def test_solarize_and_normalize(rng):
    image = draw_image(rng)
    expected = from_torch(functional.solarize(to_torch(image), 0.5))
    chex.assert_trees_all_close(solarize(image), expected, atol=1e-6)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = from_torch(functional.normalize(to_torch(image), mean, std))
    chex.assert_trees_all_close(normalize(image), expected, atol=1e-5)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("size", [(5, 7), (29, 33), (13, 40)])
def test_resize(rng, size, antialias):
    image = draw_image(rng)
    expected = functional.resize(to_torch(image), size, bilinear, antialias=antialias)
    ours = jax.jit(lambda x: resize_image(x, size, antialias=antialias))
    actual = ours(image)
    chex.assert_trees_all_close(actual, from_torch(expected), atol=1e-5)


def test_cubic_resize(rng):
    # Without antialiasing torch takes another cubic, a = -0.75.
    image = draw_image(rng)
    expected = functional.resize(to_torch(image), (5, 33), bicubic, antialias=True)
    actual = jax.jit(lambda x: resize_image(x, (5, 33), method="bicubic"))(image)
    chex.assert_trees_all_close(actual, from_torch(expected), atol=1e-5)


def test_resized_crops(rng):
    image, size = draw_image(rng), (8, 9)
    boxes = [(0, 0, 13, 18), (2, 5, 4, 3), (1, 0, 12, 17), (12, 17, 1, 1)]
    crop = jax.vmap(lambda box: crop_and_resize(image, tuple(box), size))
    expected = [
        from_torch(functional.resized_crop(to_torch(image), *box, size, bilinear, True))
        for box in boxes
    ]
    actual = jax.jit(crop)(jnp.array(boxes, jnp.float32))
    chex.assert_trees_all_close(actual, np.array(expected), atol=1e-5)


@pytest.mark.parametrize("taps", [3, 9])
def test_gaussian_blur(rng, taps):
    image, sigmas = draw_image(rng), [0.1, 0.7, 2.0]
    expected = [
        from_torch(functional.gaussian_blur(to_torch(image), [taps] * 2, [s] * 2))
        for s in sigmas
    ]
    actual = for_all(lambda x, s: gaussian_blur(x, s, taps), image, sigmas)
    chex.assert_trees_all_close(actual, np.array(expected), atol=2e-6)


def test_rotate(rng):
    # Their rotation is counter-clockwise, their affine map clockwise, as ours.
    image, angles = draw_image(rng), [-130.0, -7.0, 0.0, 30.0]
    expected = [
        from_torch(functional.rotate(to_torch(image), -a, bilinear)) for a in angles
    ]
    actual = for_all(lambda x, a: affine(x, angle=a), image, angles)
    chex.assert_trees_all_close(actual, np.array(expected), atol=1e-5)


def test_affine(rng):
    image = draw_image(rng)
    warp = jax.jit(lambda options: affine(image, **options))
    for angle, translate, scale, shear in [
        (0.0, (2, -3), 1.0, (0.0, 0.0)),
        (25.0, (0, 0), 0.7, (0.0, 0.0)),
        (0.0, (0, 0), 1.0, (20.0, 0.0)),
        (0.0, (0, 0), 1.0, (0.0, -15.0)),
        (-65.0, (3, 1), 1.4, (12.0, 31.0)),
    ]:
        expected = functional.affine(
            to_torch(image), angle, translate, scale, shear, bilinear
        )
        options = {
            "angle": angle,
            "translate": translate,
            "scale": scale,
            "shear": shear,
        }
        actual = warp(jax.tree.map(jnp.float32, options))
        chex.assert_trees_all_close(actual, from_torch(expected), atol=1e-5)


@pytest.mark.parametrize("shape", [(24, 24), (16, 40)])
def test_random_crops_have_the_same_distribution(shape):
    """Two-sample Kolmogorov-Smirnov on each number of the box."""
    height, width = shape
    theirs = v2.RandomResizedCrop(size=8, scale=(0.2, 1.0))
    torch.manual_seed(0)
    params = [theirs.make_params([torch.zeros(1, *shape)]) for _ in range(3000)]
    expected = np.array(
        [[p[k] for k in ("top", "left", "height", "width")] for p in params]
    )
    rows, columns = np.mgrid[0.5:height, 0.5:width].astype(np.float32)
    ramps = jnp.stack([rows, columns], axis=-1)
    crop = partial(random_resized_crop, size=shape, area=(0.2, 1.0))
    keys = jax.random.split(jax.random.key(0), 3000)
    out = np.asarray(jax.jit(jax.vmap(crop, (0, None)))(keys, ramps))
    starts, lengths = [], []
    for axis, size in enumerate(shape):
        line = out[:, :, 0, 0] if axis == 0 else out[:, 0, :, 1]
        first, last = size // 4, size - 1 - size // 4
        step = (line[:, last] - line[:, first]) / (last - first)
        starts.append(line[:, first] - (first + 0.5) * step)
        lengths.append(size * step)
    actual = np.round(np.array([*starts, *lengths])).astype(int).T
    for ours, reference in zip(actual.T, expected.T, strict=True):
        points = np.arange(max(shape) + 1)[:, None]
        gap = np.abs((ours <= points).mean(1) - (reference <= points).mean(1)).max()
        assert gap < 1.95 * np.sqrt(2 / 3000)  # p = 0.001


def test_cutout_erases_like_torchvision():
    image = np.ones((9, 11, 3), np.float32)
    out = np.asarray(cutout(jax.random.key(4), image, 4))
    i, j = (np.flatnonzero((out == 0).any(axis=(axis, 2))) for axis in (1, 0))
    erased = functional.erase(
        to_torch(image), i[0], j[0], len(i), len(j), torch.zeros(3, len(i), len(j))
    )
    chex.assert_trees_all_equal(out, from_torch(erased))
