"""Upsampling against loops; `tests/oracle/test_dense_ops_torch.py` has PyTorch's."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.nn import convolve
from jaxml.ops.upsampling import (
    bilinear_kernel,
    conv_transpose,
    icnr,
    pixel_shuffle,
    pixel_unshuffle,
    upsample_bicubic,
    upsample_bilinear,
    upsample_nearest,
)


def interpolate_numpy(x, out, align_corners, cubic=None):
    """One line, pixel by pixel in float64."""
    n = len(x)
    y = np.zeros(out)
    for o in range(out):
        at = (
            o * (n - 1) / max(out - 1, 1)
            if align_corners
            else (o + 0.5) * n / out - 0.5
        )
        if cubic is None:
            at = min(max(at, 0), n - 1)
        for i in range(math.floor(at) - 2, math.floor(at) + 4):
            d = abs(at - i)
            if cubic is None:
                weight = max(0, 1 - d)
            elif d <= 1:
                weight = (cubic + 2) * d**3 - (cubic + 3) * d**2 + 1
            else:
                weight = cubic * (d**3 - 5 * d**2 + 8 * d - 4) * (d < 2)
            y[o] += weight * x[min(max(i, 0), n - 1)]
    return y


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("cubic", [None, -0.75, -0.5])
@pytest.mark.parametrize("out", [1, 3, 7, 12])
def test_interpolation_matches_numpy(rng, out, cubic, align_corners):
    line = rng.normal(size=5)
    x = jnp.asarray(line, jnp.float32).reshape(1, 1, 5, 1)
    if cubic is None:
        actual = upsample_bilinear(x, (1, out), align_corners=align_corners)
    else:
        actual = upsample_bicubic(x, (1, out), align_corners=align_corners, a=cubic)
    expected = interpolate_numpy(line, out, align_corners, cubic)
    chex.assert_trees_all_close(actual.ravel(), np.float32(expected), atol=1e-5)
    turned = x.swapaxes(1, 2)
    if cubic is None:
        turned = upsample_bilinear(turned, (out, 1), align_corners=align_corners)
        chex.assert_trees_all_close(turned.ravel(), actual.ravel(), atol=1e-6)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("out", [1, 2, 5, 13, 15])
def test_nearest_is_exact(exact, out):
    """Against fractions, which floats round wrongly where they meet a pixel's edge."""
    x = jnp.arange(5.0).reshape(1, 5, 1, 1)
    shift = 1 if exact else 0
    expected = [((2 * o + shift) * 5) // (2 * out) for o in range(out)]
    actual = upsample_nearest(x, (out, 1), exact=exact)
    assert actual.ravel().tolist() == expected


def test_exact_nearest_is_that_of_jax(rng):
    x = jnp.asarray(rng.normal(size=(1, 3, 7, 2)), jnp.float32)
    expected = jax.image.resize(x, (1, 8, 10, 2), "nearest")
    chex.assert_trees_all_equal(upsample_nearest(x, (8, 10), exact=True), expected)


def test_transposed_convolution_is_the_gradient(rng):
    """<conv(a), b> = <a, conv_transpose(b)>: the adjoint."""
    kernel = jnp.asarray(
        rng.normal(size=(3, 3, 4, 6)), jnp.float32
    )  # of the convolution
    a = jnp.asarray(rng.normal(size=(2, 7, 9, 4)), jnp.float32)
    b, transpose = jax.vjp(lambda a: convolve(a, kernel, stride=2, padding=1), a)
    expected = transpose(b)[0]
    actual = conv_transpose(b, kernel.transpose(0, 1, 3, 2), stride=2, padding=1)
    chex.assert_trees_all_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stride", [2, 3, 4])
def test_bilinear_kernel_interpolates(rng, stride):
    """Away from the border, which fades into zero."""
    size, padding = 2 * stride - stride % 2, math.ceil((stride - 1) / 2)
    kernel = bilinear_kernel(None, (size, size, 2, 2))
    x = jnp.asarray(rng.normal(size=(1, 5, 6, 2)), jnp.float32)
    actual = conv_transpose(x, kernel, stride=stride, padding=padding)
    expected = upsample_bilinear(x, (5 * stride, 6 * stride))
    actual = actual[:, : 5 * stride, : 6 * stride]
    inner = (slice(None), slice(stride, -stride), slice(stride, -stride))
    chex.assert_trees_all_close(actual[inner], expected[inner], atol=1e-5)


def test_a_checkerboard_appears_where_the_stride_does_not_divide_the_kernel():
    ones = jnp.ones((1, 6, 6, 1))
    inside = lambda size: conv_transpose(ones, jnp.ones((size, size, 1, 1)), stride=2)
    assert jnp.ptp(inside(4)[0, 4:-4, 4:-4]) == 0
    chex.assert_trees_all_equal(
        jnp.unique(inside(3)[0, 4:-4, 4:-4]), jnp.array([1.0, 2.0, 4.0])
    )


def test_icnr_starts_as_nearest(rng):
    init = icnr(jax.nn.initializers.normal(), 3)
    kernel = init(jax.random.key(0), (3, 3, 2, 36))
    x = jnp.asarray(rng.normal(size=(1, 4, 5, 2)), jnp.float32)
    y = pixel_shuffle(convolve(x, kernel), 3)
    chex.assert_trees_all_equal(y, upsample_nearest(y[:, ::3, ::3], y.shape[1:3]))
    assert len(np.unique(np.asarray(kernel)[0, 0, 0])) == 4


def test_shuffles_are_inverse(rng):
    x = jnp.asarray(rng.normal(size=(2, 3, 5, 8)), jnp.float32)
    chex.assert_trees_all_equal(pixel_unshuffle(pixel_shuffle(x, 2), 2), x)
    assert pixel_shuffle(x, 2)[0, 1, 2, 1] == x[0, 0, 1, 6]  # (1 * 2 + 1) * 2 + 0


def test_bfloat16_and_constants_stay():
    x = jnp.full((1, 3, 4, 2), 0.7, jnp.bfloat16)
    for upsample in (upsample_nearest, upsample_bilinear, upsample_bicubic):
        chex.assert_trees_all_equal(
            upsample(x, (7, 9)), jnp.full((1, 7, 9, 2), 0.7, jnp.bfloat16)
        )


def test_bad_input_is_refused():
    x = jnp.zeros((1, 3, 4, 6))
    with pytest.raises(ValueError, match=r"to \(0, 3\)"):
        upsample_bilinear(x, (0, 3))
    with pytest.raises(ValueError, match=r"2\^2 must divide the channels, got 6"):
        pixel_shuffle(x, 2)
    with pytest.raises(ValueError, match=r"2 must divide height and width"):
        pixel_unshuffle(x, 2)
    with pytest.raises(ValueError, match=r"in 4 groups"):
        conv_transpose(x, jnp.zeros((3, 3, 6, 1)), groups=4)
    with pytest.raises(ValueError, match=r"must divide the features, got 6"):
        icnr(jax.nn.initializers.zeros, 2)(jax.random.key(0), (3, 3, 2, 6))
