"""Several crops of every image in one pass, for SwAV and DINO."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxml.method import ModelState, Params
from jaxml.nn.functional import apply_module
from jaxml.typing import Array, Float


def apply_to_crops(
    model: nn.Module,
    params: Params,
    stats: ModelState,
    crops: Float[Array, "batch crops *image"],
    **options: Any,
) -> tuple[list[Float[Array, "crops batch dim"]], ModelState]:
    """The outputs of training mode, which share batch statistics over the crops.

    The crops of an image stand side by side, so that on any number of devices a crop has
    the same place in the global batch, and with it the same noise of dropout.
    """
    images = crops.reshape(-1, *crops.shape[2:])
    outputs, stats = apply_module(model, params, stats, images, train=True, **options)
    shape = crops.shape[:2]
    return [jnp.moveaxis(x.reshape(*shape, x.shape[-1]), 1, 0) for x in outputs], stats
