"""A deformable convolution as a layer, with the convolution that moves its taps.

    offsets, logits = conv0(x),    y = deform_conv2d(x, offsets, W, mask=sigmoid(logits))

The inner convolution starts at zero, so that at first all taps are where they are in any
convolution. The trap is v2: a mask that starts at sigmoid(0) = 1/2 halves the output, as in
the paper, so a layer that replaces a trained convolution gives half of what it gave.

Reference: Zhu et al., "Deformable ConvNets v2", CVPR 2019,
https://arxiv.org/abs/1811.11168 (section 3.2, equation 1, also for the zeros; the paper
trains the inner convolution at a tenth of the learning rate: its parameters are named
`offset_kernel` and `offset_bias`, for a mask of the optimizer to find).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax.nn.initializers import Initializer

from jaxml.export import export
from jaxml.nn.conv import convolve
from jaxml.ops import deform_conv2d
from jaxml.typing import Array, Float


@export("nn.DeformConv", since="0.1")
class DeformConv(nn.Module):
    """A convolution whose taps move; parameters `kernel`, `bias`, `offset_kernel`, `offset_bias`.

    Attributes:
        features: channels of the output.
        kernel_size: side of the kernel, or (rows, columns), odd.
        stride: pixels between outputs.
        dilation: pixels between the kernel's taps.
        groups: parts of the channels that are convolved apart.
        offset_groups: parts of the channels whose taps move together.
        modulated: v2: taps also have a weight in (0, 1).
        use_bias: add a learned bias.
        kernel_init: of the kernel; the default is that of `Conv`.
        dtype: of computation; None takes the widest of input and parameters. Offsets are
            float32 at least.
        param_dtype: of the parameters.
    """

    features: int
    kernel_size: int | tuple[int, int] = 3
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    offset_groups: int = 1
    modulated: bool = True
    use_bias: bool = False
    kernel_init: Initializer = nn.initializers.variance_scaling(
        2.0, "fan_out", "normal"
    )
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height_out width_out features"]:
        """Convolves `x`.

        Raises:
            ValueError: if a side of the kernel is even, or groups do not divide channels.
        """
        size = self.kernel_size
        rows, columns = (size, size) if isinstance(size, int) else size
        if rows % 2 == 0 or columns % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {size}")
        if x.shape[-1] % self.groups:
            raise ValueError(
                f"groups must divide the channels, got {self.groups} for {x.shape[-1]}"
            )
        zeros = nn.initializers.zeros
        shape = (rows, columns, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        moves = 2 * self.offset_groups * rows * columns
        extra = moves * 3 // 2 if self.modulated else moves
        inner = (rows, columns, x.shape[-1], extra)
        offset_kernel = self.param("offset_kernel", zeros, inner, self.param_dtype)
        offset_bias = self.param("offset_bias", zeros, (extra,), self.param_dtype)
        bias = None
        if self.use_bias:
            bias = self.param("bias", zeros, (self.features,), self.param_dtype)
        x, kernel, bias, offset_kernel = promote_dtype(
            x, kernel, bias, offset_kernel, dtype=self.dtype
        )
        moved = convolve(
            x, offset_kernel, stride=self.stride, dilation=self.dilation
        ).astype(jnp.promote_types(x.dtype, jnp.float32))
        moved += offset_bias[None, None, None].astype(moved.dtype)
        return deform_conv2d(
            x,
            moved[..., :moves],
            kernel,
            mask=jax.nn.sigmoid(moved[..., moves:]) if self.modulated else None,
            bias=bias,
            stride=self.stride,
            dilation=self.dilation,
            offset_groups=self.offset_groups,
        )
