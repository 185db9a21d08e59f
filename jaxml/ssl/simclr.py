"""SimCLR: agree on two views of an image, disagree with every other image of the batch.

An encoder gives each view a representation h, a small projection head maps h to z, and
NT-Xent pulls the z of two views of one image together and pushes all others apart:

    L = mean over the 2B views of  -log exp(s(i, j) / t) / sum_{k != i} exp(s(i, k) / t).

The head is thrown away afterwards: h, the layer before it, is what transfers. The trap is
batch normalisation per device: the positives then share statistics that the negatives do
not, and the loss can be lowered without learning; `axis_name` shares them over all devices.

Reference: Chen, Kornblith, Norouzi and Hinton, "A Simple Framework for Contrastive Learning
of Visual Representations", ICML 2020, https://arxiv.org/abs/2002.05709 (equation 1,
algorithm 1; head of section 4.2 with batch normalisation as in the authors' code).
"""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from jaxml.export import export
from jaxml.losses.contrastive import nt_xent_rows
from jaxml.method import Batch, Method, Metrics, ModelState, Params
from jaxml.metrics.collapse import feature_std, pair_metrics
from jaxml.nn.functional import apply_module, init_module
from jaxml.nn.mlp import Mlp
from jaxml.parallel.collectives import axis_size
from jaxml.typing import Array, Float, PRNGKeyArray


@export("ssl.SimCLR", since="0.1")
class SimCLR(nn.Module):
    """Backbone and projection head.

    Attributes:
        backbone: module taking (images, train) to features [batch, features].
        widths: widths of the head's layers; the last is the size of z.
        axis_name: mesh axis over which the head shares batch statistics; give the
            backbone the same.
    """

    backbone: nn.Module
    widths: Sequence[int] = (2048, 128)
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], *, train: bool
    ) -> tuple[Float[Array, "batch features"], Float[Array, "batch dim"]]:
        """Returns (h, z)."""
        h = self.backbone(images, train=train)
        head = Mlp(
            self.widths, normalize_last=True, last_bias=False, axis_name=self.axis_name
        )
        return h, head(h, train=train)


@export("ssl.simclr", since="0.1")
def simclr(model: SimCLR, *, temperature: float = 0.1) -> Method:
    """The SimCLR method; a batch holds two augmented images, `view1` and `view2`.

    `predict` returns h [batch, features] of `image`. Metrics: the loss, the share of
    views that find their partner (`accuracy`), and what `jaxml.metrics.diagnose` reads:
    `feature_std` of h and of z (near 1 healthy, 0 collapsed), `pair_metrics` of z,
    `loss_at_chance` and `hardest_share`.

    Args:
        model: backbone and head; its `axis_name` is the axis the batch is split over.
        temperature: of NT-Xent; the paper's best on ImageNet is 0.1, on CIFAR-10 0.5.
    """

    def init(key: PRNGKeyArray, batch: Batch) -> tuple[Params, ModelState]:
        return init_module(model, key, batch["view1"], train=True)

    def loss(
        params: Params, model_state: ModelState, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[ModelState, Metrics]]:
        del key  # the views are drawn before
        # One pass over both views, as in the authors' code: they share statistics.
        views = jnp.concatenate([batch["view1"], batch["view2"]])
        (h, z), model_state = apply_module(
            model, params, model_state, views, train=True
        )
        z1, z2 = jnp.split(z, 2)
        rows = nt_xent_rows(z1, z2, temperature, model.axis_name)
        value, others = (
            jnp.mean(rows.loss),
            2 * len(z1) * axis_size(model.axis_name) - 1,
        )
        metrics = {
            "loss": value,
            "loss_at_chance": jnp.float32(math.log(others)),
            "accuracy": jnp.mean(rows.found, dtype=jnp.float32),
            "hardest_share": jnp.mean(rows.hardest),
            "feature_std_h": feature_std(h, axis_name=model.axis_name),
            "feature_std_z": feature_std(z, axis_name=model.axis_name),
            **pair_metrics(z1, z2, axis_name=model.axis_name),
        }
        return value, (model_state, metrics)

    def predict(
        params: Params, model_state: ModelState, batch: Batch
    ) -> Float[Array, "batch features"]:
        (h, _), _ = apply_module(
            model, params, model_state, batch["image"], train=False
        )
        return h

    return Method(init, loss, predict)
