"""The random operations: their distributions, and what holds for all of them."""

import itertools
from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.ops.augment import (
    apply_with_probability,
    color_jitter,
    cutout,
    pad_and_crop,
    random_affine,
    random_gaussian_blur,
    random_grayscale,
    random_horizontal_flip,
    random_intensity,
    random_noise,
    random_resized_crop,
    random_solarize,
    random_vertical_flip,
    to_float,
)
from jaxml.ops.color import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    grayscale,
    solarize,
)

OPERATIONS = {
    "crop": partial(random_resized_crop, size=(5, 4)),
    "cubic_crop": partial(random_resized_crop, size=(5, 4), method="bicubic"),
    "pad_and_crop": partial(pad_and_crop, padding=2),
    "horizontal_flip": random_horizontal_flip,
    "vertical_flip": random_vertical_flip,
    "grayscale": partial(random_grayscale, p=0.5),
    "solarize": random_solarize,
    "jitter": partial(
        color_jitter, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2
    ),
    "blur": partial(random_gaussian_blur, kernel_size=5),
    "affine": partial(random_affine, degrees=30, translate=(0.2, 0.1), shear=(9, 5)),
    "intensity": partial(random_intensity, offset=(-0.2, 0.2)),
    "noise": partial(random_noise, sigma=(0.05, 0.2)),
    "cutout": partial(cutout, size=3),
}
all_operations = pytest.mark.parametrize("name", OPERATIONS)


def many(operation, image, num=500, seed=0):
    """`num` draws of the operation on one image, compiled once."""
    keys = jax.random.split(jax.random.key(seed), num)
    return np.asarray(jax.jit(jax.vmap(operation, (0, None)))(keys, jnp.asarray(image)))


def draw_image(rng, shape):
    return rng.random(shape, dtype=np.float32)


def assert_frequency(hits, p):
    """The share of hits is `p` within four standard deviations."""
    tolerance = 4 * np.sqrt(p * (1 - p) / len(hits))
    assert abs(np.mean(hits) - p) <= tolerance


def assert_uniform(values, low, high, slack=1e-3):
    """Inside the range, filling it, and with the mean and spread of a uniform draw."""
    span = high - low
    assert low - slack * span <= values.min() < low + 0.05 * span
    assert high + slack * span >= values.max() > high - 0.05 * span
    assert abs(values.mean() - (low + high) / 2) < 0.08 * span
    assert abs(values.std() - span / np.sqrt(12)) < 0.04 * span


# What holds for every operation.


@cache
def batched(name, num_traces=1):
    """(keys, images) -> results and gradients, compiled once for all tests."""

    def f(key, image):
        assert next(traces) < num_traces, f"{name} was traced again"
        out = OPERATIONS[name](key, image)
        return jnp.sum(out**2), out

    traces = itertools.count()
    f = jax.vmap(jax.value_and_grad(f, argnums=1, has_aux=True))

    def run(keys, images):
        (_, out), grad = f(keys, images)
        return out, grad

    return jax.jit(run)


@all_operations
def test_a_sample_depends_on_its_key_alone(rng, name):
    images = jnp.asarray(draw_image(rng, (10, 9, 7, 3)))
    keys = jax.random.split(jax.random.key(3), 10)
    out, _ = batched(name)(keys, images)
    again, _ = batched(name)(keys, images)
    chex.assert_trees_all_equal(again, out)
    order = rng.permutation(10)
    permuted, _ = batched(name)(keys[order], images[order])
    chex.assert_trees_all_close(permuted, out[order], atol=1e-6)
    # Neither do the other samples of the batch matter.
    others = images.at[1:].set(0)
    chex.assert_trees_all_close(batched(name)(keys, others)[0][0], out[0], atol=1e-6)
    # The same image ten times: other keys, other results.
    same, _ = batched(name)(keys, jnp.broadcast_to(images[:1], images.shape))
    assert jnp.abs(same - same[:1]).max() > 1e-3


