"""Rotation: tell by which quarter turn an image was turned.

Every image goes into the batch four times, turned by 0, 90, 180 and 270 degrees, and a
classifier of the features says which is which:

    L = mean over images and turns r of  -log P(r | turned(x, r)).

To do that a network must know what is up in an object. The traps: interpolation marks a
turned image, so turns are exact permutations of pixels; all four must be in one batch, or
batch norm sees different statistics for different turns; and pictures with corners or
marks that tell the turn, or digits such as 6 and 9, teach nothing.

Reference: Gidaris, Singh and Komodakis, "Unsupervised Representation Learning by
Predicting Image Rotations", ICLR 2018, https://arxiv.org/abs/1803.07728 (equations 1 to 3,
section 3.1).
"""

import math

import flax.linen as nn
import jax.numpy as jnp
import optax

from jaxml.export import export
from jaxml.method import Batch, Method, Metrics, ModelState, Params
from jaxml.metrics.collapse import feature_std
from jaxml.nn.dense import Dense
from jaxml.nn.functional import apply_module, init_module
from jaxml.typing import Array, Float, PRNGKeyArray


@export("ssl.quarter_turns", since="0.1")
def quarter_turns(
    images: Float[Array, "batch side side channels"],
) -> Float[Array, "turned side side channels"]:
    """All images turned by 0, 90, 180 and 270 degrees counter-clockwise: [4 batch, ...].

    >>> x = jnp.arange(4.0).reshape(1, 2, 2, 1)
    >>> quarter_turns(x)[1, :, :, 0].tolist()
    [[1.0, 3.0], [0.0, 2.0]]
    """
    if images.shape[1] != images.shape[2]:
        raise ValueError(f"images must be square, got {images.shape}")
    return jnp.concatenate([jnp.rot90(images, r, axes=(1, 2)) for r in range(4)])


@export("ssl.Rotation", since="0.1")
class Rotation(nn.Module):
    """Backbone and a classifier of turns.

    Attributes:
        backbone: module taking (images, train) to features [batch, features].
        axis_name: mesh axis the batch is split over; give the backbone the same.
    """

    backbone: nn.Module
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], *, train: bool
    ) -> tuple[Float[Array, "batch features"], Float[Array, "batch 4"]]:
        """Returns features and logits of the four turns."""
        h = self.backbone(images, train=train)
        return h, Dense(4, name="turns")(h)


@export("ssl.rotation", since="0.1")
def rotation(model: Rotation) -> Method:
    """The rotation method; a batch holds one augmented image, `view`.

    `predict` returns the features [batch, features] of `image`. Metrics: the loss, which
    is ln 4 for uniform answers (`loss_at_chance`); the share of turns that are told right
    (`accuracy`); and `feature_std` of the features (near 1 healthy, 0 collapsed).
    """

    def init(key: PRNGKeyArray, batch: Batch) -> tuple[Params, ModelState]:
        return init_module(model, key, batch["view"], train=True)

    def loss(
        params: Params, model_state: ModelState, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[ModelState, Metrics]]:
        del key  # the view is drawn before
        view = batch["view"]
        (h, logits), model_state = apply_module(
            model, params, model_state, quarter_turns(view), train=True
        )
        logits, turns = logits.astype(jnp.float32), jnp.repeat(jnp.arange(4), len(view))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, turns)
        value, is_right = jnp.mean(losses), jnp.argmax(logits, axis=1) == turns
        return value, (
            model_state,
            {
                "loss": value,
                "loss_at_chance": jnp.float32(math.log(4)),
                "accuracy": jnp.mean(is_right, dtype=jnp.float32),
                "feature_std": feature_std(h, axis_name=model.axis_name),
            },
        )

    def predict(
        params: Params, model_state: ModelState, batch: Batch
    ) -> Float[Array, "batch features"]:
        (h, _), _ = apply_module(
            model, params, model_state, batch["image"], train=False
        )
        return h

    return Method(init, loss, predict)
