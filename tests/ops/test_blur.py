"""Gaussian blur against loops in float64."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.ops.blur import gaussian_blur


def blur_numpy(image, sigma, taps):
    """The whole two-dimensional kernel on every pixel, mirrored at the border."""
    height, width, _ = image.shape
    radius = taps // 2
    offsets = range(-radius, radius + 1)
    mirror = lambda i, n: n - 1 - abs(n - 1 - abs(i))
    out = np.zeros(image.shape)
    for i in range(height):
        for j in range(width):
            total = 0.0
            for u in offsets:
                for v in offsets:
                    weight = np.exp(-(u**2 + v**2) / (2 * sigma**2))
                    pixel = image[mirror(i + u, height), mirror(j + v, width)]
                    out[i, j] += weight * pixel.astype(np.float64)
                    total += weight
            out[i, j] /= total
    return out


@pytest.mark.parametrize(
    "shape, taps", [((7, 9, 2), 5), ((4, 6, 1), 7), ((1, 1, 3), 1)]
)
def test_matches_numpy(rng, shape, taps):
    chex.clear_trace_counter()
    image = rng.random(shape, dtype=np.float32)
    # Sigma is traced: one program for all of them.
    blur = chex.assert_max_traces(lambda s: gaussian_blur(image, s, taps), n=1)
    blur = jax.jit(jax.vmap(blur))
    for sigmas in ([0.1, 0.8], [3.0, 1.0]):
        expected = np.array([blur_numpy(image, s, taps) for s in sigmas])
        chex.assert_trees_all_close(blur(jnp.array(sigmas)), expected, atol=1e-6)


@pytest.mark.parametrize(
    "height, width, taps", [(8, 9, 1), (32, 9, 3), (59, 9, 5), (96, 9, 9), (96, 3, 5)]
)
def test_the_kernel_is_a_tenth_of_the_height(height, width, taps):
    point = jnp.zeros((height, width, 1)).at[height // 2].set(1)
    blurred = jax.jit(lambda x: gaussian_blur(x, 100.0))(point)
    assert int(jnp.count_nonzero(blurred[:, 0])) == taps


def test_gradients_and_bfloat16(rng):
    image = jnp.asarray(rng.random((4, 5, 1)), jnp.float32)
    f = lambda image, sigma: jnp.sum(gaussian_blur(image, sigma, 5) ** 2)
    args = (image, jnp.float32(0.9))
    chex.assert_numerical_grads(jax.jit(f), args, order=1, eps=1e-3, atol=2e-2)
    chex.assert_tree_all_finite(jax.jit(jax.grad(f, (0, 1)))(image, jnp.float32(0.1)))
    half = image.astype(jnp.bfloat16)
    blur = jax.jit(lambda x: gaussian_blur(x, 0.9, 5))
    actual, expected = blur(half), blur(half.astype(jnp.float32))
    assert actual.dtype == jnp.bfloat16
    chex.assert_trees_all_close(actual.astype(jnp.float32), expected, atol=4e-3)


@pytest.mark.parametrize(
    "sigma, taps, message",
    [
        (0.0, 3, "sigma must be positive, got 0.0"),
        (1.0, 4, r"kernel_size must be odd and in \[1, 7\] for .* 4 x 9, got 4"),
        (1.0, 0, "kernel_size must be odd"),
        (1.0, -1, "kernel_size must be odd"),
        (1.0, 9, r"in \[1, 7\] .* got 9"),
    ],
)
def test_bad_input_is_refused(sigma, taps, message):
    with pytest.raises(ValueError, match=message):
        gaussian_blur(np.zeros((4, 9, 1), np.float32), sigma, taps)