@all_operations
def test_values_stay_in_range_and_gradients_are_finite(rng, name):
    shape = (9, 7, 3)
    flat = [np.full(shape, value, np.float32) for value in (0.0, 0.5, 1.0)]
    gray = np.repeat(draw_image(rng, (9, 7, 1)), 3, axis=-1)
    binary = (draw_image(rng, shape) > 0.5).astype(np.float32)
    images = jnp.stack([*flat, gray, binary] * 2)
    for seed in range(5):
        keys = jax.random.split(jax.random.key(seed), len(images))
        out, grad = batched(name)(keys, images)
        chex.assert_tree_all_finite((out, grad))
        assert out.min() >= -1e-6
        assert out.max() <= 1 + 1e-6
        assert jnp.abs(grad[3:5]).max() > 0


@all_operations
def test_bfloat16_and_one_channel(rng, name):
    images = jnp.asarray(draw_image(rng, (10, 9, 7, 3)), jnp.bfloat16)
    keys = jax.random.split(jax.random.key(1), 10)
    # The gray images of one channel are the last of three.
    operation = jax.vmap(OPERATIONS[name])
    colors, gray = jax.jit(
        lambda keys, x: (operation(keys, x), operation(keys, x[..., 2:]))
    )(keys, images)
    assert colors.dtype == gray.dtype == jnp.bfloat16
    expected, _ = batched(name)(keys, images.astype(jnp.float32))
    chex.assert_trees_all_close(colors.astype(jnp.float32), expected, atol=1e-2)
    assert gray.shape == (*colors.shape[:-1], 1)
    chex.assert_tree_all_finite(gray)
    if name not in ("grayscale", "jitter", "noise"):  # channels do not meet
        chex.assert_trees_all_equal(gray, colors[..., 2:])


@all_operations
def test_what_is_not_an_image_is_refused(name):
    for bad in (
        np.zeros((9, 7, 3), np.uint8),
        np.zeros((9, 7), np.float32),
        np.zeros((2, 9, 7, 3), np.float32),
        np.zeros((0, 7, 3), np.float32),
    ):
        with pytest.raises((TypeError, ValueError), match="image"):
            OPERATIONS[name](jax.random.key(0), bad)


# What each of them is about.


def test_to_float_scales_bytes_and_leaves_floats():
    values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    expected = values.astype(np.float64) / 255
    chex.assert_trees_all_close(to_float(values), expected, atol=1e-7)
    assert to_float(values).dtype == jnp.float32
    for dtype in (jnp.float32, jnp.bfloat16):
        floats = jnp.array([3.5, -1.0], dtype)
        chex.assert_trees_all_equal(to_float(floats), floats)
        assert to_float(floats).dtype == dtype
    with pytest.raises(TypeError, match="uint8 or floats, got int32"):
        to_float(np.zeros(3, np.int32))


@pytest.mark.parametrize("p", [0.0, 0.3, 1])
def test_apply_with_probability(p):
    image = jnp.zeros((1, 1, 1))
    noise = lambda key, x: x + jax.random.uniform(key, x.shape, minval=1, maxval=2)
    values = many(lambda k, x: apply_with_probability(k, p, noise, x), image, 2000)
    assert_frequency(values > 0, p)
    if p > 0:  # what the operation draws has nothing to do with the coin
        assert_uniform(values[values > 0], 1, 2)


@pytest.mark.parametrize(
    "operation, changed, p",
    [
        (random_horizontal_flip, lambda x: x[:, ::-1], 0.5),
        (random_vertical_flip, lambda x: x[::-1], 0.5),
        (random_horizontal_flip, lambda x: x[:, ::-1], 0.1),
        (random_grayscale, grayscale, 0.2),
        (random_solarize, solarize, 0.3),
    ],
)
def test_changes_with_the_given_probability(rng, operation, changed, p):
    image = draw_image(rng, (3, 4, 3))
    out = many(partial(operation, p=p), image)
    hits = np.abs(out - image).max(axis=(1, 2, 3)) > 1e-3
    assert_frequency(hits, p)
    chex.assert_trees_all_close(out[hits][0], np.asarray(changed(image)), atol=1e-6)
    chex.assert_trees_all_equal(out[~hits][0], image)


