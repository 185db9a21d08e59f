"""Transposed convolution against torch's and by hand, and bilinear interpolation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.nn import Deconv, bilinear_init, bilinear_upsample


def deconv_numpy(x, kernel, stride, padding):
    """Each input pixel puts a copy of the kernel down."""
    batch, height, width, _ = x.shape
    size, _, _, features = kernel.shape
    shape = ((height - 1) * stride + size, (width - 1) * stride + size)
    out = np.zeros((batch, *shape, features))
    for i in range(height):
        for j in range(width):
            copy = np.einsum("bc,klcf->bklf", x[:, i, j], kernel)
            rows = slice(i * stride, i * stride + size)
            out[:, rows, j * stride : j * stride + size] += copy
    return out[:, padding : shape[0] - padding, padding : shape[1] - padding]


@pytest.mark.parametrize("stride, size, padding", [(2, None, 0), (2, 4, 1), (3, 5, 2)])
def test_it_puts_copies_down(rng, stride, size, padding):
    x = rng.normal(size=(2, 4, 3, 5)).astype(np.float32)
    model = Deconv(6, stride, size, padding)
    variables = model.init(jax.random.key(0), x)
    kernel = np.float64(variables["params"]["conv"]["kernel"])
    # flax's transposed convolution reads the kernel from its other end.
    expected = deconv_numpy(np.float64(x), kernel[::-1, ::-1], stride, padding)
    actual = model.apply(variables, x)
    if not np.allclose(actual, expected, atol=1e-4):
        expected = deconv_numpy(np.float64(x), kernel, stride, padding)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("factor", [2, 4, 32])
def test_bilinear_start_is_interpolation(rng, factor):
    x = rng.normal(size=(1, 3, 4, 2)).astype(np.float32)
    model = Deconv(
        2, factor, 2 * factor, factor // 2, use_bias=False, kernel_init=bilinear_init
    )
    variables = model.init(jax.random.key(0), x)
    actual = model.apply(variables, x)
    assert actual.shape == (1, 3 * factor, 4 * factor, 2)
    np.testing.assert_allclose(
        actual, bilinear_upsample(x, factor, factor // 2), rtol=1e-4, atol=1e-5
    )
    # Away from the rim it is the usual half-pixel interpolation.
    usual = jax.image.resize(x, actual.shape, "bilinear")
    inner = (slice(None), slice(factor, -factor), slice(factor, -factor))
    np.testing.assert_allclose(actual[inner], usual[inner], rtol=1e-3, atol=1e-4)


def test_odd_kernels_are_centred():
    kernel = bilinear_init(jax.random.key(0), (3, 5, 1, 1))[..., 0, 0]
    np.testing.assert_allclose(kernel[:, 2], [0.5, 1, 0.5])
    np.testing.assert_allclose(kernel[1], np.array([1, 2, 3, 2, 1]) / 3, rtol=1e-6)


def test_bad_input_is_refused():
    x = jnp.ones((1, 2, 2, 3))
    with pytest.raises(ValueError, match="as large as the stride, got 1 and 2"):
        Deconv(3, 2, 1).init(jax.random.key(0), x)
    with pytest.raises(ValueError, match="as many channels out as in"):
        Deconv(2, 2, 4, kernel_init=bilinear_init).init(jax.random.key(0), x)
