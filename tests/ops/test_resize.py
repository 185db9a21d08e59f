"""Resizing against loops in float64, and against jax.image."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.ops.resize import crop_and_resize, resize_image, resize_weights

BOXES = [(0, 0, 9, 11), (2, 3, 5, 8), (8, 0, 1, 11), (0, 10, 3, 1)]
SIZES = [(4, 3), (13, 20), (1, 1)]


def filter_numpy(x, method):
    x = abs(x)
    if method == "bilinear":
        return max(0.0, 1 - x)
    if x < 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def resize_axis_numpy(part, size, method, antialias):
    """The first axis of `part`, which has been cropped already."""
    scale = len(part) / size
    stretch = max(1.0, scale) if antialias else 1.0
    rows = []
    for o in range(size):
        center = (o + 0.5) * scale
        weights = [
            filter_numpy((i + 0.5 - center) / stretch, method) for i in range(len(part))
        ]
        rows.append(
            sum(w * p for w, p in zip(weights, part, strict=True)) / sum(weights)
        )
    return np.array(rows)


def crop_and_resize_numpy(image, box, size, method="bilinear", antialias=True):
    top, left, height, width = box
    part = image.astype(np.float64)[top : top + height, left : left + width]
    part = resize_axis_numpy(part, size[0], method, antialias)
    part = resize_axis_numpy(part.swapaxes(0, 1), size[1], method, antialias)
    return part.swapaxes(0, 1)


def crops(image, boxes, size, **options):
    """The crop of every box, compiled once."""
    crop = lambda box: crop_and_resize(image, tuple(box), size, **options)
    return jax.jit(jax.vmap(crop))(jnp.array(boxes, jnp.float32))


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
def test_crop_and_resize_matches_numpy(rng, method, antialias):
    image = rng.normal(size=(9, 11, 2)).astype(np.float32)
    options = {"method": method, "antialias": antialias}
    for size in SIZES:
        actual = crops(image, BOXES, size, **options)
        expected = [crop_and_resize_numpy(image, b, size, **options) for b in BOXES]
        chex.assert_trees_all_close(actual, np.array(expected), atol=5e-6)


def test_a_box_need_not_be_whole():
    # One output pixel around 2.5, as wide as the box: a triangle from 1.25 to 3.75.
    weights = resize_weights(6, 1, 1.25, 2.5)
    expected = np.maximum(0, 1 - np.abs(np.arange(6) + 0.5 - 2.5) / 2.5)
    expected[[0, 4, 5]] = 0  # not in the box, not even in part
    chex.assert_trees_all_close(weights[0], expected / expected.sum(), atol=1e-6)


def test_resize_matches_jax(rng):
    image, size = rng.normal(size=(9, 11, 3)).astype(np.float32), (4, 20)
    for method, name in (("bilinear", "linear"), ("bicubic", "cubic")):
        expected = jax.image.resize(image, (*size, 3), name, precision="highest")
        actual = resize_image(image, size, method=method)
        chex.assert_trees_all_close(actual, expected, atol=1e-5)


def test_the_same_size_is_the_same_image(rng):
    image = rng.normal(size=(9, 11, 3)).astype(np.float32)
    chex.assert_trees_all_equal(resize_image(image, (9, 11)), image)
    crop = crop_and_resize(image, (2, 1, 4, 6), (4, 6))
    chex.assert_trees_all_equal(crop, image[2:6, 1:7])


def test_a_negative_length_mirrors(rng):
    image = rng.normal(size=(9, 11, 2)).astype(np.float32)
    boxes = [(2, 3, 5, 8), (2, 11, 5, -8), (7, 3, -5, 8)]
    plain, sideways, upside_down = crops(image, boxes, (4, 13))
    chex.assert_trees_all_close(sideways, plain[:, ::-1], atol=5e-6)
    chex.assert_trees_all_close(upside_down, plain[::-1], atol=5e-6)


def test_shrinking_averages_out_fine_texture():
    stripes = jnp.tile(jnp.array([0.0, 1.0]), 16).reshape(1, 32, 1)
    smooth = resize_image(stripes, (1, 8))
    assert jnp.abs(smooth - 0.5).max() < 0.13
    noisy = resize_image(stripes, (1, 9), antialias=False)
    assert jnp.abs(noisy - 0.5).max() > 0.4


def test_a_traced_box_compiles_once(rng):
    chex.clear_trace_counter()
    image = jnp.asarray(rng.normal(size=(9, 11, 2)), jnp.float32)
    crop = chex.assert_max_traces(lambda box: crop_and_resize(image, box, (4, 3)), n=1)
    crop = jax.jit(crop)
    for box in BOXES:
        expected = crop_and_resize_numpy(np.asarray(image), box, (4, 3))
        actual = crop(tuple(map(jnp.float32, box)))
        chex.assert_trees_all_close(actual, expected, atol=5e-6)


def test_gradients_and_bfloat16(rng):
    image = jnp.asarray(rng.normal(size=(5, 4, 1)), jnp.float32)
    box = jnp.array([0.3, 0.6, 4.1, 2.7])
    f = lambda image, box: jnp.sum(crop_and_resize(image, tuple(box), (3, 2)) ** 2)
    chex.assert_numerical_grads(jax.jit(f), (image, box), order=1, eps=1e-3, atol=2e-2)
    half = image.astype(jnp.bfloat16)
    actual = resize_image(half, (3, 2))
    assert actual.dtype == jnp.bfloat16
    expected = resize_image(half.astype(jnp.float32), (3, 2))
    chex.assert_trees_all_close(actual.astype(jnp.float32), expected, rtol=8e-3)


@pytest.mark.parametrize(
    "box, options, message",
    [
        ((0, 0, 4, 5), {"size": (0, 3)}, "size must be positive"),
        ((0, 0, 4, 5), {"method": "nearest"}, "method must be one of"),
        ((1, 0, 4, 5), {}, r"box must lie in the image .* \[1, 5\] on an axis of 4"),
        ((0, -1, 4, 5), {}, "box must lie in the image"),
        ((0, 0, 0.5, 5), {}, "1 pixel long at least"),
        ((0, 0, -1, 5), {}, "box must lie in the image"),
    ],
)
def test_bad_input_is_refused(box, options, message):
    with pytest.raises(ValueError, match=message):
        crop_and_resize(
            np.zeros((4, 5, 1), np.float32), box, **{"size": (2, 2)} | options
        )