def crop_boxes(shape, num=2000, **options):
    """(top, left, height, width) of each random crop, read off two ramps."""
    height, width = shape
    rows, columns = np.mgrid[0.5:height, 0.5:width].astype(np.float32)
    ramps = np.stack([rows, columns], axis=-1)
    # Nothing is larger than the image: crops are enlarged, and a ramp stays a ramp.
    out = many(partial(random_resized_crop, size=shape, **options), ramps, num)
    starts, lengths = [], []
    for axis, size in enumerate(shape):
        line = out[:, :, 0, 0] if axis == 0 else out[:, 0, :, 1]
        first, last = size // 4, size - 1 - size // 4
        step = (line[:, last] - line[:, first]) / (last - first)
        starts.append(line[:, first] - (first + 0.5) * step)
        lengths.append(size * step)
    boxes = np.array([*starts, *lengths])
    chex.assert_trees_all_close(boxes, np.round(boxes), atol=2e-3)
    return np.round(boxes).astype(int)


def test_crops_have_the_area_and_the_ratio_that_were_asked_for():
    height, width = 40, 48
    top, left, h, w = crop_boxes((height, width), area=(0.3, 0.5), ratio=(0.8, 1.6))
    # Rounding moves a side by half a pixel.
    parts, ratios = h * w / (height * width), w / h
    assert_uniform(parts, 0.3, 0.5, slack=0.1)
    assert_uniform(np.log(ratios), np.log(0.8), np.log(1.6), slack=0.1)
    assert abs(np.corrcoef(parts, np.log(ratios))[0, 1]) < 0.1
    for start, length, size in ((top, h, height), (left, w, width)):
        assert start.min() == 0
        assert (start + length).max() == size
        place = (start + 0.5) / (size - length + 1)
        assert_uniform(place, 0, 1)
    assert abs(np.corrcoef(top, left)[0, 1]) < 0.1


def test_crops_are_tried_ten_times_and_then_taken_from_the_center():
    # Most draws do not fit into this image.
    height, width, area, ratio = 16, 32, (0.45, 1.0), (0.75, 4 / 3)
    rng = np.random.default_rng(1)
    areas = height * width * rng.uniform(*area, 200_000)
    ratios = np.exp(rng.uniform(*np.log(ratio), 200_000))
    h, w = np.round(np.sqrt(areas / ratios)), np.round(np.sqrt(areas * ratios))
    misses = np.mean((h > height) | (w > width))
    assert 0.7 < misses < 0.9
    top, left, h, w = crop_boxes((height, width), area=area, ratio=ratio)
    central = (h == 16) & (w == 21) & (top == 0) & (left == 5)
    drawn_there = np.mean((h == 16) & (w == 21) & (left != 5)) / 11
    expected = misses**10 + drawn_there
    assert abs(central.mean() - expected) < 4 * np.sqrt(expected / len(h)) + 0.01


@pytest.mark.parametrize(
    "shape, ratio, box",
    [
        ((8, 80), (0.75, 4 / 3), (0, 34, 8, 11)),
        ((80, 8), (0.75, 4 / 3), (34, 0, 11, 8)),
        ((16, 20), (1.2, 1.3), (0, 0, 16, 20)),
    ],
)
def test_the_crop_of_last_resort(shape, ratio, box):
    area = (1.0, 1.0) if shape[0] != 16 else (0.0, 0.0)
    boxes = crop_boxes(shape, num=2, area=area, ratio=ratio)
    chex.assert_trees_all_equal(boxes[:, 0], np.array(box))


def test_the_size_of_a_crop(rng):
    image = draw_image(rng, (9, 7, 2))
    for size, shape in ((6, (6, 6, 2)), ((3, 12), (3, 12, 2))):
        crop = partial(random_resized_crop, size=size)
        assert jax.eval_shape(crop, jax.random.key(0), image).shape == shape


@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_pad_and_crop_takes_every_place(rng, mode):
    image, padding = draw_image(rng, (4, 5, 2)), 2
    out = many(partial(pad_and_crop, padding=padding, mode=mode), image)
    padded = np.pad(image, [(2, 2), (2, 2), (0, 0)], mode=mode)
    places = [padded[i : i + 4, j : j + 5] for i in range(5) for j in range(5)]
    found = [np.flatnonzero([(o == p).all() for p in places]) for o in out]
    assert all(len(f) == 1 for f in found)
    counts = np.bincount(np.concatenate(found), minlength=25)
    assert counts.min() > 0
    assert np.sum((counts - 20) ** 2 / 20) < 60  # chi squared of 24 degrees


