"""Fully convolutional networks: a classifier that answers at every place, made fine again.

The dense layers of VGG-16 become convolutions (7x7, 1x1), so that a large image gives a
coarse map of scores, one per 32 pixels. Transposed convolutions that start as bilinear
interpolation make it fine, and scores of earlier, finer maps are added on the way:

    FCN-32s   up32(score(fc7))
    FCN-16s   up16(up2(score(fc7)) + score(pool4))
    FCN-8s    up8(up2(up2(score(fc7)) + score(pool4)) + score(pool3))

The last upsampling is fixed, those between are learned, and new scores start at zero, so
that a finer net starts as the coarser one.

The trap is where maps lie. Padding the image by 100 ("caffe", the authors') lets a 7x7
convolution without padding fit, and each crop then needs an offset of its own: 19, 27 or 31
for the answer, 5 and 9 for the skips. With padding 3 of the 7x7 convolution ("same") and the
image filled up to a multiple of 32, nothing needs an offset.

Reference: Long, Shelhamer and Darrell, "Fully Convolutional Networks for Semantic
Segmentation", CVPR 2015, https://arxiv.org/abs/1411.4038 (figure 3, section 4; drop-out of
VGG's dense layers kept). `DilatedFCN`: Yu and Koltun, "Multi-Scale Context Aggregation by
Dilated Convolutions", ICLR 2016, https://arxiv.org/abs/1511.07122, in the form of
torchvision's `fcn_resnet50`, without its auxiliary head.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxml.export import export
from jaxml.losses.cross_entropy import pixel_cross_entropy
from jaxml.method import Method, Params
from jaxml.nn.conv import Conv
from jaxml.nn.deconv import Deconv, bilinear_upsample
from jaxml.nn.dropout import Dropout
from jaxml.nn.norm import BatchNorm
from jaxml.nn.resnet import ResNet
from jaxml.nn.vgg import VGG, max_pool
from jaxml.ops.upsampling import bilinear_kernel
from jaxml.segmentation.per_pixel import PixelLoss, per_pixel
from jaxml.typing import Array, Float

OFFSETS = {32: 19, 16: 27, 8: 31}
"""Where the answer begins in the last upsampled map, with 100 pixels of padding."""


@export("segmentation.FCN", since="0.1")
class FCN(nn.Module):
    """FCN-32s, FCN-16s or FCN-8s.

    Attributes:
        backbone: a VGG without classifier; `first_padding` is 100 with "caffe" padding.
        num_classes: with the background.
        stride: 32, 16 or 8: pixels between the scores that are last upsampled.
        padding: "same", or "caffe".
        hidden: channels of the two convolutions that were dense; VGG's are 4096.
        dropout: rate after each of them.
        axis_name: mesh axis the batch is split over, or None.
        dtype: of computation; None takes the widest of input and parameters.
        param_dtype: of the parameters.
    """

    backbone: VGG
    num_classes: int
    stride: int = 8
    padding: str = "same"
    hidden: int = 4096
    dropout: float = 0.5
    axis_name: str | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], *, train: bool
    ) -> Float[Array, "batch height width classes"]:
        """Returns logits of every pixel.

        Raises:
            ValueError: if stride, padding and the backbone's padding do not go together.
        """
        self._check()
        caffe = self.padding == "caffe"
        height, width = images.shape[1:3]
        if not caffe:
            pads = ((0, 0), (0, -height % 32), (0, -width % 32), (0, 0))
            images = jnp.pad(images, pads)
        maps = self.backbone.pyramid(images, train=train)
        x = max_pool(maps["c5"])
        for i, size in enumerate((7, 1)):
            padding = 0 if caffe else None
            x = Conv(
                self.hidden,
                size,
                padding=padding,
                use_bias=True,
                name=f"fc{i + 6}",
                **self._kinds(),
            )(x)
            x = Dropout(self.dropout, axis_name=self.axis_name)(nn.relu(x), train=train)
        x = self._score(x, "score")
        factor = 32
        for name, offset in (("c4", 5), ("c3", 9)):
            if factor == self.stride:
                break
            factor //= 2
            x = Deconv(
                self.num_classes,
                2,
                4,
                0 if caffe else 3,
                use_bias=False,
                kernel_init=bilinear_kernel,
                name=f"up_{name}",
                **self._kinds(),
            )(x if caffe else _rimmed(x))
            skip = self._score(max_pool(maps[name]), f"score_{name}")
            offset = offset if caffe else 0
            x += skip[:, offset : offset + x.shape[1], offset : offset + x.shape[2]]
        if caffe:
            x, first = bilinear_upsample(x, factor), OFFSETS[factor]
        else:
            x, first = bilinear_upsample(_rimmed(x), factor, factor + factor // 2), 0
        return x[:, first : first + height, first : first + width]

    def _score(self, x: Array, name: str) -> Array:
        return Conv(
            self.num_classes,
            1,
            use_bias=True,
            kernel_init=nn.initializers.zeros,
            name=name,
            **self._kinds(),
        )(x)

    def _kinds(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "param_dtype": self.param_dtype}

    def _check(self) -> None:
        if self.stride not in OFFSETS:
            raise ValueError(f"stride must be 32, 16 or 8, got {self.stride}")
        wanted = {"same": 1, "caffe": 100}.get(self.padding)
        if wanted is None or self.backbone.first_padding != wanted:
            raise ValueError(
                'padding must be "same", with a backbone whose first_padding is 1, or '
                f'"caffe", with 100, got {self.padding!r} and '
                f"{self.backbone.first_padding}"
            )


def _rimmed(x: Array) -> Array:
    """The map with its rim repeated, so that upsampling does not fade out there."""
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), "edge")


@export("segmentation.DilatedFCN", since="0.1")
class DilatedFCN(nn.Module):
    """A score at every place of a dilated ResNet, interpolated; torchvision's `fcn_resnet`.

    Attributes:
        backbone: such as `resnet50(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4))`, whose
            last stage has a feature per 8 pixels.
        num_classes: with the background.
        hidden: channels of the head; torchvision's are a quarter of the last stage's.
        dropout: rate before the scores.
        axis_name: mesh axis the batch is split over, or None.
        dtype: of computation; None takes the widest of input and parameters.
        param_dtype: of the parameters.
    """

    backbone: ResNet
    num_classes: int
    hidden: int = 512
    dropout: float = 0.1
    axis_name: str | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], *, train: bool
    ) -> Float[Array, "batch height width classes"]:
        """Returns logits of every pixel."""
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = self.backbone.pyramid(images, train=train)["c5"]
        x = Conv(self.hidden, 3, name="conv", **kinds)(x)
        x = BatchNorm(axis_name=self.axis_name, name="norm", **kinds)(x, train=train)
        x = Dropout(self.dropout, axis_name=self.axis_name)(nn.relu(x), train=train)
        x = Conv(self.num_classes, 1, use_bias=True, name="score", **kinds)(x)
        shape = (*images.shape[:3], self.num_classes)
        return jax.image.resize(x, shape, "bilinear", antialias=False)


@export("segmentation.fcn_from_vgg", since="0.1")
def fcn_from_vgg(fcn_params: Params, vgg_params: Params) -> Params:
    """Parameters of an `FCN` whose backbone and hidden layers are those of a classifier.

    The dense kernels become convolutions ("convolutionalized", section 4.1); the scores
    stay as they are.

    Args:
        fcn_params: of an `FCN`, as `init` makes them.
        vgg_params: of a `VGG` with a classifier, of the same widths.

    Raises:
        ValueError: if a shape does not fit.
    """
    params = dict(fcn_params)
    params["backbone"] = {k: v for k, v in vgg_params.items() if "dense" not in k}
    for ours, theirs in (("fc6", "dense_0"), ("fc7", "dense_1")):
        layer = {
            name: vgg_params[theirs][name].reshape(params[ours][name].shape)
            if vgg_params[theirs][name].size == params[ours][name].size
            else vgg_params[theirs][name]
            for name in ("kernel", "bias")
        }
        params[ours] = layer
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (params, dict(fcn_params))]
    if shapes[0] != shapes[1]:
        raise ValueError(f"shapes must fit, got {shapes[0]} for {shapes[1]}")
    return params


@export("segmentation.fcn", since="0.1")
def fcn(
    model: FCN | DilatedFCN,
    *,
    loss: PixelLoss = pixel_cross_entropy,
    ignore_label: int | None = 255,
) -> Method:
    """The FCN method; a batch holds `image` and `label` [batch, height, width].

    Labels are classes 0, 1 ... of any integer type; `weight` and `mask` are as in `unet`.
    `predict` returns labels [batch, height, width]. Metrics: `loss`, `loss_at_chance` (ln
    classes) and `accuracy`. The paper's loss is the sum over pixels: give it as
    `partial(pixel_cross_entropy, average="images")`, with its learning rate of 1e-10.

    Args:
        model: its `axis_name` is the axis the batch is split over.
        loss: of (logits, labels), see `unet`.
        ignore_label: the label of pixels without an answer.
    """
    return per_pixel(
        model, loss=loss, ignore_label=ignore_label, axis_name=model.axis_name
    )
