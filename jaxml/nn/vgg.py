"""VGG: stages of 3x3 convolutions, halved by max pooling, and three dense layers.

    x <- maxpool(relu(conv3x3(... relu(conv3x3(x)))))       five times, then 4096 - 4096 - K

Two 3x3 convolutions see what one of 5x5 sees, with fewer weights and a ReLU more. Padding,
order and initialisation are torchvision's, so that its weights give its outputs.

The trap is the order in which the last map is flattened for the first dense layer:
channels come last here and first there. `jaxml.interop.vgg` turns the kernel.

Reference: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image
Recognition", ICLR 2015, https://arxiv.org/abs/1409.1556 (table 1: A, B, D and E are 11, 13,
16 and 19). With batch norm the convolutions keep their bias, as torchvision's.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxml.export import export
from jaxml.nn.conv import Conv
from jaxml.nn.dense import Dense
from jaxml.nn.dropout import Dropout
from jaxml.typing import Array, Float


@export("nn.VGG", since="0.1")
class VGG(nn.Module):
    """A VGG as a backbone, a pyramid of stages, or a classifier.

    Attributes:
        stage_sizes: convolutions in each of the five stages.
        num_classes: of a classifier; None returns features.
        width: channels of the first stage; they double up to eight times that.
        norm: makes a normalisation after every convolution, called with the arguments of
            `BatchNorm`; None for the paper's plain networks.
        hidden: width of the classifier's two hidden layers.
        dropout: rate after them.
        first_padding: zeros around the image; 100 is FCN's.
        axis_name: mesh axis the batch is split over, or None.
        dtype: of computation; None takes the widest of input and parameters.
        param_dtype: of the parameters.
    """

    stage_sizes: Sequence[int]
    num_classes: int | None = None
    width: int = 64
    norm: Callable[..., nn.Module] | None = None
    hidden: int = 4096
    dropout: float = 0.5
    first_padding: int = 1
    axis_name: str | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32

    def setup(self) -> None:
        if len(self.stage_sizes) != 5:
            raise ValueError(f"stage_sizes must be five, got {self.stage_sizes}")
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.convs = [
            [
                Conv(
                    self.width * min(2**stage, 8),
                    3,
                    padding=1 if stage or i else self.first_padding,
                    use_bias=True,
                    **kinds,
                )
                for i in range(size)
            ]
            for stage, size in enumerate(self.stage_sizes)
        ]
        if self.norm is not None:
            self.norms = [
                [self.norm(axis_name=self.axis_name, **kinds) for _ in range(size)]
                for size in self.stage_sizes
            ]
        if self.num_classes is not None:
            small = nn.initializers.normal(0.01)
            widths = (self.hidden, self.hidden, self.num_classes)
            self.dense = [Dense(n, kernel_init=small, **kinds) for n in widths]
            self.drop = Dropout(self.dropout, axis_name=self.axis_name)

    def __call__(
        self, images: Float[Array, "batch height width channels"], *, train: bool
    ) -> Float[Array, "batch features"]:
        """Returns the mean over space of the last pooled map, or the classifier's logits.

        The classifier reads a map of 7 x 7, which other sizes than 224 x 224 are averaged
        to. It needs an rng named "dropout" in training.
        """
        x = max_pool(self.pyramid(images, train=train)["c5"])
        if self.num_classes is None:
            return jnp.mean(x, axis=(1, 2))
        x = adaptive_mean(x, 7).reshape(len(x), -1)
        for layer in self.dense[:2]:
            x = self.drop(nn.relu(layer(x)), train=train)
        return self.dense[2](x)

    def pyramid(
        self, images: Float[Array, "batch height width channels"], *, train: bool
    ) -> dict[str, Float[Array, "batch _ _ _"]]:
        """Returns the output of each stage before its pooling, as `c1` to `c5`.

        `cN` has a feature per 2^(N - 1) pixels; `max_pool` of it is the paper's "pool N".
        """
        x, outputs = images, {}
        for stage, convs in enumerate(self.convs):
            if stage:
                x = max_pool(x)
            for i, conv in enumerate(convs):
                x = conv(x)
                if self.norm is not None:
                    x = self.norms[stage][i](x, train=train)
                x = nn.relu(x)
            outputs[f"c{stage + 1}"] = x
        return outputs


def max_pool(x: Float[Array, "batch height width channels"]) -> Array:
    """The largest of every 2 x 2; an odd last row or column is left out, as torch does."""
    return nn.max_pool(x, (2, 2), strides=(2, 2))


def adaptive_mean(
    x: Float[Array, "batch height width channels"], size: int
) -> Float[Array, "batch size size channels"]:
    """Means over a grid of cells, from floor(i n / size) to ceil((i + 1) n / size)."""

    def cells(n: int) -> Array:
        matrix = np.zeros((size, n))
        for i in range(size):
            first, last = i * n // size, -(-(i + 1) * n // size)
            matrix[i, first:last] = 1 / (last - first)
        return jnp.asarray(matrix, x.dtype)

    return jnp.einsum("ih,bhwc,jw->bijc", cells(x.shape[1]), x, cells(x.shape[2]))


@export("nn.vgg11", since="0.1")
def vgg11(**options: Any) -> VGG:
    """VGG-11: 132.9 million parameters with torchvision's classifier; see `VGG`."""
    return VGG((1, 1, 2, 2, 2), **options)


@export("nn.vgg13", since="0.1")
def vgg13(**options: Any) -> VGG:
    """VGG-13: 133.0 million parameters with torchvision's classifier; see `VGG`."""
    return VGG((2, 2, 2, 2, 2), **options)


@export("nn.vgg16", since="0.1")
def vgg16(**options: Any) -> VGG:
    """VGG-16: 138.4 million parameters with torchvision's classifier; see `VGG`."""
    return VGG((2, 2, 3, 3, 3), **options)


@export("nn.vgg19", since="0.1")
def vgg19(**options: Any) -> VGG:
    """VGG-19: 143.7 million parameters with torchvision's classifier; see `VGG`."""
    return VGG((2, 2, 4, 4, 4), **options)