def test_affine_draws_from_its_ranges():
    size = 33
    rows, columns = np.mgrid[:size, :size].astype(np.float32)
    ramps = np.stack([rows, columns], axis=-1) - (size - 1) / 2
    warp = partial(
        random_affine,
        degrees=(-10, 20),
        scale=(0.8, 1.5),
        translate=(0.1, 0.2),
        border="clamp",
    )
    out = many(warp, ramps)
    middle = size // 2
    # Where the center's neighbors come from: the inverse map, column by column.
    down = (out[:, middle + 2, middle] - out[:, middle - 2, middle]) / 4
    right = (out[:, middle, middle + 2] - out[:, middle, middle - 2]) / 4
    inverse = np.stack([down, right], axis=-1)  # (y, x) by (y, x)
    forward = np.linalg.inv(inverse)
    scale = np.sqrt(np.linalg.det(forward))
    assert_uniform(scale, 0.8, 1.5)
    angle = np.rad2deg(np.arctan2(forward[:, 0, 1], forward[:, 1, 1]))
    assert_uniform(angle, -10, 20)
    chex.assert_trees_all_close(
        forward / scale[:, None, None],
        np.linalg.inv(forward / scale[:, None, None]).swapaxes(1, 2),
        atol=1e-4,
    )  # a rotation
    y, x = np.einsum("nij,nj->in", forward, -out[:, middle, middle])
    assert_uniform(x, -0.1 * size, 0.1 * size)
    assert_uniform(y, -0.2 * size, 0.2 * size)
    assert np.abs(np.corrcoef([scale, angle, x, y]) - np.eye(4)).max() < 0.2


def test_affine_shears_within_its_limits():
    rows, columns = np.mgrid[:33, :33].astype(np.float32)
    ramps = np.stack([rows, columns], axis=-1) - 16
    out = many(partial(random_affine, shear=(30, 0)), ramps)
    along_x = (out[:, 18, 16, 1] - out[:, 14, 16, 1]) / 4
    assert_uniform(np.rad2deg(np.arctan(along_x)), -30, 30)
    out = many(partial(random_affine, shear=(0, 20)), ramps)
    along_y = (out[:, 16, 18, 0] - out[:, 16, 14, 0]) / 4
    assert_uniform(np.rad2deg(np.arctan(along_y)), -20, 20)


def test_affine_of_nothing_is_the_image(rng):
    image = draw_image(rng, (6, 5, 2))
    out = many(random_affine, image, 1)[0]
    chex.assert_trees_all_close(out, image, atol=1e-6)


@pytest.mark.parametrize(
    "options, low, high",
    [
        ({"brightness": 0.4}, 0.6, 1.4),
        ({"brightness": (0.5, 1.2)}, 0.5, 1.2),
        ({"brightness": 1.5}, 0.0, 2.5),
    ],
)
def test_the_factor_of_brightness(options, low, high):
    out = many(partial(color_jitter, **options), np.full((1, 1, 3), 0.25, np.float32))
    assert_uniform(out[:, 0, 0, 0] / 0.25, low, high)


def test_the_factors_of_contrast_saturation_and_hue():
    image = np.array([[[0.5, 0.3, 0.3], [0.3, 0.3, 0.3]]], np.float32)
    gray = 0.3 + 0.299 * 0.2
    out = many(partial(color_jitter, contrast=0.4), image)
    mean = (gray + 0.3) / 2
    assert_uniform((out[:, 0, 0, 0] - mean) / (0.5 - mean), 0.6, 1.4)
    out = many(partial(color_jitter, saturation=(0.2, 0.7)), image)
    assert_uniform((out[:, 0, 0, 0] - gray) / (0.5 - gray), 0.2, 0.7)
    # Red turns towards yellow or towards magenta.
    out = many(partial(color_jitter, hue=0.1), image)[:, 0, 0]
    turns = (out[:, 1] - out[:, 2]) / 0.2 / 6
    assert_uniform(turns, -0.1, 0.1)
    out = many(partial(color_jitter, hue=(0.05, 0.1)), image)[:, 0, 0]
    assert_uniform((out[:, 1] - out[:, 2]) / 0.2 / 6, 0.05, 0.1)


