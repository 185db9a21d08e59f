"""A heat map over a photograph: where a network looks, or expects an object."""

import numpy as np
from matplotlib import colormaps
from PIL import Image

from jaxml.draw.canvas import PathLike, save_image
from jaxml.draw.photograph import photograph
from jaxml.export import export
from jaxml.ops.color import Number
from jaxml.typing import Array, Float


@export("draw.save_heat_map", since="0.1")
def save_heat_map(
    path: PathLike,
    image: Array,
    heat: Float[Array, "rows columns"],
    *,
    low: Number | None = None,
    high: Number | None = None,
    opacity: Number = 0.75,
    scale: int | None = None,
) -> Image.Image:
    """Heat from dark violet over orange to yellow; the colder, the more of the image.

    Args:
        path: where to write, or None.
        image: [height, width] or [height, width, 1 or 3], floats in [0, 1] or uint8.
        heat: of any size, spread over the whole image. NaN shows the image alone.
        low: what is cold, by default the least.
        high: what is hot, by default the most.
        opacity: of the hottest colour, in [0, 1].
        scale: by how much pixels are magnified; by default small images are.

    Raises:
        ValueError: if the image is none, the heat is empty or nowhere finite, or the
            opacity is not in [0, 1].
    """
    picture, _ = photograph(image, scale)
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must be in [0, 1], got {opacity}")
    heat = np.asarray(heat, np.float32)
    finite = np.isfinite(heat)
    if not finite.any():
        raise ValueError(f"heat must be finite somewhere, got shape {heat.shape}")
    low = float(heat[finite].min()) if low is None else low
    high = float(heat[finite].max()) if high is None else high
    level = np.clip((np.where(finite, heat, low) - low) / max(high - low, 1e-12), 0, 1)
    small = Image.fromarray(np.float32(level))
    level = np.asarray(small.resize(picture.size, Image.Resampling.BILINEAR))
    colour = 255 * colormaps["inferno"](0.15 + 0.85 * level)[..., :3]
    alpha = (opacity * np.sqrt(level))[..., None]
    # The image in grey, so that its colours are not taken for heat.
    grey = np.asarray(picture.convert("L"), np.float32)[..., None]
    pixels = np.round((1 - alpha) * grey + alpha * colour).astype(np.uint8)
    picture = Image.fromarray(pixels)
    if path is not None:
        save_image(picture, path)
    return picture
