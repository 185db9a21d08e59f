"""Stacked hourglasses: down to a few pixels and up again, twice, with shortcuts throughout.

    H_n(x) = residuals(x) + up(residuals(H_{n-1}(residuals_stride_2(x)))),    H_0 = residuals

Each stack sees all of the picture and answers at a quarter of its resolution. Every stack's
features are given out, because each gets a loss of its own; the next stack starts from
what went into the last one and what came out of it.

The trap is to supervise, or to use, the last stack alone: without the losses in between
the first ones do not learn. In evaluation the last one is the answer.

Reference: Newell, Yang and Deng, "Stacked Hourglass Networks for Human Pose Estimation",
ECCV 2016, https://arxiv.org/abs/1603.06937 (sections 3.1 and 3.3); in the form of Law and
Deng, "CornerNet: Detecting Objects as Paired Keypoints", ECCV 2018,
https://arxiv.org/abs/1808.01244 (section 3.5): strides for pooling, widths 256, 256, 384,
384, 384, 512, and four residuals at the bottom. Maps of odd size are brought to the size of
the shortcut's.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxml.export import export
from jaxml.nn.fpn import resize_nearest
from jaxml.nn.norm import BatchNorm
from jaxml.nn.resnet import BasicBlock, ConvNorm
from jaxml.typing import Array, Float


@export("nn.Hourglass", since="0.1")
class Hourglass(nn.Module):
    """Stacked hourglasses; the defaults are CornerNet's Hourglass-104.

    Attributes:
        stacks: number of hourglasses.
        widths: channels of every level, the bottom last.
        sizes: residual blocks of every level.
        stem: channels of the first convolution, 7x7 of stride 2; a residual of stride 2
            follows.
        norm: makes the normalisation; called with the arguments of `BatchNorm`.
        axis_name: mesh axis over which batch statistics are shared.
        dtype: of computation; None takes the widest of input and parameters.
        param_dtype: of the parameters.
    """

    stacks: int = 2
    widths: Sequence[int] = (256, 256, 384, 384, 384, 512)
    sizes: Sequence[int] = (2, 2, 2, 2, 2, 4)
    stem: int = 128
    norm: Callable[..., nn.Module] = BatchNorm
    axis_name: str | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], *, train: bool
    ) -> list[Float[Array, "batch _ _ features"]]:
        """Returns the features of every stack, a map per 4 pixels, the last one last.

        Raises:
            ValueError: unless there is a stack and every level has a width and a size.
        """
        if self.stacks < 1 or not len(self.widths) == len(self.sizes) >= 1:
            raise ValueError(
                "there must be a stack, and a width and a size for each level, got "
                f"{self.stacks}, {self.widths} and {self.sizes}"
            )
        width = self.widths[0]
        x = nn.relu(self._conv(self.stem, 7, 2, name="stem")(images, train=train))
        x = self._block(x, width, "stem_residual", train, 2)
        outputs = []
        for stack in range(self.stacks):
            y = self._level(x, 0, f"stack{stack}", train)
            y = nn.relu(self._conv(width, 3, name=f"output{stack}")(y, train=train))
            outputs.append(y)
            if stack + 1 < self.stacks:
                before = self._conv(width, 1, name=f"before{stack}")(x, train=train)
                after = self._conv(width, 1, name=f"after{stack}")(y, train=train)
                x = self._block(
                    nn.relu(before + after), width, f"between{stack}", train
                )
        return outputs

    def _level(self, x: Array, level: int, name: str, train: bool) -> Array:
        """H of the levels from this one on, of as many channels as this one's."""
        width, size = self.widths[level], self.sizes[level]
        if level == len(self.widths) - 1:
            for i in range(size):
                x = self._block(x, width, f"{name}_bottom{i}", train)
            return x
        below = self.widths[level + 1]
        beside = low = x
        for i in range(size):
            beside = self._block(beside, width, f"{name}_beside{level}_{i}", train)
            stride = 1 if i else 2
            low = self._block(low, below, f"{name}_down{level}_{i}", train, stride)
        low = self._level(low, level + 1, name, train)
        for i in range(size):
            wide = width if i == size - 1 else below
            low = self._block(low, wide, f"{name}_up{level}_{i}", train)
        return beside + resize_nearest(low, (beside.shape[1], beside.shape[2]))

    def _conv(self, features: int, size: int, stride: int = 1, **options: Any) -> Any:
        return ConvNorm(
            features,
            size,
            stride,
            norm=self.norm,
            axis_name=self.axis_name,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            **options,
        )

    def _block(
        self, x: Array, width: int, name: str, train: bool, stride: int = 1
    ) -> Array:
        conv = partial(
            ConvNorm,
            norm=self.norm,
            axis_name=self.axis_name,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        ones = nn.initializers.ones
        return BasicBlock(conv, width, stride, (1, 1), ones, name=name)(x, train=train)
