"""Overlap-tile: a large image answered in tiles that fit together without a seam.

A tile of the answer needs a larger tile of the image, with a margin for the context that
valid convolutions eat. Tiles of the answer lie side by side, tiles of the image overlap,
and what the margin lacks at the rim is the image mirrored. Nothing of the answer depends on
where the tiles lie, if the margin is at least the network's.

The trap is pooling: it sees a grid, so tiles must start at multiples of the network's
stride for an answer that is the same as in one piece; `tile` must be such a multiple.

Reference: Ronneberger, Fischer and Brox, "U-Net: Convolutional Networks for Biomedical
Image Segmentation", MICCAI 2015, https://arxiv.org/abs/1505.04597 (figure 2).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxml.export import export
from jaxml.typing import Array, Float


@export("segmentation.predict_tiles", since="0.1")
def predict_tiles(
    network: Callable[[Array], Array],
    images: Float[Array, "batch height width channels"],
    tile: int,
    margin: int,
    *,
    at_once: int = 1,
) -> Float[Array, "batch height width outputs"]:
    """What a network says of every pixel of images of any size; jittable.

    Args:
        network: tiles [n, tile + 2 margin, tile + 2 margin, channels] to answers
            [n, tile, tile, outputs]; larger answers are cropped at their centre, so that
            a network with "same" padding can be given as it is.
        images: in memory; tiles are answered one after another.
        tile: side of a tile of the answer.
        margin: pixels around it that the network sees as well.
        at_once: tiles per call.

    Raises:
        ValueError: if `tile` is not positive, `margin` negative, or an answer smaller
            than a tile.

        logits = predict_tiles(lambda x: model.apply(variables, x, train=False), images,
                               388, 92)
    """
    if tile < 1 or margin < 0 or at_once < 1:
        raise ValueError(
            "tile and at_once must be positive and margin not negative, "
            f"got {tile}, {at_once} and {margin}"
        )
    batch, height, width, _ = images.shape
    rows, columns = -(-height // tile), -(-width // tile)
    below, right = rows * tile - height, columns * tile - width
    pads = ((0, 0), (margin, margin + below), (margin, margin + right), (0, 0))
    padded = jnp.pad(images, pads, "reflect")
    side = tile + 2 * margin

    def answer(place: Array) -> Array:
        image, row, column = place
        start = (image, row * tile, column * tile, 0)
        seen = jax.lax.dynamic_slice(padded, start, (1, side, side, padded.shape[3]))
        return seen[0]

    def check(outputs: Array) -> Array:
        least = min(outputs.shape[1:3])
        if least < tile:
            raise ValueError(
                f"the network must answer for {tile} of {side} pixels, got {least}"
            )
        top, left = ((n - tile) // 2 for n in outputs.shape[1:3])
        return outputs[:, top : top + tile, left : left + tile]

    places = jnp.stack(
        jnp.meshgrid(*map(jnp.arange, (batch, rows, columns)), indexing="ij"), axis=-1
    ).reshape(-1, 3)
    extra = -len(places) % at_once
    places = jnp.concatenate([places, places[:1].repeat(extra, axis=0)])
    groups = places.reshape(-1, at_once, 3)
    answers = jax.lax.map(lambda g: check(network(jax.vmap(answer)(g))), groups)
    answers = answers.reshape(-1, tile, tile, answers.shape[-1])[
        : batch * rows * columns
    ]
    whole = answers.reshape(batch, rows, columns, tile, tile, -1)
    whole = whole.transpose(0, 1, 3, 2, 4, 5).reshape(
        batch, rows * tile, columns * tile, -1
    )
    return whole[:, :height, :width]
