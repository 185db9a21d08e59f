"""Attention over an image: each head's weights beside the picture they belong to."""

import numpy as np
from matplotlib import colormaps
from PIL import Image

from jaxml.draw.canvas import PathLike
from jaxml.draw.image_sheet import save_image_sheet
from jaxml.export import export
from jaxml.typing import Array, Float


@export("draw.save_attention", since="0.1")
def save_attention(
    path: PathLike,
    images: Float[Array, "batch height width channels"],
    weights: Float[Array, "batch heads rows columns"],
) -> Image.Image:
    """One row per image: itself, then what every head looks at, from black to white.

    Args:
        path: where to write, or None.
        images: of 1 or 3 channels, in [0, 1].
        weights: not negative, one for each patch, such as `ssl.class_attention` gives;
            each head's greatest is white.

    Raises:
        ValueError: if patches do not tile the images, or there are other numbers of them.

        save_attention("attention.png", images, class_attention(vit, params, images))
    """
    images, weights = np.asarray(images), np.asarray(weights, np.float32)
    (n, height, width, channels), (*_, rows, columns) = images.shape, weights.shape
    if len(weights) != n or height % rows or width % columns:
        raise ValueError(
            "every image must have weights of patches that tile it, got images "
            f"{images.shape} and weights {weights.shape}"
        )
    most = np.maximum(weights.max(axis=(2, 3), keepdims=True), 1e-30)
    heat = colormaps["magma"](weights / most)[..., :3]
    heat = heat.repeat(height // rows, axis=2).repeat(width // columns, axis=3)
    pictures = np.broadcast_to(
        images, (n, height, width, 3 if channels == 1 else channels)
    )
    sheet = np.concatenate([pictures[:, None], heat], axis=1)
    heads = [f"head {i + 1}" for i in range(weights.shape[1])]
    flat = sheet.reshape(-1, *sheet.shape[2:]).clip(0, 1)
    return save_image_sheet(path, flat, column_titles=["image", *heads])
