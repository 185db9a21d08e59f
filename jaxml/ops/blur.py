"""Gaussian blur as two short filters, one along each axis.

Each pixel becomes a weighted mean of its neighbors, and the weights separate:

    out[i] = sum_k w[|k|] x[i + k],    w[k] ~ exp(-k^2 / (2 sigma^2)),    sum_k w[|k|] = 1.

The number of taps is fixed and sigma may be drawn for each image inside jit, so that one
compiled program blurs all of them. The trap is a sigma large for the taps: the Gaussian is
then cut off, and what is left is scaled to sum to one.

Reference: Chen et al., "A Simple Framework for Contrastive Learning of Visual
Representations", ICML 2020, https://arxiv.org/abs/2002.05709 (appendix A: kernel of a
tenth of the image). Deviation: the border is mirrored, the paper's code has black there.
"""

import jax.numpy as jnp
from jax import lax

from jaxml.export import export
from jaxml.ops.color import Image, Number, Scalar, check_image
from jaxml.typing import Array


@export("ops.gaussian_blur", since="0.1")
def gaussian_blur(image: Image, sigma: Scalar, kernel_size: int | None = None) -> Image:
    """The image under a Gaussian; the border is mirrored about the outermost pixels.

    Args:
        image: any number of channels.
        sigma: standard deviation in pixels, above 0.
        kernel_size: taps of the filter, odd; by default a tenth of the image's height
            as in SimCLR: 23 for 224, 9 for 96, 3 for 32.

    Raises:
        ValueError: if sigma is not positive, or the kernel is even or reaches beyond the
            mirrored image.
    """
    check_image(image)
    if isinstance(sigma, Number) and not sigma > 0:
        raise ValueError(f"sigma must be positive, got {sigma}")
    height, width, _ = image.shape
    widest = 2 * min(height, width) - 1  # the mirror reaches no further
    if kernel_size is None:
        kernel_size = min(2 * (height // 10 // 2) + 1, widest)
    if kernel_size % 2 == 0 or not 1 <= kernel_size <= widest:
        raise ValueError(
            f"kernel_size must be odd and in [1, {widest}] for an image of {height} x "
            f"{width}, got {kernel_size}"
        )
    radius = kernel_size // 2
    weights = jnp.exp(-jnp.square(jnp.arange(radius + 1) / jnp.float32(sigma)) / 2)
    weights /= weights[0] + 2 * jnp.sum(weights[1:])
    dtype = jnp.promote_types(image.dtype, jnp.float32)
    planes = jnp.moveaxis(image, -1, 0).astype(dtype)
    blurred = _filter(_filter(planes, weights, axis=1), weights, axis=2)
    return jnp.moveaxis(blurred, 0, -1).astype(image.dtype)


def _filter(planes: Array, weights: Array, axis: int) -> Array:
    """Each value replaced by the sum of weights[|offset|] * its neighbor at offset."""
    radius, size = len(weights) - 1, planes.shape[axis]
    sides = [(radius, radius) if a == axis else (0, 0) for a in range(planes.ndim)]
    padded = jnp.pad(planes, sides, mode="reflect")
    # The barriers keep XLA from computing the padding, and the first axis, once for
    # each tap that reads them.
    padded = lax.optimization_barrier(padded)

    def neighbor(offset: int) -> Array:
        start = radius + offset
        return lax.slice_in_dim(padded, start, start + size, axis=axis)

    out = weights[0] * neighbor(0)
    for offset in range(1, radius + 1):
        out += weights[offset] * (neighbor(-offset) + neighbor(offset))
    return lax.optimization_barrier(out)
