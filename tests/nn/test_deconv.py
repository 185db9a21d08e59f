"""Transposed convolution against torch's and by hand, and bilinear interpolation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.nn import Deconv, bilinear_upsample
from jaxml.ops import bilinear_kernel


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
    kernel = np.float64(variables["params"]["kernel"])
    expected = deconv_numpy(np.float64(x), kernel, stride, padding)
    actual = model.apply(variables, x)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("factor", [2, 4, 32])
def test_bilinear_start_is_interpolation(rng, factor):
    x = rng.normal(size=(1, 3, 4, 2)).astype(np.float32)
    model = Deconv(
        2, factor, 2 * factor, factor // 2, use_bias=False, kernel_init=bilinear_kernel
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
    kernel = bilinear_kernel(jax.random.key(0), (3, 5, 1, 1))[..., 0, 0]
    np.testing.assert_allclose(kernel[:, 2], [0.5, 1, 0.5])
    np.testing.assert_allclose(kernel[1], np.array([1, 2, 3, 2, 1]) / 3, rtol=1e-6)


def test_bad_input_is_refused():
    x = jnp.ones((1, 2, 2, 3))
    with pytest.raises(ValueError, match="as large as the stride, got 1 and 2"):
        Deconv(3, 2, 1).init(jax.random.key(0), x)
    with pytest.raises(ValueError, match="as many channels out as in"):
        Deconv(2, 2, 4, kernel_init=bilinear_kernel).init(jax.random.key(0), x)


@pytest.mark.parametrize("stride, size, padding", [(2, 2, 0), (2, 4, 1), (3, 5, 2)])
def test_it_is_torchs(rng, stride, size, padding):
    torch = pytest.importorskip("torch")
    theirs = torch.nn.ConvTranspose2d(5, 6, size, stride, padding)
    x = rng.normal(size=(2, 4, 3, 5)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    kernel = theirs.weight.detach().numpy().transpose(2, 3, 0, 1)
    params = {"kernel": kernel, "bias": theirs.bias.detach().numpy()}
    actual = Deconv(6, stride, size, padding).apply({"params": params}, x)
    np.testing.assert_allclose(actual, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_bfloat16_and_no_bias(rng):
    x = jnp.asarray(rng.normal(size=(1, 3, 3, 2)), jnp.bfloat16)
    model = Deconv(4, use_bias=False, dtype=jnp.bfloat16)
    variables = model.init(jax.random.key(0), x)
    assert model.apply(variables, x).dtype == jnp.bfloat16
    assert list(variables["params"]) == ["kernel"]
    assert bilinear_upsample(x, 2, 1).dtype == jnp.bfloat16
