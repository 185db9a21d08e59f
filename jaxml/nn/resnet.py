"""Deep residual networks: each block learns what to add to its input.

    x <- relu(x + F(x)),    F = 3x3 - 3x3            (basic: 18 and 34 layers)
                            F = 1x1 - 3x3 - 1x1      (bottleneck: 50, 101 and 152)

Every convolution is followed by batch norm, every one but the last of F by ReLU; where
the shape changes, a 1x1 convolution with batch norm stands in for x. Padding, order and
initialisation are torchvision's, so that its weights give its outputs.

The trap: a bottleneck strides in its 3x3 convolution ("v1.5"), not in the first 1x1 as in
the paper. Weights of one kind load into the other without a complaint and do not fit.

Reference: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016,
https://arxiv.org/abs/1512.03385 (table 1). Options: groups of Xie et al., "Aggregated
Residual Transformations", CVPR 2017, https://arxiv.org/abs/1611.05431; zero-initialised
residuals and the stride of Goyal et al., https://arxiv.org/abs/1706.02677 (section 5.1);
the CIFAR stem of Chen et al., https://arxiv.org/abs/2002.05709 (appendix B.9); dilated
last stages of Yu et al., https://arxiv.org/abs/1705.09914.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.nn.initializers import Initializer

from jaxml.export import export
from jaxml.nn.conv import Conv
from jaxml.nn.dense import Dense
from jaxml.nn.norm import BatchNorm
from jaxml.typing import Array, Float


class ConvNorm(nn.Module):
    """A square convolution without bias, padded so as to keep the size, then the norm."""

    features: int
    kernel_size: int
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    scale_init: Initializer = nn.initializers.ones
    norm: Callable[..., nn.Module] = BatchNorm
    axis_name: str | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool
    ) -> Float[Array, "batch height_out width_out features"]:
        x = Conv(
            self.features,
            self.kernel_size,
            self.stride,
            dilation=self.dilation,
            groups=self.groups,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="conv",
        )(x)
        return self.norm(
            scale_init=self.scale_init,
            axis_name=self.axis_name,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="norm",
        )(x, train=train)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut.

    Attributes:
        conv: makes a `ConvNorm` of (features, kernel size, stride, dilation, groups).
        width: channels, here also those of the output.
        stride: of the first convolution.
        dilations: of the two convolutions.
        scale_init: of the last norm's scale.
    """

    conv: Callable[..., nn.Module]
    width: int
    stride: int
    dilations: tuple[int, int]
    scale_init: Initializer

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        first, second = self.dilations
        conv1 = self.conv(self.width, 3, self.stride, first, name="conv1")
        conv2 = self.conv(
            self.width, 3, 1, second, scale_init=self.scale_init, name="conv2"
        )
        y = conv2(nn.relu(conv1(x, train=train)), train=train)
        if x.shape != y.shape:
            x = self.conv(self.width, 1, self.stride, name="shortcut")(x, train=train)
        return nn.relu(x + y)


class Bottleneck(nn.Module):
    """A 3x3 convolution between two of 1x1, beside a shortcut.

    Attributes:
        conv: makes a `ConvNorm` of (features, kernel size, stride, dilation, groups).
        width: a quarter of the output's channels.
        stride: of the 3x3 convolution.
        dilations: the first is that of the 3x3 convolution.
        scale_init: of the last norm's scale.
        groups: of the 3x3 convolution.
        inner_width: its channels.
    """

    conv: Callable[..., nn.Module]
    width: int
    stride: int
    dilations: tuple[int, int]
    scale_init: Initializer
    groups: int
    inner_width: int

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        inner, out, stride = self.inner_width, 4 * self.width, self.stride
        conv1 = self.conv(inner, 1, name="conv1")
        conv2 = self.conv(
            inner, 3, stride, self.dilations[0], self.groups, name="conv2"
        )
        conv3 = self.conv(out, 1, scale_init=self.scale_init, name="conv3")
        y = nn.relu(conv1(x, train=train))
        y = nn.relu(conv2(y, train=train))
        y = conv3(y, train=train)
        if x.shape != y.shape:
            x = self.conv(out, 1, stride, name="shortcut")(x, train=train)
        return nn.relu(x + y)


