"""Darknet-19 and Darknet-53, the backbones of YOLOv2 and YOLOv3.

Every convolution is followed by batch norm and a leaky ReLU of slope 0.1. Darknet-19
alternates 3x3 and 1x1 convolutions and halves by max pooling; Darknet-53 halves by
convolutions of stride 2 and adds residual pairs, x + conv3x3(conv1x1(x)).

The traps are small numbers. The slope is 0.1 and not the usual 0.01; a residual pair has
its leaky ReLU before the sum and none behind it, unlike a ResNet; running averages move by
0.01; and the variance has 1e-6 added under the root (the original's CPU code adds it to
the root instead, which is the same but for channels that hardly vary).

Reference: Redmon and Farhadi, "YOLO9000: Better, Faster, Stronger", CVPR 2017,
https://arxiv.org/abs/1612.08242 (table 6); "YOLOv3: An Incremental Improvement", 2018,
https://arxiv.org/abs/1804.02767 (table 1).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxml.export import export
from jaxml.nn.conv import Conv
from jaxml.nn.norm import BatchNorm
from jaxml.nn.resnet import ConvNorm
from jaxml.nn.vgg import max_pool
from jaxml.typing import Array, Float

NORM = partial(BatchNorm, epsilon=1e-6, momentum=0.01)
SLOPE = 0.1


@export("nn.Darknet", since="0.1")
class Darknet(nn.Module):
    """A Darknet as a backbone, a pyramid of stages, or a classifier.

    Attributes:
        stage_sizes: of the five stages after the first convolution: convolutions of
            Darknet-19, of which every second is 1x1 and half as wide; or residual pairs
            of Darknet-53.
        residual: the second kind.
        num_classes: of a 1x1 convolution before the mean over space; None returns
            features.
        width: channels of the first convolution, doubled by every stage.
        norm: makes the normalisation; called with the arguments of `BatchNorm`.
        axis_name: mesh axis over which batch statistics are shared.
        dtype: of computation; None takes the widest of input and parameters.
        param_dtype: of the parameters.
    """

    stage_sizes: Sequence[int]
    residual: bool
    num_classes: int | None = None
    width: int = 32
    norm: Callable[..., nn.Module] = NORM
    axis_name: str | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32

    def setup(self) -> None:
        if len(self.stage_sizes) != 5:
            raise ValueError(f"stage_sizes must be five, got {self.stage_sizes}")
        conv = partial(
            ConvNorm,
            norm=self.norm,
            axis_name=self.axis_name,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        self.stem = conv(self.width, 3)
        stages: list[list[nn.Module]] = []
        for stage, size in enumerate(self.stage_sizes, 1):
            wide = self.width * 2**stage
            if self.residual:
                pairs = [conv(wide, 3, 2)]
                for _ in range(size):
                    pairs += [conv(wide // 2, 1), conv(wide, 3)]
                stages.append(pairs)
            else:
                stages.append(
                    [
                        conv(wide // 2, 1) if i % 2 else conv(wide, 3)
                        for i in range(size)
                    ]
                )
        self.stages = stages
        if self.num_classes is not None:
            self.head = Conv(
                self.num_classes,
                1,
                use_bias=True,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
            )

    def __call__(
        self, images: Float[Array, "batch height width channels"], *, train: bool
    ) -> Float[Array, "batch features"]:
        """Returns the mean over space of the last stage, or of the head's logits."""
        x = self.pyramid(images, train=train)["c5"]
        if self.num_classes is not None:
            x = self.head(x)
        return jnp.mean(x, axis=(1, 2))

    def pyramid(
        self, images: Float[Array, "batch height width channels"], *, train: bool
    ) -> dict[str, Float[Array, "batch _ _ _"]]:
        """Returns the output of the stem as `c0` and of the stages as `c1` to `c5`.

        `cN` has a feature per 2^N pixels.
        """

        def leaky(layer: nn.Module, x: Array) -> Array:
            return nn.leaky_relu(layer(x, train=train), SLOPE)

        x = leaky(self.stem, images)
        outputs = {"c0": x}
        for level, stage in enumerate(self.stages, 1):
            if self.residual:
                x = leaky(stage[0], x)
                for narrow, wide in zip(stage[1::2], stage[2::2], strict=True):
                    x += leaky(wide, leaky(narrow, x))
            else:
                x = max_pool(x)
                for layer in stage:
                    x = leaky(layer, x)
            outputs[f"c{level}"] = x
        return outputs


@export("nn.darknet19", since="0.1")
def darknet19(**options: Any) -> Darknet:
    """Darknet-19: 20.8 million parameters with 1000 classes; see `Darknet`."""
    return Darknet((1, 3, 3, 5, 5), False, **options)


@export("nn.darknet53", since="0.1")
def darknet53(**options: Any) -> Darknet:
    """Darknet-53: 41.6 million parameters with 1000 classes; see `Darknet`."""
    return Darknet((1, 2, 8, 8, 4), True, **options)
