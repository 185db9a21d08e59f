"""Deep layer aggregation: residual blocks at the leaves of trees whose roots join them all.

A tree of height one is two blocks and a root, which looks at both and at what was handed
down to it; a higher tree is two trees, and hands the first one's outcome down the second:

    T_1(x; c) = root(B_2, B_1, c),            B_1 = block(x), B_2 = block(B_1)
    T_n(x; c) = T_{n-1}(y; c, y),             y = T_{n-1}(x)

with root = relu(norm(conv1x1(all of them, side by side))). Each level halves the map; from
the second tree on, a level's pooled input is handed to its last root as well.

The trap is an odd size, which a convolution of stride 2 rounds up and pooling usually down,
so that the two sides of a sum do not fit; here both round up.

Reference: Yu, Wang, Shelhamer and Darrell, "Deep Layer Aggregation", CVPR 2018,
https://arxiv.org/abs/1707.06484 (figure 3, table 1). Names and numbers are timm's, without
the projections that its authors' code makes and never uses.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxml.export import export
from jaxml.nn.conv import Conv
from jaxml.nn.norm import BatchNorm
from jaxml.nn.resnet import ConvNorm
from jaxml.typing import Array, Float


@export("nn.DLA", since="0.1")
class DLA(nn.Module):
    """A deep layer aggregation network of basic blocks.

    Attributes:
        sizes: convolutions of the first two levels, and heights of the four trees.
        widths: channels of the six levels.
        num_classes: of a 1x1 convolution after the mean over space; None returns features.
        norm: makes the normalisation; called with the arguments of `BatchNorm`.
        axis_name: mesh axis over which batch statistics are shared.
        dtype: of computation; None takes the widest of input and parameters.
        param_dtype: of the parameters.
    """

    sizes: Sequence[int] = (1, 1, 1, 2, 2, 1)
    widths: Sequence[int] = (16, 32, 64, 128, 256, 512)
    num_classes: int | None = None
    norm: Callable[..., nn.Module] = BatchNorm
    axis_name: str | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "batch height width channels"],
        *,
        train: bool,
        pyramid: bool = False,
    ) -> Any:
        """Returns the mean over space of the last level, or the head's logits.

        With `pyramid`, the output of every level as `c0` to `c5` instead; `cN` has a
        feature per 2^N pixels.

        Raises:
            ValueError: unless there are six sizes, from 1 on, and six widths.
        """
        if len(self.sizes) != 6 or len(self.widths) != 6 or min(self.sizes) < 1:
            raise ValueError(
                "there must be six sizes, from 1 on, and six widths, got "
                f"{self.sizes} and {self.widths}"
            )
        x = self._conv(images, self.widths[0], 7, 1, "stem", train)
        outputs: dict[str, Array] = {}
        for level, (size, width) in enumerate(
            zip(self.sizes, self.widths, strict=True)
        ):
            name = f"level{level}"
            if level < 2:
                for i in range(size):
                    stride = 2 if level and i == 0 else 1
                    x = self._conv(x, width, 3, stride, f"{name}_{i}", train)
            else:
                handed = [_pool(x)] if level > 2 else []
                x = self._tree(x, size, width, 2, handed, name, train)
            outputs[f"c{level}"] = x
        if pyramid:
            return outputs
        x = jnp.mean(x, axis=(1, 2))
        if self.num_classes is None:
            return x
        head = Conv(
            self.num_classes,
            1,
            use_bias=True,
            name="head",
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        return head(x[:, None, None])[:, 0, 0]

    def _tree(
        self,
        x: Array,
        height: int,
        width: int,
        stride: int,
        handed: Sequence[Array],
        name: str,
        train: bool,
    ) -> Array:
        if height > 1:
            y = self._tree(x, height - 1, width, stride, [], f"{name}_tree1", train)
            return self._tree(
                y, height - 1, width, 1, [*handed, y], f"{name}_tree2", train
            )
        shortcut = _pool(x) if stride == 2 else x
        if shortcut.shape[-1] != width:
            shortcut = self._norm_conv(width, 1, 1, f"{name}_project")(
                shortcut, train=train
            )
        first = self._block(x, shortcut, width, stride, f"{name}_tree1", train)
        second = self._block(first, first, width, 1, f"{name}_tree2", train)
        leaves = jnp.concatenate([second, first, *handed], axis=-1)
        return self._conv(leaves, width, 1, 1, f"{name}_root", train)

    def _block(
        self,
        x: Array,
        shortcut: Array,
        width: int,
        stride: int,
        name: str,
        train: bool,
    ) -> Array:
        y = self._conv(x, width, 3, stride, f"{name}_conv1", train)
        y = self._norm_conv(width, 3, 1, f"{name}_conv2")(y, train=train)
        return nn.relu(y + shortcut)

    def _conv(
        self, x: Array, width: int, size: int, stride: int, name: str, train: bool
    ) -> Array:
        return nn.relu(self._norm_conv(width, size, stride, name)(x, train=train))

    def _norm_conv(self, width: int, size: int, stride: int, name: str) -> ConvNorm:
        return ConvNorm(
            width,
            size,
            stride,
            norm=self.norm,
            axis_name=self.axis_name,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name=name,
        )


def _pool(x: Array) -> Array:
    return nn.max_pool(x, (2, 2), strides=(2, 2), padding="SAME")


@export("nn.dla34", since="0.1")
def dla34(**options: Any) -> DLA:
    """DLA-34: 15.7 million parameters with 1000 classes; see `DLA`."""
    return DLA(**options)
