"""Color against float64 loops and the standard library's colorsys."""

import colorsys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.ops import color
from jaxml.ops.color import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    check_image,
    grayscale,
    hsv_to_rgb,
    normalize,
    rgb_to_hsv,
    solarize,
)

SHAPES = [(5, 7, 3), (1, 1, 3), (8, 3, 1)]
ADJUSTMENTS = [
    (adjust_brightness, 1.4),
    (adjust_contrast, 1.7),
    (adjust_saturation, 1.8),
    (adjust_hue, 0.3),
]


def per_pixel(image, f):
    """`f` on every pixel, in float64."""
    return np.array([[f(*pixel) for pixel in row] for row in image.astype(np.float64)])


def gray_numpy(image):
    """The gray image, one channel."""
    if image.shape[-1] == 1:
        return image.astype(np.float64)
    return per_pixel(image, lambda r, g, b: [0.299 * r + 0.587 * g + 0.114 * b])


def blend_numpy(image, other, factor):
    return np.clip(factor * image.astype(np.float64) + (1 - factor) * other, 0, 1)


def hue_numpy(image, turns):
    def turn(r, g, b):
        h, s, v = colorsys.rgb_to_hsv(r, g, b)
        return colorsys.hsv_to_rgb((h + turns) % 1, s, v)

    return per_pixel(image, turn)


def draw_image(rng, shape):
    return rng.random(shape, dtype=np.float32)


def for_all(adjust, image, amounts):
    """`adjust` with every amount, compiled once."""
    amounts = jnp.array(amounts, jnp.float32)
    return jax.jit(jax.vmap(adjust, (None, 0)))(image, amounts)


def colors_that_tie():
    """Corners of the color cube, grays, and colors two channels of which are equal."""
    steps = [0.0, 0.25, 1.0]
    colors = [(r, g, b) for r in steps for g in steps for b in steps]
    return np.array(colors, np.float32).reshape(3, 9, 3)


