"""A small convolutional encoder for small pictures: digits, 8x8 to 32x32 pixels.

Meant for tests, notebooks and runs of a minute: on such pictures a ResNet-18 costs a
thousand times more and says the same.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxml.export import export
from jaxml.nn.conv import Conv
from jaxml.nn.norm import BatchNorm
from jaxml.typing import Array, Float


@export("nn.ConvNet", since="0.1")
class ConvNet(nn.Module):
    """3x3 convolution, batch norm and ReLU at each width, then the mean over space.

    The first block keeps the resolution, every later one halves it (rounding up).

    Attributes:
        widths: channels of every block.
        norm: makes the normalisation.
        axis_name: mesh axis over which batch statistics are shared.
        dtype: of computation; None takes the widest of input and parameters.
        param_dtype: of the parameters.
    """

    widths: Sequence[int] = (32, 64, 128)
    norm: Callable[..., nn.Module] = BatchNorm
    axis_name: str | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], *, train: bool
    ) -> Float[Array, "batch features"]:
        """Returns one vector of `widths[-1]` features per image."""
        x = images
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        for i, width in enumerate(self.widths):
            x = Conv(width, 3, stride=1 if i == 0 else 2, **kinds)(x)
            x = self.norm(axis_name=self.axis_name, **kinds)(x, train=train)
            x = nn.relu(x)
        return jnp.mean(x, axis=(1, 2))