def test_jitter_takes_every_order(rng):
    amounts = {"brightness": 1.5, "contrast": 1.4, "saturation": 1.7, "hue": 0.2}
    adjust = dict(
        zip(
            amounts,
            [adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue],
            strict=True,
        )
    )
    image = draw_image(rng, (4, 3, 3))
    orders = []
    for order in itertools.permutations(amounts):
        out = image
        for name in order:
            out = adjust[name](out, amounts[name])
        orders.append(np.asarray(out))
    # All orders differ, so that each can be told.
    pairs = itertools.combinations(orders, 2)
    assert min(np.abs(a - b).max() for a, b in pairs) > 1e-3
    fixed = {name: (amount, amount) for name, amount in amounts.items()}
    out = many(partial(color_jitter, **fixed), image, 1200)
    errors = np.abs(out[:, None] - np.stack(orders)).max(axis=(2, 3, 4))
    assert errors.min(axis=1).max() < 1e-5
    counts = np.bincount(errors.argmin(axis=1), minlength=24)
    assert np.sum((counts - 50) ** 2 / 50) < 60  # chi squared of 23 degrees


def test_jitter_of_nothing_is_the_image(rng):
    for channels in (1, 3):
        image = draw_image(rng, (4, 3, channels))
        out = many(color_jitter, image, 1)[0]
        chex.assert_trees_all_close(out, image, atol=1e-6)
    # A gray image has no color to change.
    gray = draw_image(rng, (4, 3, 1))
    out = many(partial(color_jitter, saturation=0.9, hue=0.5), gray, 1)[0]
    chex.assert_trees_all_close(out, gray, atol=1e-6)


def test_the_sigma_of_the_blur():
    point = np.zeros((21, 21, 1), np.float32)
    point[10, 10] = 1
    blur = partial(random_gaussian_blur, sigma=(0.5, 2.0), kernel_size=21)
    out = many(blur, point)
    ratio = out[:, 10, 11, 0] / out[:, 10, 10, 0]
    assert_uniform(np.sqrt(-0.5 / np.log(ratio)), 0.5, 2.0)


def test_intensity_draws_a_gain_and_an_offset():
    image = np.array([[[0.2], [0.6]]], np.float32)
    change = partial(random_intensity, gain=(0.8, 1.2), offset=(-0.1, 0.15))
    dark, bright = many(change, image)[:, 0, :, 0].T
    gain = (bright - dark) / 0.4
    assert_uniform(gain, 0.8, 1.2)
    assert_uniform(dark - 0.2 * gain, -0.1, 0.15)
    bright = many(partial(random_intensity, gain=(3, 4)), image)
    chex.assert_trees_all_equal(bright[:, 0, 1, 0], np.ones(500, np.float32))


def test_noise_is_gaussian_of_the_given_sigma():
    image = np.full((40, 30, 1), 0.5, np.float32)
    noise = many(partial(random_noise, sigma=0.05), image, 20) - 0.5
    assert abs(noise.mean()) < 2e-3
    assert abs(noise.std() - 0.05) < 1e-3
    assert abs((noise**4).mean() / 0.05**4 - 3) < 0.15
    neighbors = np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1]
    assert abs(neighbors) < 0.03
    sigmas = (many(partial(random_noise, sigma=(0.02, 0.1)), image) - 0.5).std(
        (1, 2, 3)
    )
    assert_uniform(sigmas, 0.02, 0.1, slack=0.1)
    chex.assert_trees_all_equal(
        many(partial(random_noise, sigma=0), image, 1)[0], image
    )


