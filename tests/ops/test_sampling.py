"""Bilinear sampling and affine warps against loops in float64."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.ops import sampling
from jaxml.ops.sampling import FORMS, affine, bilinear_sample


def sample_numpy(image, y, x, border):
    """One point, in float64."""
    height, width, channels = image.shape
    if border == "roi" and not (-1 <= y <= height and -1 <= x <= width):
        return np.zeros(channels)
    if border != "zeros":
        y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
    out = np.zeros(channels)
    for i in range(height):
        for j in range(width):
            weight = max(0, 1 - abs(y - i)) * max(0, 1 - abs(x - j))
            out += weight * image[i, j].astype(np.float64)
    return out


def affine_numpy(image, angle, translate, scale, shear, border):
    """The forward map as a product of homogeneous matrices, inverted numerically."""
    height, width, _ = image.shape
    turn, shear_x, shear_y = np.deg2rad([angle, *shear])
    move = lambda x, y: np.array([[1, 0, x], [0, 1, y], [0, 0, 1.0]])
    center = ((width - 1) / 2, (height - 1) / 2)
    rotation = np.array(
        [[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]]
    )
    along_x = np.array([[1, -np.tan(shear_x), 0], [0, 1, 0], [0, 0, 1]])
    along_y = np.array([[1, 0, 0], [-np.tan(shear_y), 1, 0], [0, 0, 1]])
    forward = (
        move(*translate)
        @ move(*center)
        @ rotation
        @ np.diag([scale, scale, 1])
        @ along_y
        @ along_x
        @ move(-center[0], -center[1])
    )
    back = np.linalg.inv(forward)
    out = np.zeros(image.shape)
    for i in range(height):
        for j in range(width):
            x, y, _ = back @ [j, i, 1]
            out[i, j] = sample_numpy(image, y, x, border)
    return out


@pytest.mark.parametrize("border", ["zeros", "clamp", "roi"])
@pytest.mark.parametrize("shape", [(5, 7, 3), (1, 1, 1), (1, 6, 2)])
def test_sampling_matches_numpy(rng, shape, border):
    image = rng.normal(size=shape).astype(np.float32)
    y = rng.uniform(-2, shape[0] + 1, (4, 9)).astype(np.float32)
    x = rng.uniform(-2, shape[1] + 1, (4, 9)).astype(np.float32)
    y[0], x[1] = np.round(y[0]), np.round(x[1])  # on the pixels too
    points = np.stack([y, x], axis=-1).reshape(-1, 2)
    expected = np.array([sample_numpy(image, *point, border) for point in points])
    for form in FORMS:
        sample = jax.jit(partial(bilinear_sample, border=border, form=form))
        actual = sample(image, y, x)
        chex.assert_trees_all_close(actual, expected.reshape(actual.shape), atol=1e-5)


@pytest.mark.parametrize("border", ["zeros", "clamp", "roi"])
@pytest.mark.parametrize("form", FORMS)
def test_sampling_gradients(rng, border, form):
    image = jnp.asarray(rng.normal(size=(4, 5, 2)), jnp.float32)
    y, x = jnp.array([0.4, 2.3, -0.4]), jnp.array([1.7, 3.6, 4.3])
    sample = partial(bilinear_sample, border=border, form=form)
    f = jax.jit(lambda *args: jnp.sum(sample(*args) ** 2))
    chex.assert_numerical_grads(f, (image, y, x), order=1, eps=1e-3, atol=2e-2)


def test_the_matrices_are_taken_a_few_points_at_a_time(rng, monkeypatch):
    monkeypatch.setattr(sampling, "POINTS_PER_PRODUCT", 4)
    image = jnp.asarray(rng.normal(size=(4, 5, 2)), jnp.float32)
    y, x = jnp.asarray(rng.uniform(-1, 5, (2, 3, 3)), jnp.float32)
    forms = [bilinear_sample(image, y, x, form=form) for form in FORMS]
    chex.assert_trees_all_close(*forms, atol=1e-5)


def test_bfloat16_is_sampled_at_float32_places():
    image = (jnp.arange(512) % 2).astype(jnp.bfloat16).reshape(1, 512, 1)
    x = jnp.array([300.25, 301.25])  # the first is 300 in bfloat16
    for form in FORMS:
        out = bilinear_sample(image, jnp.zeros(2), x, form=form)
        assert out.dtype == jnp.bfloat16
        chex.assert_trees_all_equal(
            out[:, 0].astype(jnp.float32), jnp.array([0.25, 0.75])
        )


def test_points_far_away_are_black_or_the_border():
    image = jnp.ones((3, 4, 1))
    far = jnp.array([-1e30, 1e30, jnp.inf, -jnp.inf])
    for border in ("zeros", "clamp", "roi"):
        f = lambda y, x, b=border: jnp.sum(bilinear_sample(image, y, x, border=b))
        chex.assert_tree_all_finite(jax.grad(f, (0, 1))(far, far))
    nowhere = jnp.full(2, jnp.nan)  # never a read out of bounds
    assert jnp.all(bilinear_sample(image, nowhere, nowhere, border="roi") == 0)
    assert jnp.all(jnp.isnan(bilinear_sample(image, nowhere, nowhere, border="clamp")))
    for y, x in ((far, jnp.ones(4)), (jnp.ones(4), far)):
        clamped = bilinear_sample(image, y, x, border="clamp")
        chex.assert_trees_all_equal(clamped, jnp.ones((4, 1)))
        black = bilinear_sample(image, y, x)
        chex.assert_trees_all_equal(black, jnp.zeros((4, 1)))
        roi = bilinear_sample(image, y, x, border="roi")
        chex.assert_trees_all_equal(roi, jnp.zeros((4, 1)))


@pytest.mark.parametrize("border", ["zeros", "clamp"])
def test_affine_matches_numpy(rng, border):
    image = rng.random((6, 9, 2), dtype=np.float32)
    plain = {"angle": 0, "translate": (0, 0), "scale": 1, "shear": (0, 0)}
    changes = [
        {},
        {"angle": 33.0},
        {"translate": (1.5, -2.25)},
        {"scale": 0.7},
        {"shear": (20.0, 0.0)},
        {"shear": (0.0, -15.0)},
        {"angle": -70, "translate": (1, 2), "scale": 1.3, "shear": (11, 25)},
    ]
    chex.clear_trace_counter()
    # The parameters are traced: one program for all of them.
    warp = lambda options: affine(image, border=border, **options)
    warp = jax.jit(chex.assert_max_traces(warp, n=1))
    for change in changes:
        actual = warp(jax.tree.map(jnp.float32, plain | change))
        expected = affine_numpy(image, border=border, **plain | change)
        chex.assert_trees_all_close(actual, expected, atol=2e-5)


def test_a_quarter_turn_is_exact(rng):
    image = rng.random((5, 5, 2), dtype=np.float32)
    actual = jax.jit(lambda x: affine(x, angle=90))(image)
    chex.assert_trees_all_close(actual, np.rot90(image, -1), atol=1e-5)


def test_bfloat16_stays_and_agrees(rng):
    image = jnp.asarray(rng.random((6, 9, 2)), jnp.bfloat16)
    turn = jax.jit(lambda x: affine(x, angle=10.0))
    actual, expected = turn(image), turn(image.astype(jnp.float32))
    assert actual.dtype == jnp.bfloat16
    chex.assert_trees_all_close(actual.astype(jnp.float32), expected, atol=4e-3)


def test_bad_input_is_refused():
    image, points = jnp.zeros((4, 5, 1)), jnp.zeros(3)
    with pytest.raises((ValueError, TypeError), match=r"one shape|points"):
        bilinear_sample(image, points, points[:2])
    with pytest.raises(ValueError, match=r"border must be one of .* got 'wrap'"):
        bilinear_sample(image, points, points, border="wrap")
    with pytest.raises(ValueError, match=r"form must be one of .* got 'sparse'"):
        bilinear_sample(image, points, points, form="sparse")
    with pytest.raises(ValueError, match="scale must be positive, got 0"):
        affine(image, scale=0)
