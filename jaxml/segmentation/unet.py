"""U-Net: a contracting path for context, an expanding one for place, joined at each level.

On the way down two 3x3 convolutions with ReLU and a 2x2 max pool per level, the channels
doubling; on the way up a 2x2 up-convolution halves them, the map of the same level is put
beside, and two 3x3 convolutions follow; a 1x1 convolution gives the logits. The loss is

    E = sum_x w(x) (-log softmax(logits(x))[label(x)])

with weights that make the gaps between touching cells count (`border_weights`).

The trap is the size. Without padding ("valid", the paper's) a map shrinks with every
convolution, 572 pixels answer for 388, and every map that is pooled must have even sides:
`unet_sizes` lists what fits. With "same" padding any size is taken, mirrored up to a
multiple of 2^depth, and the rim of the answer has seen invented pixels.

Reference: Ronneberger, Fischer and Brox, "U-Net: Convolutional Networks for Biomedical
Image Segmentation", MICCAI 2015, https://arxiv.org/abs/1505.04597 (figure 1; equations 1
and 2; section 3: initialisation, drop-out). Deviation: the loss is a mean over pixels
unless told otherwise, and batch norm is an option.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxml.export import export
from jaxml.losses.cross_entropy import pixel_cross_entropy
from jaxml.method import Method
from jaxml.nn.conv import Conv
from jaxml.nn.deconv import Deconv
from jaxml.nn.dropout import Dropout
from jaxml.segmentation.per_pixel import PixelLoss, center_crop, per_pixel
from jaxml.typing import Array, Float

INCOMING = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
"""Standard deviation sqrt(2 / N), N the values that a neuron sees (section 3)."""


@export("segmentation.UNet", since="0.1")
class UNet(nn.Module):
    """The network of figure 1.

    Attributes:
        num_classes: with the background.
        widths: channels of the levels, the bottom last.
        padding: "valid", or "same".
        dropout: rate at the end of the contracting path.
        norm: makes a normalisation after every convolution, called with the arguments of
            `BatchNorm`; None as in the paper.
        axis_name: mesh axis the batch is split over, or None.
        dtype: of computation; None takes the widest of input and parameters.
        param_dtype: of the parameters.
    """

    num_classes: int = 2
    widths: Sequence[int] = (64, 128, 256, 512, 1024)
    padding: str = "valid"
    dropout: float = 0.5
    norm: Callable[..., nn.Module] | None = None
    axis_name: str | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], *, train: bool
    ) -> Float[Array, "batch height_out width_out classes"]:
        """Returns logits: of every pixel, or of those in the middle ("valid").

        Raises:
            ValueError: if a size does not fit valid padding, or the padding is unknown.
        """
        if self.padding not in ("valid", "same"):
            raise ValueError(f"padding must be valid or same, got {self.padding!r}")
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        size, depth = images.shape[1:3], len(self.widths) - 1
        x = images
        if self.padding == "same":
            rows, columns = (-n % 2**depth for n in size)
            x = jnp.pad(x, ((0, 0), (0, rows), (0, columns), (0, 0)), "reflect")
        else:
            for n in size:
                self._check(n, depth)
        skips: list[Array] = []
        for level, width in enumerate(self.widths):
            if level:
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
            x = self._convolutions(x, width, f"down{level}", train)
            skips.append(x)
        skips.pop()
        x = Dropout(self.dropout, axis_name=self.axis_name)(x, train=train)
        for level in reversed(range(depth)):
            width = self.widths[level]
            x = Deconv(width, 2, kernel_init=INCOMING, name=f"up{level}", **kinds)(x)
            skip = center_crop(skips[level], (x.shape[1], x.shape[2]))
            x = jnp.concatenate([skip, x], axis=-1)
            x = self._convolutions(x, width, f"join{level}", train)
        logits = Conv(
            self.num_classes,
            1,
            use_bias=True,
            kernel_init=INCOMING,
            name="logits",
            **kinds,
        )(x)
        if self.padding == "same":
            return logits[:, : size[0], : size[1]]
        return logits

    def _convolutions(self, x: Array, width: int, name: str, train: bool) -> Array:
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        for i in (1, 2):
            x = Conv(
                width,
                3,
                padding=0 if self.padding == "valid" else None,
                use_bias=self.norm is None,
                kernel_init=INCOMING,
                name=f"{name}_conv{i}",
                **kinds,
            )(x)
            if self.norm is not None:
                norm = self.norm(
                    axis_name=self.axis_name, name=f"{name}_norm{i}", **kinds
                )
                x = norm(x, train=train)
            x = nn.relu(x)
        return x

    def _check(self, size: int, depth: int) -> None:
        above, answer = unet_sizes(1, depth)
        while above < size:
            above, answer = above + 2**depth, answer + 2**depth
        if above != size:
            raise ValueError(
                f"valid padding needs an image of a side such as {above} "
                f"(which answers for {answer}), got {size}: see unet_sizes"
            )


@export("segmentation.unet_sizes", since="0.1")
def unet_sizes(at_least: int, depth: int = 4) -> tuple[int, int]:
    """The smallest side of an image whose answer has `at_least` pixels, and of the answer.

    Args:
        at_least: pixels of the answer along one side.
        depth: number of poolings.

    >>> unet_sizes(388)
    (572, 388)
    """
    if at_least < 1 or depth < 0:
        raise ValueError(
            f"at_least must be positive and depth not negative, got {at_least}, {depth}"
        )
    margin = 4 * (2**depth - 1)
    # The bottom has n pixels: the way down needs 2^d n + margin, the way up, from n - 4,
    # gives 2^d (n - 4) - margin.
    bottom = -(-(at_least + margin) // 2**depth) + 4
    return 2**depth * bottom + margin, 2**depth * (bottom - 4) - margin


@export("segmentation.unet", since="0.1")
def unet(
    model: UNet,
    *,
    loss: PixelLoss = pixel_cross_entropy,
    ignore_label: int | None = 255,
) -> Method:
    """The U-Net method; a batch holds `image` in [0, 1] and `label` [batch, height, width].

    Labels are classes 0, 1 ... of any integer type. `weight` [batch, height, width], if
    there, weighs the pixels (equation 1), and `mask` says which samples, or pixels, count.
    With valid padding the loss is that of the image's middle, and `predict` answers for it
    alone: labels [batch, height_out, width_out]. `predict_tiles` answers for all of a
    large image. Metrics: `loss`, `loss_at_chance` (ln classes) and `accuracy`.

    Args:
        model: its `axis_name` is the axis the batch is split over.
        loss: of (logits, labels), such as `soft_dice` or `lovasz_softmax`; it is told
            `ignore_label`, `axis_name`, and `weights` and `mask` if the batch has them.
        ignore_label: the label of pixels without an answer.
    """
    return per_pixel(
        model, loss=loss, ignore_label=ignore_label, axis_name=model.axis_name
    )
