"""Transposed convolution, and bilinear upsampling as a special case of it.

Each input pixel puts a scaled copy of the kernel into the output, `stride` pixels apart:

    y[s i + a - p] += x[i] K[a],      size_out = (size - 1) s + kernel - 2 p.

With the triangle K[a] = 1 - |a + 1/2 - s| / s of size 2 s (rows times columns, each channel
for itself) and p = s / 2 that is bilinear interpolation, pixel centres at halves, fading to
zero over the last half pixel of the image's rim.

The trap is a kernel whose size the stride does not divide: outputs then get an uneven
number of copies, and pictures a checkerboard.

Reference: Long, Shelhamer and Darrell, "Fully Convolutional Networks for Semantic
Segmentation", CVPR 2015, https://arxiv.org/abs/1411.4038 (section 3.3, bilinear start);
Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", 2016,
https://arxiv.org/abs/1603.07285 (relationships 8 to 14).
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype
from jax import lax
from jax.nn.initializers import Initializer

from jaxml.export import export
from jaxml.ops.upsampling import conv_transpose
from jaxml.typing import Array, Float


@export("nn.Deconv", since="0.1")
class Deconv(nn.Module):
    """A transposed convolution; parameters `kernel` [rows, columns, in, out] and `bias`.

    Attributes:
        features: channels of the output.
        stride: by how much it magnifies.
        kernel_size: side of the kernel; None is the stride, copies side by side.
        padding: pixels taken off every side, torch's.
        use_bias: add a learned bias.
        kernel_init: `jaxml.ops.bilinear_kernel` starts as interpolation.
        dtype: of computation; None takes the widest of input and parameters.
        param_dtype: of the parameters.
    """

    features: int
    stride: int = 2
    kernel_size: int | None = None
    padding: int = 0
    use_bias: bool = True
    kernel_init: Initializer = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height_out width_out features"]:
        """Magnifies `x`.

        Raises:
            ValueError: if the kernel is smaller than the stride.
        """
        size = self.stride if self.kernel_size is None else self.kernel_size
        if size < self.stride:
            raise ValueError(
                f"the kernel must be as large as the stride, got {size} and {self.stride}"
            )
        shape = (size, size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = None
        if self.use_bias:
            zeros = nn.initializers.zeros
            bias = self.param("bias", zeros, (self.features,), self.param_dtype)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = conv_transpose(x, kernel, stride=self.stride, padding=self.padding)
        return y if bias is None else y + bias[None, None, None]


@export("nn.bilinear_upsample", since="0.1")
def bilinear_upsample(
    x: Float[Array, "batch height width channels"], factor: int, padding: int = 0
) -> Float[Array, "batch height_out width_out channels"]:
    """The transposed convolution with `bilinear_kernel`, of size 2 `factor`, as two products.

    Args:
        x: any number of channels, which are not mixed.
        factor: the stride.
        padding: pixels taken off every side; factor // 2 gives factor * size for an even
            factor.

    >>> bilinear_upsample(jnp.ones((1, 1, 1, 1)), 2, 1)[0, :, :, 0].tolist()
    [[0.5625, 0.5625], [0.5625, 0.5625]]
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    rows, columns = (
        jnp.asarray(_copies(n, factor, padding), wide.dtype) for n in x.shape[1:3]
    )
    highest = lax.Precision.HIGHEST  # rounded weights would change the brightness
    wide = jnp.einsum("oh,bhwc->bowc", rows, wide, precision=highest)
    wide = jnp.einsum("pw,bowc->bopc", columns, wide, precision=highest)
    return wide.astype(x.dtype)


def _triangle(size: int) -> np.ndarray:
    """Centred in a kernel of any size; for an even one the stride is half of it."""
    stride = (size + 1) // 2
    centre = stride - 1 if size % 2 else stride - 0.5
    return 1 - abs(np.arange(size) - centre) / stride


def _copies(size: int, stride: int, padding: int) -> np.ndarray:
    """The matrix [size_out, size] whose columns are copies of the triangle."""
    kernel = _triangle(2 * stride)
    matrix = np.zeros(((size + 1) * stride, size), np.float32)
    for i in range(size):
        matrix[i * stride : (i + 2) * stride, i] = kernel
    return matrix[padding : len(matrix) - padding]
