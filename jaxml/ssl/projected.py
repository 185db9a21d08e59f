"""Backbone and head: the network of every method that compares unit vectors.

    h = backbone(image),    z = unit(head(h))

h is what transfers, z is what the loss sees. The heads of the papers, as `widths`:

    InstDisc, InvaSpread, MoCo v1, CMC    (128,)           linear
    MoCo v2                               (2048, 128)      MLP
    SwAV                                  (2048, 128)      MLP, with `normalize=True`

The trap is to evaluate z: the head throws away what the loss does not need.

Reference: Wu, Xiong, Yu and Lin, "Unsupervised Feature Learning via Non-Parametric
Instance Discrimination", CVPR 2018, https://arxiv.org/abs/1805.01978 (section 3.1); Chen
et al., https://arxiv.org/abs/2003.04297; Caron et al., https://arxiv.org/abs/2006.09882.
"""

from collections.abc import Sequence

import flax.linen as nn

from jaxml.export import export
from jaxml.nn.mlp import Mlp
from jaxml.ops.similarity import unit
from jaxml.typing import Array, Float


@export("ssl.Projected", since="0.1")
class Projected(nn.Module):
    """A backbone with a projection head onto the unit sphere.

    Attributes:
        backbone: module taking (images, train) to features [batch, features].
        widths: of the head's layers; the last is the size of z.
        normalize: batch-normalise the head's hidden layers.
        axis_name: mesh axis the batch is split over; give the backbone the same.
    """

    backbone: nn.Module
    widths: Sequence[int] = (128,)
    normalize: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch *image"], *, train: bool
    ) -> tuple[Float[Array, "batch features"], Float[Array, "batch dim"]]:
        """Returns (h, z)."""
        h = self.backbone(images, train=train)
        head = Mlp(
            self.widths,
            normalize=self.normalize,
            axis_name=self.axis_name,
            name="head",
        )
        return h, unit(head(h, train=train))