@pytest.mark.parametrize("shape", SHAPES)
def test_grayscale_matches_numpy(rng, shape):
    image = draw_image(rng, shape)
    expected = np.broadcast_to(gray_numpy(image), shape)
    chex.assert_trees_all_close(grayscale(image), expected, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_blends_match_numpy(rng, shape):
    image, factors = draw_image(rng, shape), [0.0, 0.3, 1.0, 1.9]
    gray = gray_numpy(image)
    # One channel has no color to take away.
    others = {
        adjust_brightness: 0.0,
        adjust_contrast: gray.mean(),
        adjust_saturation: gray if shape[-1] == 3 else image,
    }
    for adjust, other in others.items():
        actual = for_all(adjust, image, factors)
        expected = np.array([blend_numpy(image, other, f) for f in factors])
        chex.assert_trees_all_close(actual, expected, atol=1e-6)


def test_hue_matches_colorsys(rng):
    turns = [-0.5, -0.21, 0.0, 1 / 3, 0.5]
    for image in (draw_image(rng, (5, 7, 3)), colors_that_tie()):
        actual = for_all(adjust_hue, image, turns)
        expected = np.array([hue_numpy(image, t) for t in turns])
        chex.assert_trees_all_close(actual, expected, atol=1e-6)


def test_hue_leaves_gray_alone(rng):
    gray = np.repeat(draw_image(rng, (5, 7, 1)), 3, axis=-1)
    change = jax.jit(lambda x: (adjust_hue(x, 0.4), adjust_saturation(x, 1.9)))
    turned, saturated = change(gray)
    chex.assert_trees_all_equal(turned, gray)
    chex.assert_trees_all_close(saturated, gray, atol=1e-6)
    chex.assert_trees_all_close(jax.jit(grayscale)(gray), gray, atol=1e-6)
    one = gray[..., :1]
    chex.assert_trees_all_equal((*change(one), grayscale(one)), (one, one, one))


def test_hsv_matches_colorsys_and_comes_back(rng):
    # A negative hue too small to count must become 0, not 1.
    tiny = np.array([[[1.0, 0.0, 1e-9]]], np.float32)
    for image in (draw_image(rng, (5, 7, 3)), colors_that_tie(), tiny):
        hsv = jax.jit(rgb_to_hsv)(image)
        expected = per_pixel(image, colorsys.rgb_to_hsv)
        error = hsv - expected
        circle = np.abs(error[..., 0] - np.round(error[..., 0]))
        assert circle.max() < 1e-6
        chex.assert_trees_all_close(hsv[..., 1:], expected[..., 1:], atol=1e-6)
        assert hsv[..., 0].min() >= 0
        assert hsv[..., 0].max() < 1
        chex.assert_trees_all_close(jax.jit(hsv_to_rgb)(hsv), image, atol=1e-6)
    expected = per_pixel(image := draw_image(rng, (4, 3, 3)), colorsys.hsv_to_rgb)
    chex.assert_trees_all_close(jax.jit(hsv_to_rgb)(image), expected, atol=1e-6)


def test_solarize_inverts_from_the_threshold_up(rng):
    image = draw_image(rng, (5, 7, 2))
    image[0, 0] = 0.5
    expected = per_pixel(image, lambda *p: [1 - v if v >= 0.5 else v for v in p])
    chex.assert_trees_all_close(solarize(image), expected, atol=1e-6)
    image[0, 0] = 0.25
    chex.assert_trees_all_equal(solarize(image, 0.25)[0, 0], 1 - image[0, 0])
    chex.assert_trees_all_equal(solarize(image, 0.26)[0, 0], image[0, 0])


@pytest.mark.parametrize("shape", [(5, 7, 3), (2, 5, 7, 3), (3,)])
def test_normalize_matches_numpy(rng, shape):
    image = draw_image(rng, shape)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    chex.assert_trees_all_close(normalize(image), (image - mean) / std, atol=1e-5)
    actual = normalize(image, 0.5, 0.25)
    chex.assert_trees_all_close(actual, (image - 0.5) / 0.25, atol=1e-5)


@pytest.mark.parametrize("adjust, amount", ADJUSTMENTS)
def test_the_amount_may_be_traced_and_compiles_once(rng, adjust, amount):
    chex.clear_trace_counter()
    image = jnp.asarray(draw_image(rng, (5, 7, 3)))
    traced = jax.jit(chex.assert_max_traces(adjust, n=1))
    traced(image, jnp.float32(0.1))
    actual = traced(image, jnp.float32(amount))
    chex.assert_trees_all_close(actual, adjust(image, amount), atol=1e-6)


@pytest.mark.parametrize("adjust, amount", ADJUSTMENTS)
def test_bfloat16_stays_and_agrees(rng, adjust, amount):
    image = jnp.asarray(draw_image(rng, (5, 7, 3)), jnp.bfloat16)
    actual = jax.jit(adjust)(image, amount)
    assert actual.dtype == jnp.bfloat16
    expected = jax.jit(adjust)(image.astype(jnp.float32), amount)
    chex.assert_trees_all_close(actual.astype(jnp.float32), expected, atol=4e-3)


@pytest.mark.parametrize("adjust, amount", ADJUSTMENTS)
def test_gradients_are_those_of_finite_differences(rng, adjust, amount):
    # Away from the clamps: kinks have no derivative.
    image = 0.4 + 0.1 * draw_image(rng, (2, 3, 3))
    weights = draw_image(rng, image.shape)
    f = lambda x: jnp.sum(weights * adjust(x, 1 + (amount - 1) / 4))
    if adjust is adjust_hue:
        f = lambda x: jnp.sum(weights * adjust(x, amount))
    image = jnp.asarray(image)
    chex.assert_numerical_grads(jax.jit(f), (image,), order=1, eps=1e-3, atol=2e-2)


@pytest.mark.parametrize(
    "f",
    [
        *(lambda x, a=a, v=v: a(x, v) for a, v in ADJUSTMENTS),
        rgb_to_hsv,
        lambda x: hsv_to_rgb(rgb_to_hsv(x)),
    ],
)
def test_values_and_gradients_are_finite_on_gray(f):
    images = jnp.broadcast_to(jnp.array([0, 0.5, 1]).reshape(3, 1, 1, 1), (3, 3, 2, 3))
    value_and_grad = jax.value_and_grad(lambda x: jnp.sum(f(x) ** 2))
    chex.assert_tree_all_finite(jax.jit(jax.vmap(value_and_grad))(images))


def test_what_is_not_an_image_is_refused():
    with pytest.raises(TypeError, match=r"floats in .* got uint8; use to_float"):
        check_image(np.zeros((4, 4, 3), np.uint8))
    for shape in [(4, 4), (2, 4, 4, 3), (0, 4, 3), (4, 4, 0)]:
        with pytest.raises(
            ValueError, match=r"shape \[height, width, channels\] and no"
        ):
            check_image(np.zeros(shape, np.float32))
    with pytest.raises(ValueError, match="1 or 3 channels, got 4"):
        color.to_planes(np.zeros((4, 4, 4), np.float32))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x: adjust_brightness(x, -0.1), "factor must not be negative, got -0.1"),
        (lambda x: adjust_contrast(x, -1), "factor must not be negative"),
        (lambda x: adjust_saturation(x, -1), "factor must not be negative"),
        (lambda x: adjust_saturation(x, float("nan")), "factor must not be negative"),
        (lambda x: adjust_hue(x, 0.51), r"turns must be in \[-0.5, 0.5\], got 0.51"),
        (lambda x: adjust_hue(x[..., :2], 0.1), "1 or 3 channels, got 2"),
        (lambda x: rgb_to_hsv(x[..., :1]), "must have 3 channels, got 1"),
        (lambda x: hsv_to_rgb(x[..., :1]), "must have 3 channels, got 1"),
        (lambda x: normalize(x, (0.5, 0.5)), "mean must be one number or one per"),
        (lambda x: normalize(x, 0.5, (1.0, 1.0)), "std must be one number or one per"),
        (lambda x: normalize(x, 0.5, 0.0), "std must be positive, got 0.0"),
    ],
)
def test_bad_amounts_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.zeros((4, 4, 3), np.float32))
