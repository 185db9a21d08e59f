"""BYOL: predict what a slow copy of the network makes of the other view.

The online network maps a view to a projection z and a prediction p, the target network, a
moving average of the online one, maps the other view to a projection z'. Each p is pulled
towards the z' of the other view, which gets no gradient, and there are no negatives:

    L = |unit(p1) - unit(z2')|^2 + |unit(p2) - unit(z1')|^2
      = (2 - 2 cos(p1, z2')) + (2 - 2 cos(p2, z1')).

The target's momentum rises to one on a cosine, from 0.996 (`cosine_momentum`). The paper
trains with `lars`, a rate of 0.2 batch / 256, weight decay 1.5e-6, warm-up and cosine, and
the two views differ in blur and solarisation (`jaxml.ops.byol_views`).

The traps: the two directions are added; their mean halves the step. Without the predictor
the features collapse. The target moves once per optimizer step, after it.

Reference: Grill et al., "Bootstrap Your Own Latent: A New Approach to Self-Supervised
Learning", NeurIPS 2020, https://arxiv.org/abs/2006.07733 (equation 2 and its symmetric sum,
section 3.3, appendix B; heads of section 3.3).
"""

from collections.abc import Sequence

import flax.linen as nn

from jaxml.export import export
from jaxml.method import Method, Metrics
from jaxml.nn.mlp import Mlp
from jaxml.ssl.bootstrap import Pairs, bootstrapped
from jaxml.ssl.simsiam import negative_cosine
from jaxml.ssl.teacher import Momentum
from jaxml.typing import Array, Float


@export("ssl.byol_loss", since="0.1")
def byol_loss(
    p1: Float[Array, "batch dim"],
    p2: Float[Array, "batch dim"],
    z1: Float[Array, "batch dim"],
    z2: Float[Array, "batch dim"],
) -> Float[Array, ""]:
    """Both directions of 2 - 2 cos, added; mean over the batch, in [0, 8].

    Args:
        p1: the online network's prediction of view 1, any scale.
        p2: of view 2.
        z1: the target network's projection of view 1, any scale; it gets no gradient.
        z2: of view 2.

    Raises:
        ValueError: if the shapes differ (broadcasting would hide the mistake).

    >>> x = jnp.array([[3.0, 4.0]])
    >>> [round(float(byol_loss(x, x, y, y)), 4) for y in (x, -x)]
    [0.0, 8.0]
    """
    return 4 + 2 * (negative_cosine(p1, z2) + negative_cosine(p2, z1))


@export("ssl.BYOL", since="0.1")
class BYOL(nn.Module):
    """Backbone, projector and predictor; either head is a perceptron with batch norm.

    Attributes:
        backbone: module taking (images, train) to features [batch, features].
        projector_widths: of the projector's layers; the last is the size of z.
        predictor_widths: of the predictor's, the last as before; () has no predictor.
        axis_name: mesh axis over which the heads share batch statistics; give the
            backbone the same.
    """

    backbone: nn.Module
    projector_widths: Sequence[int] = (4096, 256)
    predictor_widths: Sequence[int] = (4096, 256)
    axis_name: str | None = None

    def setup(self) -> None:
        self.projector = Mlp(self.projector_widths, axis_name=self.axis_name)
        self.predictor = Mlp(self.predictor_widths, axis_name=self.axis_name)

    def project(
        self, images: Float[Array, "batch *image"], *, train: bool
    ) -> tuple[Float[Array, "batch features"], Float[Array, "batch dim"]]:
        """Returns (h, z): what the target network gives."""
        h = self.backbone(images, train=train)
        return h, self.projector(h, train=train)

    def __call__(
        self, images: Float[Array, "batch *image"], *, train: bool
    ) -> tuple[
        Float[Array, "batch features"],
        Float[Array, "batch dim"],
        Float[Array, "batch dim"],
    ]:
        """Returns (h, z, p)."""
        h, z = self.project(images, train=train)
        return h, z, self.predictor(z, train=train)


@export("ssl.byol", since="0.1")
def byol(model: BYOL, *, momentum: Momentum = 0.996) -> Method:
    """The BYOL method; a batch holds two augmented images, `view1` and `view2`.

    `predict` returns the online backbone's h [batch, features] of `image`. Model state:
    `encoder`, the online network's batch statistics, and `teacher`, parameters and
    statistics of the target network, which has no predictor. Metrics: the loss, and for
    `jaxml.metrics.diagnose` `feature_std` of h and z (near 1 healthy, 0 collapsed) and
    `pair_metrics` of z.

    Args:
        model: the network.
        momentum: of the target network, a number or a schedule; the paper's is
            `cosine_momentum(0.996, num_steps)`.
    """

    def compare(pairs: Pairs) -> tuple[Float[Array, ""], Metrics]:
        return byol_loss(*pairs), {}

    return bootstrapped(model, compare, momentum=momentum, axis_name=model.axis_name)
