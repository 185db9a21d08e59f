"""Convolution of images, with a gradient that is fast on a CPU too.

    y[i, j] = sum_{a, b} x[s i + d a - p, s j + d b - p] K[a, b]

XLA's CPU backend runs the forward pass and the gradient of x as one would wish, and the
gradient of K, itself a convolution whose kernel is as large as the image, at a third of
that rate. There it is computed here as what it is, a matrix product of the output's
gradient with the patches of the input, block by block so that the patches stay in cache:

    dK = sum over blocks of images  patches(x)^T g.

On every other platform the compiler's own convolutions are used. The trap: this is a
`custom_vjp`, so pure forward mode (`jax.jvp` of the network) is refused; forward over
reverse (Hessian-vector products) works. `experiments/bench/train_step.py` has the figures.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax import lax
from jax.nn.initializers import Initializer

from jaxml.export import export
from jaxml.typing import Array, Float

Pads = tuple[tuple[int, int], tuple[int, int]]

PATCHES_PER_BLOCK = 1024
"""So that a block of the patches of a 3x3 convolution fits a core's second cache."""


@export("nn.convolve", since="0.1")
def convolve(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "rows columns group_channels features"],
    *,
    stride: int = 1,
    padding: int | Pads | None = None,
    dilation: int = 1,
    groups: int = 1,
) -> Float[Array, "batch height_out width_out features"]:
    """Cross-correlates images with a kernel, as torch's `conv2d` does.

    Args:
        x: images.
        kernel: its third axis has `channels / groups` entries.
        stride: pixels between outputs.
        padding: zeros around the image: one number, ((top, bottom), (left, right)), or
            None for what keeps the size at stride 1 with an odd kernel,
            `dilation * (size - 1) // 2` on all sides.
        dilation: pixels between the kernel's entries.
        groups: parts of the channels that are convolved apart.

    >>> convolve(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1)))[0, :2, :2, 0].tolist()
    [[4.0, 6.0], [6.0, 9.0]]
    """
    if padding is None:
        row, column = (dilation * (size - 1) // 2 for size in kernel.shape[:2])
        pads = ((row, row), (column, column))
    elif isinstance(padding, int):
        pads = ((padding, padding), (padding, padding))
    else:
        pads = padding
    if groups > 1:
        return _convolve(x, kernel, stride, pads, dilation, groups)
    # Inside shard_map, the gradient of a kernel that all devices share is the sum of
    # theirs: the transpose of this sum's hidden cast, which a custom gradient must ask
    # for. Elsewhere the compiler drops it.
    x, kernel = _varying_like(x, kernel), _varying_like(kernel, x)
    return _convolve_fast(x, kernel, stride, pads, dilation)


def _varying_like(x: Array, other: Array) -> Array:
    return x + jnp.zeros_like(other, x.dtype, shape=())


def _convolve(
    x: Array, kernel: Array, stride: int, pads: Pads, dilation: int, groups: int = 1
) -> Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        pads,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _convolve_fast(
    x: Array, kernel: Array, stride: int, pads: Pads, dilation: int
) -> Array:
    return _convolve(x, kernel, stride, pads, dilation)


def _forward(
    x: Array, kernel: Array, stride: int, pads: Pads, dilation: int
) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(x, kernel, stride, pads, dilation), (x, kernel)


def _backward(
    stride: int,
    pads: Pads,
    dilation: int,
    residuals: tuple[Array, Array],
    g: Array,
) -> tuple[Array, Array]:
    x, kernel = residuals

    def by_convolution(x: Array, g: Array) -> Array:
        conv = partial(_convolve, x, stride=stride, pads=pads, dilation=dilation)
        anywhere = jnp.zeros_like(g, kernel.dtype, shape=kernel.shape)  # it is linear
        return jax.vjp(conv, anywhere)[1](g)[0]

    def by_patches(x: Array, g: Array) -> Array:
        return _kernel_gradient(x, g, kernel, stride, pads, dilation)

    _, transpose = jax.vjp(lambda x: _convolve(x, kernel, stride, pads, dilation), x)
    d_kernel = lax.platform_dependent(x, g, cpu=by_patches, default=by_convolution)
    return transpose(g)[0], d_kernel


_convolve_fast.defvjp(_forward, _backward)


def _kernel_gradient(
    x: Array, g: Array, kernel: Array, stride: int, pads: Pads, dilation: int
) -> Array:
    batch, height, width, features = g.shape
    wide = jnp.promote_types(kernel.dtype, jnp.float32)
    limit = max(PATCHES_PER_BLOCK // (height * width), 1)
    images = max(n for n in range(1, min(batch, limit) + 1) if batch % n == 0)

    def add(total: Array, block: tuple[Array, Array]) -> tuple[Array, None]:
        # Products of float16 with a float32 sum are not to be had on a CPU.
        x, g = (a.astype(wide) for a in block)
        patches = _patches(x, kernel.shape[:2], stride, pads, dilation)
        # g first: transposing the narrow operand of the two is what is cheap.
        return total + lax.dot_general(
            g.reshape(-1, features),
            patches.reshape(-1, kernel[..., 0].size),
            (((0,), (0,)), ((), ())),
        ), None

    blocks = jax.tree.map(lambda a: a.reshape(-1, images, *a.shape[1:]), (x, g))
    # Zeros "like" g: inside shard_map they differ over the devices as the sum will.
    total = jnp.zeros_like(g, wide, shape=(features, kernel[..., 0].size))
    total, _ = lax.scan(add, total, blocks)
    return total.T.reshape(kernel.shape).astype(kernel.dtype)


def _patches(
    x: Array, sizes: Sequence[int], stride: int, pads: Pads, dilation: int
) -> Array:
    """What each output looks at: [batch, height_out, width_out, rows columns channels]."""
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    last = [n - dilation * (k - 1) for n, k in zip(x.shape[1:3], sizes, strict=True)]
    return jnp.concatenate(
        [
            x[:, i : i + last[0] : stride, j : j + last[1] : stride]
            for i in range(0, dilation * sizes[0], dilation)
            for j in range(0, dilation * sizes[1], dilation)
        ],
        axis=-1,
    )


@export("nn.Conv", since="0.1")
class Conv(nn.Module):
    """A two-dimensional convolution; parameters `kernel` [rows, columns, in, out], `bias`.

    Attributes:
        features: channels of the output.
        kernel_size: side of the kernel, or (rows, columns).
        stride: see `convolve`, also for the next three.
        padding: None keeps the size at stride 1, with an odd kernel.
        dilation: pixels between the kernel's entries.
        groups: parts of the channels that are convolved apart.
        use_bias: add a learned bias.
        kernel_init: of the kernel; the default is He's for ReLU, fan-out, as torchvision.
        dtype: of computation; None takes the widest of input and parameters.
        param_dtype: of the parameters.
    """

    features: int
    kernel_size: int | tuple[int, int]
    stride: int = 1
    padding: int | Pads | None = None
    dilation: int = 1
    groups: int = 1
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
            ValueError: if the groups do not divide the channels.
        """
        if x.shape[-1] % self.groups or self.features % self.groups:
            raise ValueError(
                "groups must divide the channels of input and output, "
                f"got {self.groups} for {x.shape[-1]} and {self.features}"
            )
        size = self.kernel_size
        size = (size, size) if isinstance(size, int) else size
        shape = (*size, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = None
        if self.use_bias:
            zeros = nn.initializers.zeros
            bias = self.param("bias", zeros, (self.features,), self.param_dtype)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = convolve(
            x,
            kernel,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
        )
        return y if bias is None else y + bias[None, None, None]