@pytest.mark.parametrize("size", [1, 3, 4, 20])
def test_cutout_paints_one_square(size):
    shape = (7, 10)
    out = many(partial(cutout, size=size, fill=0.25), np.ones((*shape, 3), np.float32))
    painted = out[..., 0] == 0.25
    chex.assert_trees_all_equal(out, np.where(painted[..., None], 0.25, out))
    centers = []
    for rows, columns in zip(painted.any(axis=2), painted.any(axis=1), strict=True):
        i, j = np.flatnonzero(rows), np.flatnonzero(columns)
        # A center in the image leaves half of the square in it at least.
        assert size - size // 2 <= len(i) <= size or len(i) == shape[0]
        assert len(i) <= size
        assert len(j) <= size
        assert (np.diff(i) == 1).all()
        assert (np.diff(j) == 1).all()
        centers.append((i[0] + size // 2, j[0] + size // 2))
    areas = painted.sum(axis=(1, 2))
    assert (areas == painted.any(axis=2).sum(1) * painted.any(axis=1).sum(1)).all()
    if size == 1:  # every pixel is a center
        i, j = np.array(centers).T
        counts = np.bincount(i * shape[1] + j, minlength=70)
        assert np.sum((counts - 500 / 70) ** 2 / (500 / 70)) < 125  # 69 degrees


ONES = np.ones((6, 5, 3), np.float32)


@pytest.mark.parametrize(
    "operation, options, message",
    [
        (
            random_horizontal_flip,
            {"p": 1.1},
            r"p must be .* \[0, 1\] .* got \(1.1, 1.1\)",
        ),
        (random_grayscale, {"p": -0.1}, "p must be"),
        (random_solarize, {"p": float("nan")}, "p must be"),
        (random_resized_crop, {"size": 0}, "size must be positive"),
        (random_resized_crop, {"size": 4, "area": (0.5, 0.2)}, "area must be a range"),
        (random_resized_crop, {"size": 4, "area": (0.5, 1.2)}, "area must be a range"),
        (
            random_resized_crop,
            {"size": 4, "ratio": (0, 2)},
            r"ratio must .* \(0, inf\)",
        ),
        (random_resized_crop, {"size": 4, "method": "box"}, "method must be one of"),
        (pad_and_crop, {"padding": -1}, "padding must not be negative"),
        (random_affine, {"degrees": (3, 2)}, "degrees must be a range"),
        (random_affine, {"degrees": -5}, "degrees must be a range"),
        (random_affine, {"scale": (0, 1)}, r"scale must be a range within \(0, inf\)"),
        (random_affine, {"scale": (1, float("inf"))}, "scale must be a range"),
        (random_affine, {"translate": (0.1, 1.1)}, "translate must be a range"),
        (random_affine, {"shear": (-1, 0)}, "shear must be a range"),
        (random_affine, {"border": "wrap"}, "border must be one of"),
        (color_jitter, {"brightness": (-0.1, 1)}, "brightness must be a range"),
        (color_jitter, {"contrast": -0.5}, "contrast must be a range"),
        (color_jitter, {"saturation": (2, 1)}, "saturation must be a range"),
        (color_jitter, {"hue": 0.6}, r"hue must be a range within \[-0.5, 0.5\]"),
        (random_gaussian_blur, {"sigma": (0, 1)}, "sigma must be a range"),
        (random_gaussian_blur, {"kernel_size": 4}, "kernel_size must be odd"),
        (random_intensity, {"gain": (-1, 1)}, "gain must be a range"),
        (random_intensity, {"offset": (1, 0)}, "offset must be a range"),
        (random_noise, {"sigma": -0.1}, "sigma must be a range"),
        (cutout, {"size": 0}, "size must be positive"),
    ],
)
def test_bad_parameters_are_refused(operation, options, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(partial(operation, **options), jax.random.key(0), ONES)


def test_channels_without_a_color_are_refused():
    for operation in (color_jitter, random_grayscale):
        with pytest.raises(ValueError, match="1 or 3 channels, got 2"):
            operation(jax.random.key(0), ONES[..., :2])


def test_an_operation_that_changes_the_shape_is_refused():
    crop = partial(random_resized_crop, size=2)
    maybe = lambda key, image: apply_with_probability(key, 0.5, crop, image)
    with pytest.raises(ValueError, match=r"must keep shape and type, got \(2, 2, 3\)"):
        jax.eval_shape(maybe, jax.random.key(0), ONES)
