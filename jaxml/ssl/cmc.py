"""CMC: what several senses have in common. Views of one scene find each other.

Every view v of an image (its lightness and its colours, for example) has an encoder of its
own. The embedding of one view has to find the image in a memory bank of another view's
embeddings, among embeddings of other images, by NCE with a constant Z as in InstDisc:

    L(V_a, V_b) = L^{a -> b} + L^{b -> a}

summed over all pairs of views (`graph="full"`) or over those with the first (`"core"`).
Without banks the negatives are the rest of the batch, by InfoNCE.

The traps: there is one bank for each view, and an anchor is compared with that of the
other view; views must be scaled alike (L / 50 - 1 and ab / 110); and the features of all
views together are what is evaluated.

Reference: Tian, Krishnan and Isola, "Contrastive Multiview Coding", ECCV 2020,
https://arxiv.org/abs/1906.05849 (equations 2 to 9, section 3.4; appendix for the banks).
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxml.export import export
from jaxml.losses.noise_contrastive import info_nce
from jaxml.method import Batch, Method, Metrics, ModelState, Params
from jaxml.metrics.collapse import feature_std, pair_metrics
from jaxml.nn.functional import apply_module, init_module
from jaxml.ops.lab import rgb_to_lab
from jaxml.parallel.collectives import axis_size
from jaxml.ssl.instdisc import instance_nce, nce_at_chance
from jaxml.ssl.memory_bank import init_bank, update_bank
from jaxml.ssl.projected import Projected
from jaxml.typing import Array, Float, PRNGKeyArray

Split = Callable[[Array], Sequence[Array]]
"""Images -> the views of each."""


@export("ssl.split_lab", since="0.1")
def split_lab(
    images: Float[Array, "batch height width 3"],
) -> tuple[Float[Array, "batch height width 1"], Float[Array, "batch height width 2"]]:
    """Lightness and colours of RGB images, both about in [-1, 1]."""
    lab = rgb_to_lab(images)
    return lab[..., :1] / 50 - 1, lab[..., 1:] / 110


@export("ssl.CMC", since="0.1")
class CMC(nn.Module):
    """An encoder for every view.

    Attributes:
        backbones: one module for each view, (view, train) -> features [batch, features].
        dim: size of the embeddings.
        split: images -> views.
        axis_name: mesh axis the batch is split over; give the backbones the same.
    """

    backbones: Sequence[nn.Module]
    dim: int = 128
    split: Split = split_lab
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], *, train: bool
    ) -> tuple[Float[Array, "batch features"], Float[Array, "views batch dim"]]:
        """Returns the features of all views, side by side, and the unit embeddings.

        Raises:
            ValueError: if there are not as many views as backbones, or only one.
        """
        views = self.split(images)
        if not len(views) == len(self.backbones) >= 2:
            raise ValueError(
                "there must be a backbone for each of at least two views, got "
                f"{len(self.backbones)} for {len(views)}"
            )
        features, embeddings = [], []
        for backbone, view in zip(self.backbones, views, strict=True):
            encoder = Projected(backbone, (self.dim,), axis_name=self.axis_name)
            h, z = encoder(view, train=train)
            features.append(h)
            embeddings.append(z)
        return jnp.concatenate(features, axis=-1), jnp.stack(embeddings)


@export("ssl.cmc", since="0.1")
def cmc(
    model: CMC,
    num_images: int | None = None,
    *,
    graph: Literal["full", "core"] = "full",
    temperature: float = 0.07,
    num_noise: int = 16384,
    momentum: float = 0.5,
) -> Method:
    """The CMC method; a batch holds one augmented image, `view`, and its `index`.

    `predict` returns h [batch, features of all views] of `image`. Model state: `encoder`,
    the batch statistics, and with banks `bank1`, `bank2` ... [num_images, dim], `log_z`
    [views, views] and `has_z`. Under `jaxml.compose.accumulated` their rules are
    `changed_rows` and `average`. Metrics: the loss, and what
    `jaxml.metrics.diagnose` reads: `feature_std` of h and of the first view's embedding
    (near 1 healthy, 0 collapsed), `pair_metrics` of the first two views' and
    `loss_at_chance`.

    Args:
        model: encoders of the views.
        num_images: size of the data set, for banks; None contrasts within the batch, and
            needs no `index`.
        graph: "full" contrasts all pairs of views, "core" those with the first.
        temperature: t > 0.
        num_noise: images drawn against each.
        momentum: weight of what a bank holds when it is written.

    Raises:
        ValueError: if a number is out of range or the graph unknown.
    """
    if num_images is not None and num_images < 2:
        raise ValueError(f"num_images must be at least 2, got {num_images}")
    if not temperature > 0:
        raise ValueError(f"the temperature must be positive, got {temperature}")
    if graph not in ("full", "core"):
        raise ValueError(f"graph must be 'full' or 'core', got {graph!r}")
    axis_name, count = model.axis_name, len(model.backbones)
    banks = [f"bank{v + 1}" for v in range(count)]
    pairs = [
        (a, b)
        for a in range(count)
        for b in range(count)
        if a != b and (graph == "full" or 0 in (a, b))
    ]

    def init(key: PRNGKeyArray, batch: Batch) -> tuple[Params, ModelState]:
        model_key, *keys = jax.random.split(key, count + 1)
        params, stats = init_module(model, model_key, batch["view"], train=True)
        if num_images is None:
            return params, {"encoder": stats}
        made = [init_bank(key, num_images, model.dim) for key in keys]
        return params, {
            "encoder": stats,
            "log_z": jnp.zeros((count, count)),
            "has_z": jnp.zeros(()),
            **dict(zip(banks, made, strict=True)),
        }

    def contrast(
        z: Array, batch: Batch, model_state: ModelState, key: PRNGKeyArray
    ) -> tuple[Array, ModelState]:
        """The loss, and what changes in the model state."""
        if num_images is None:
            each = [
                info_nce(z[a], z[b], temperature=temperature, axis_name=axis_name)
                for a, b in pairs
            ]
            return jnp.sum(jnp.stack(each)), {}
        losses, log_z = [], model_state["log_z"]
        for i, (a, b) in enumerate(pairs):
            value, constant = instance_nce(
                z[a],
                batch["index"],
                model_state[banks[b]],
                jax.random.fold_in(key, i),
                model_state["log_z"][a, b],
                model_state["has_z"],
                num_noise=num_noise,
                temperature=temperature,
                axis_name=axis_name,
            )
            losses.append(value)
            log_z = log_z.at[a, b].set(constant)
        written = [
            update_bank(model_state[bank], batch["index"], own, momentum, axis_name)
            for bank, own in zip(banks, z, strict=True)
        ]
        changed = dict(zip(banks, written, strict=True))
        changed |= {"log_z": log_z, "has_z": jnp.ones(())}
        return jnp.sum(jnp.stack(losses)), changed

    def at_chance(num_local: int) -> float:
        """The loss of a pair of views where all embeddings are one."""
        if num_images is not None:
            return nce_at_chance(num_noise)
        return math.log(num_local * axis_size(axis_name))

    def loss(
        params: Params, model_state: ModelState, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[ModelState, Metrics]]:
        (h, z), stats = apply_module(
            model, params, model_state["encoder"], batch["view"], train=True
        )
        value, changed = contrast(z, batch, model_state, key)
        return value, (
            {**model_state, "encoder": stats, **changed},
            {
                "loss": value,
                "loss_at_chance": jnp.float32(len(pairs) * at_chance(z.shape[1])),
                "feature_std_h": feature_std(h, axis_name=axis_name),
                "feature_std_z": feature_std(z[0], axis_name=axis_name),
                **pair_metrics(z[0], z[1], axis_name=axis_name),
            },
        )

    def predict(
        params: Params, model_state: ModelState, batch: Batch
    ) -> Float[Array, "batch features"]:
        (h, _), _ = apply_module(
            model, params, model_state["encoder"], batch["image"], train=False
        )
        return h

    return Method(init, loss, predict)
