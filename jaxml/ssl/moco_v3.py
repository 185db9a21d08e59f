"""MoCo v3: contrast with the keys of one batch, for vision transformers and ResNets.

A network maps each view to a query q, its slow copy maps each view to a key k, and a query
has to find the key of the other view of its image among the keys of the batch, of all
devices (u.v of unit vectors):

    ctr(q, k) = 2 t mean_i -log exp(q_i.k_i / t) / sum_j exp(q_i.k_j / t),
    L = ctr(q1, k2) + ctr(q2, k1).

There is no queue: with the large batches of a transformer it gains little. The factor 2 t
makes the size of the gradient independent of the temperature.

The trap of transformers is a dip in accuracy that no loss curve shows: the gradient of the
first layer spikes. So the random patch embedding stays as it is, with fixed sine-cosine
positions (`VisionTransformer(position="sincos")`). Frozen means here that the teacher's copy
stands in: no gradient reaches the parameter, and whatever an optimizer makes of it, weight
decay included, is undone.

Reference: Chen, Xie and He, "An Empirical Study of Training Self-Supervised Vision
Transformers", ICCV 2021, https://arxiv.org/abs/2104.02057 (equation 1, algorithm 1,
section 4.2; heads of section 5).
"""

import math
from collections.abc import Collection, Sequence
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from jaxml.export import export
from jaxml.losses.blockwise_similarity import Contrast
from jaxml.losses.noise_contrastive import info_nce_rows
from jaxml.method import Method, Metrics
from jaxml.nn.mlp import Mlp
from jaxml.parallel.collectives import axis_size
from jaxml.ssl.bootstrap import Pairs, bootstrapped
from jaxml.ssl.teacher import Momentum
from jaxml.typing import Array, Float


@export("ssl.moco_v3_loss", since="0.1")
def moco_v3_loss(
    q1: Float[Array, "batch dim"],
    q2: Float[Array, "batch dim"],
    k1: Float[Array, "batch dim"],
    k2: Float[Array, "batch dim"],
    temperature: float = 0.2,
    *,
    chunk: int = 1024,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Both directions of the contrast, times 2 t, added; 4 t log(batch) at chance.

    Args:
        q1: the queries of view 1, any scale.
        q2: of view 2.
        k1: the keys of view 1, any scale; they get no gradient.
        k2: of view 2.
        temperature: t > 0.
        chunk: queries and keys that are compared at once.
        axis_name: mesh axis the batch is split over, or None. The result is this
            device's mean; the mean over the devices is the loss of the global batch.

    Raises:
        ValueError: if the shapes differ or the temperature is not positive.

    >>> q = 9 * jnp.eye(4)
    >>> round(float(moco_v3_loss(q, q, 0 * q, 0 * q, 0.2)), 4)  # 0.8 log 4
    1.109
    """
    pairs = Pairs(q1, q2, k1, k2)
    directions = _contrasts(pairs, temperature, chunk, axis_name)
    return _loss(directions, temperature)


def _contrasts(
    pairs: Pairs, temperature: float, chunk: int, axis_name: str | None
) -> list[Contrast]:
    return [
        info_nce_rows(
            q,
            lax.stop_gradient(k),
            temperature=temperature,
            normalize=True,
            chunk=chunk,
            axis_name=axis_name,
        )
        for q, k in ((pairs.p1, pairs.z2), (pairs.p2, pairs.z1))
    ]


def _loss(directions: list[Contrast], temperature: float) -> Float[Array, ""]:
    first, second = (jnp.mean(rows.loss) for rows in directions)
    return 2 * temperature * (first + second)


@export("ssl.MoCoV3", since="0.1")
class MoCoV3(nn.Module):
    """Backbone, projector and predictor; every layer of the heads has batch norm.

    A head's last batch norm has neither scale nor bias.

    Attributes:
        backbone: module taking (images, train) to features [batch, features].
        projector_widths: of the projector's layers; (4096, 256) for ResNets.
        predictor_widths: of the predictor's, the last as before.
        normalize_prediction: batch-normalise what the predictor gives.
        axis_name: mesh axis over which the heads share batch statistics; give the
            backbone the same.
    """

    backbone: nn.Module
    projector_widths: Sequence[int] = (4096, 4096, 256)
    predictor_widths: Sequence[int] = (4096, 256)
    normalize_prediction: bool = True
    axis_name: str | None = None

    def setup(self) -> None:
        head = partial(Mlp, last_scale=False, last_bias=False, axis_name=self.axis_name)
        self.projector = head(self.projector_widths, normalize_last=True)
        self.predictor = head(
            self.predictor_widths, normalize_last=self.normalize_prediction
        )

    def project(
        self, images: Float[Array, "batch *image"], *, train: bool
    ) -> tuple[Float[Array, "batch features"], Float[Array, "batch dim"]]:
        """Returns (h, k): what the momentum encoder gives."""
        h = self.backbone(images, train=train)
        return h, self.projector(h, train=train)

    def __call__(
        self, images: Float[Array, "batch *image"], *, train: bool
    ) -> tuple[
        Float[Array, "batch features"],
        Float[Array, "batch dim"],
        Float[Array, "batch dim"],
    ]:
        """Returns (h, what is predicted from, q)."""
        h, z = self.project(images, train=train)
        return h, z, self.predictor(z, train=train)


@export("ssl.moco_v3", since="0.1")
def moco_v3(
    model: MoCoV3,
    *,
    momentum: Momentum = 0.99,
    temperature: float = 0.2,
    frozen: Collection[str] = ("patch_embed",),
) -> Method:
    """The MoCo v3 method; a batch holds two augmented images, `view1` and `view2`.

    `predict` returns the backbone's h [batch, features] of `image`. Model state:
    `encoder`, batch statistics, and `teacher`, parameters and statistics of the momentum
    encoder, which has no predictor. Metrics: the loss, the share of queries nearest to
    their key (`accuracy`), and what `jaxml.metrics.diagnose` reads: `loss_at_chance`,
    `hardest_share`, `feature_std` of h and of the projector (near 1 healthy, 0 collapsed)
    and its `pair_metrics`.

    Args:
        model: the network.
        momentum: of the momentum encoder, a number or a schedule; the paper's is
            `cosine_momentum(0.99, num_steps)`.
        temperature: 0.2 for transformers, 1 for ResNet-50.
        frozen: names in the path of parameters that stay as they were made; () trains
            all of them.

    Raises:
        ValueError: if the temperature is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"the temperature must be positive, got {temperature}")
    axis_name = model.axis_name

    def compare(pairs: Pairs) -> tuple[Float[Array, ""], Metrics]:
        directions = _contrasts(pairs, temperature, 1024, axis_name)
        found, hardest = (
            sum(jnp.mean(getattr(rows, name), dtype=jnp.float32) for rows in directions)
            / 2
            for name in ("found", "hardest")
        )
        count = len(pairs.p1) * axis_size(axis_name)
        return _loss(directions, temperature), {
            "loss_at_chance": jnp.float32(4 * temperature * math.log(count)),
            "accuracy": found,
            "hardest_share": hardest,
        }

    return bootstrapped(
        model, compare, momentum=momentum, frozen=frozen, axis_name=axis_name
    )
