"""An image as a sequence of flat patches, and back: a permutation of its pixels.

    patches[b, i * columns + j] = image[b, i s : (i + 1) s, j s : (j + 1) s].ravel()

Patches follow one another row by row, and within a patch rows, columns and channels.

The trap is the order within a patch: weights of a convolution that reads patches, and a
decoder that paints them, must agree with it.
"""

import jax.numpy as jnp

from jaxml.export import export
from jaxml.typing import Array, Float


@export("ops.patchify", since="0.1")
def patchify(
    images: Float[Array, "batch height width channels"], side: int
) -> Float[Array, "batch patches pixels"]:
    """Flat patches of `side` x `side` pixels, row by row.

    Raises:
        ValueError: if the images are not whole patches.

    >>> patchify(jnp.arange(8.0).reshape(1, 2, 4, 1), 2)[0].tolist()
    [[0.0, 1.0, 4.0, 5.0], [2.0, 3.0, 6.0, 7.0]]
    """
    height, width, channels = images.shape[1:]
    if side < 1 or height % side or width % side or 0 in (height, width):
        raise ValueError(
            f"images must be whole patches of {side} x {side}, got {images.shape}"
        )
    rows, columns = height // side, width // side
    x = images.reshape(-1, rows, side, columns, side, channels)
    return x.swapaxes(2, 3).reshape(-1, rows * columns, side * side * channels)


@export("ops.unpatchify", since="0.1")
def unpatchify(
    patches: Float[Array, "batch patches pixels"], grid: tuple[int, int], side: int
) -> Float[Array, "batch height width channels"]:
    """The inverse of `patchify` for a grid of (rows, columns).

    Raises:
        ValueError: if the patches are not as many as the grid has, or not of that side.
    """
    rows, columns = grid
    channels, rest = divmod(patches.shape[2], side * side)
    if patches.shape[1] != rows * columns or rest or not channels:
        raise ValueError(
            f"patches must be {rows} x {columns} of {side} x {side} pixels, "
            f"got {patches.shape}"
        )
    x = jnp.asarray(patches).reshape(-1, rows, columns, side, side, channels)
    return x.swapaxes(2, 3).reshape(-1, rows * side, columns * side, channels)
