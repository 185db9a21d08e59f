"""What the methods of this family share: a network of pixels, trained by a loss of pixels.

A network may see more than it answers: where its logits are smaller than the image, they
are those of the image's middle, and labels and weights are cropped to them.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxml.export import export
from jaxml.losses.cross_entropy import pixel_cross_entropy
from jaxml.losses.label_map import kept, share
from jaxml.method import Batch, Method, Metrics, ModelState, Params
from jaxml.nn.functional import apply_module, init_module
from jaxml.typing import Array, Float, Int, PRNGKeyArray

PixelLoss = Callable[..., Float[Array, ""]]
"""(logits, labels, axis_name=...) -> loss, with `weights` and `mask` if the batch has any."""


def per_pixel(
    model: nn.Module,
    *,
    loss: PixelLoss = pixel_cross_entropy,
    ignore_label: int | None = 255,
    axis_name: str | None = None,
) -> Method:
    """A method that classifies pixels; the builders of this family say what it is."""

    def init(key: PRNGKeyArray, batch: Batch) -> tuple[Params, ModelState]:
        return init_module(model, key, batch["image"], train=True)

    def total(
        params: Params, model_state: ModelState, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[ModelState, Metrics]]:
        logits, model_state = apply_module(
            model,
            params,
            model_state,
            batch["image"],
            train=True,
            rngs={"dropout": key},
        )
        size = (logits.shape[1], logits.shape[2])
        labels = center_crop(jnp.asarray(batch["label"]).astype(jnp.int32), size)
        options: dict[str, Any] = {"ignore_label": ignore_label}
        if "weight" in batch:
            options["weights"] = center_crop(batch["weight"], size)
        mask = batch.get("mask")
        if mask is not None:
            options["mask"] = mask = center_crop(mask, size) if mask.ndim > 1 else mask
        value = loss(logits, labels, axis_name=axis_name, **options)
        keep = kept(labels, mask, ignore_label)
        right = (jnp.argmax(logits, axis=-1) == labels) & keep
        accuracy = share(right.astype(jnp.float32), keep.astype(jnp.float32), axis_name)
        return value, (
            model_state,
            {
                "loss": value,
                "loss_at_chance": jnp.float32(math.log(logits.shape[-1])),
                "accuracy": accuracy,
            },
        )

    def predict(
        params: Params, model_state: ModelState, batch: Batch
    ) -> Int[Array, "batch height width"]:
        logits, _ = apply_module(
            model, params, model_state, batch["image"], train=False
        )
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)

    return Method(init, total, predict)


@export("segmentation.center_crop", since="0.1")
def center_crop(x: Array, size: tuple[int, int]) -> Array:
    """The middle of maps [batch, height, width, ...]; an odd rest comes off at the end.

    Reference: Ronneberger, Fischer and Brox, "U-Net", MICCAI 2015,
    https://arxiv.org/abs/1505.04597 (figure 1, "copy and crop").

    Raises:
        ValueError: if the maps are smaller than the crop.

    >>> center_crop(jnp.arange(5.0).reshape(1, 1, 5), (1, 2)).tolist()
    [[[1.0, 2.0]]]
    """
    if x.ndim < 3 or x.shape[1] < size[0] or x.shape[2] < size[1]:
        raise ValueError(
            f"maps must have two axes of space, at least {size}, got shape {x.shape}"
        )
    top, left = ((n - m) // 2 for n, m in zip(x.shape[1:3], size, strict=True))
    return x[:, top : top + size[0], left : left + size[1]]