@export("nn.ResNet", since="0.1")
class ResNet(nn.Module):
    """A residual network as a backbone, a pyramid of stages, or a classifier.

    Attributes:
        stage_sizes: blocks in each of the four stages.
        block: "basic" or "bottleneck".
        num_classes: size of a linear head; None returns features.
        stem: "imagenet" (7x7 convolution of stride 2 and 3x3 max pool of stride 2) or
            "cifar" (3x3 convolution of stride 1), for pictures of about 32 pixels.
        width: channels of the first stage; 128 is SimCLR's "2x".
        groups: groups of a bottleneck's 3x3 convolution (ResNeXt).
        width_per_group: their width in the first stage, 64 wide and one group being the
            plain ResNet: 4 with 32 groups is ResNeXt 32x4d, 128 with one "wide" ResNet.
        strides: of the stages' first blocks.
        dilations: of the stages' 3x3 convolutions; the first block of a stage still has
            those of the stage before. strides (1, 2, 2, 1) with dilations (1, 1, 1, 2)
            keep the resolution in the last stage, for dense prediction.
        zero_init_residual: start the last norm of each block at zero, so that the block
            starts as its shortcut.
        norm: makes the normalisation; called with the arguments of `BatchNorm`.
        axis_name: mesh axis over which batch statistics are shared.
        dtype: of computation; None takes the widest of input and parameters.
        param_dtype: of the parameters.
    """

    stage_sizes: Sequence[int]
    block: str
    num_classes: int | None = None
    stem: str = "imagenet"
    width: int = 64
    groups: int = 1
    width_per_group: int = 64
    strides: Sequence[int] = (1, 2, 2, 2)
    dilations: Sequence[int] = (1, 1, 1, 1)
    zero_init_residual: bool = False
    norm: Callable[..., nn.Module] = BatchNorm
    axis_name: str | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32

    def setup(self) -> None:
        self._check()
        conv = partial(
            ConvNorm,
            norm=self.norm,
            axis_name=self.axis_name,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        if self.stem == "imagenet":
            self.conv1 = conv(self.width, 7, 2)
        else:
            self.conv1 = conv(self.width, 3)
        self.stages = [self._stage(conv, stage) for stage in range(4)]
        if self.num_classes is not None:
            self.head = Dense(
                self.num_classes, dtype=self.dtype, param_dtype=self.param_dtype
            )

    def __call__(
        self, images: Float[Array, "batch height width channels"], *, train: bool
    ) -> Float[Array, "batch features"]:
        """Returns the mean over space of the last stage, or the head's logits of it."""
        features = jnp.mean(self.pyramid(images, train=train)["c5"], axis=(1, 2))
        return features if self.num_classes is None else self.head(features)

    def pyramid(
        self, images: Float[Array, "batch height width channels"], *, train: bool
    ) -> dict[str, Float[Array, "batch _ _ _"]]:
        """Returns the output of each stage as `c2`, `c3`, `c4` and `c5`.

        With the ImageNet stem and the usual strides, `cN` has a feature per 2^N pixels.
        """
        x = nn.relu(self.conv1(images, train=train))
        if self.stem == "imagenet":
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        outputs = {}
        for level, stage in enumerate(self.stages, 2):
            for block in stage:
                x = block(x, train=train)
            outputs[f"c{level}"] = x
        return outputs

    def _stage(self, conv: Callable[..., nn.Module], stage: int) -> list[nn.Module]:
        zeros, ones = nn.initializers.zeros, nn.initializers.ones
        width = self.width * 2**stage
        blocks: list[nn.Module] = []
        for i in range(self.stage_sizes[stage]):
            before = self.dilations[stage if i else max(stage - 1, 0)]
            arguments = {
                "conv": conv,
                "width": width,
                "stride": 1 if i else self.strides[stage],
                "dilations": (before, self.dilations[stage]),
                "scale_init": zeros if self.zero_init_residual else ones,
            }
            if self.block == "basic":
                blocks.append(BasicBlock(**arguments))
            else:
                inner = width * self.width_per_group // 64 * self.groups
                arguments |= {"groups": self.groups, "inner_width": inner}
                blocks.append(Bottleneck(**arguments))
        return blocks

    def _check(self) -> None:
        if self.block not in ("basic", "bottleneck"):
            raise ValueError(f"block must be basic or bottleneck, got {self.block!r}")
        if self.stem not in ("imagenet", "cifar"):
            raise ValueError(f"stem must be imagenet or cifar, got {self.stem!r}")
        for name in ("stage_sizes", "strides", "dilations"):
            if len(getattr(self, name)) != 4:
                raise ValueError(f"{name} must be four, got {getattr(self, name)}")
        if self.block == "basic" and (self.groups, self.width_per_group) != (1, 64):
            raise ValueError(
                "groups and width_per_group are options of the bottleneck, "
                f"got {self.groups} and {self.width_per_group} with basic blocks"
            )


@export("nn.resnet18", since="0.1")
def resnet18(**options: Any) -> ResNet:
    """ResNet-18: 11.7 million parameters with torchvision's head; see `ResNet`."""
    return ResNet((2, 2, 2, 2), "basic", **options)


@export("nn.resnet34", since="0.1")
def resnet34(**options: Any) -> ResNet:
    """ResNet-34: 21.8 million parameters with torchvision's head; see `ResNet`."""
    return ResNet((3, 4, 6, 3), "basic", **options)


@export("nn.dilated", since="0.1")
def dilated(output_stride: int) -> dict[str, tuple[int, ...]]:
    """Options of `ResNet` that keep resolution in its last stages, for dense prediction.

    They are torchvision's `replace_stride_with_dilation`: a stride that is left out widens
    the kernels behind it instead, so that weights trained with it still fit.

    Args:
        output_stride: pixels per feature of the last stage, with the ImageNet stem: 32
            (nothing is left out), 16 or 8.

    >>> dilated(8)
    {'strides': (1, 2, 1, 1), 'dilations': (1, 1, 2, 4)}
    """
    options = {
        32: {"strides": (1, 2, 2, 2), "dilations": (1, 1, 1, 1)},
        16: {"strides": (1, 2, 2, 1), "dilations": (1, 1, 1, 2)},
        8: {"strides": (1, 2, 1, 1), "dilations": (1, 1, 2, 4)},
    }
    if output_stride not in options:
        raise ValueError(f"output_stride must be 8, 16 or 32, got {output_stride}")
    return options[output_stride]


@export("nn.resnet50", since="0.1")
def resnet50(**options: Any) -> ResNet:
    """ResNet-50: 25.6 million parameters with torchvision's head; see `ResNet`."""
    return ResNet((3, 4, 6, 3), "bottleneck", **options)


@export("nn.resnet101", since="0.1")
def resnet101(**options: Any) -> ResNet:
    """ResNet-101: 44.5 million parameters with torchvision's head; see `ResNet`."""
    return ResNet((3, 4, 23, 3), "bottleneck", **options)


@export("nn.resnet152", since="0.1")
def resnet152(**options: Any) -> ResNet:
    """ResNet-152: 60.2 million parameters with torchvision's head; see `ResNet`."""
    return ResNet((3, 8, 36, 3), "bottleneck", **options)
