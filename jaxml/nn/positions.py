"""Where a patch lies in its picture, as a vector that is added to it.

    sin-cos    [sin(x w), cos(x w), sin(y w), cos(y w)],    w_i = temperature^(-i / f)
    learned    a parameter per place, for one grid; resampled bicubically for another
    relative   a logit per head and distance (dy, dx), added to those of attention

The trap: tokens before the grid, such as a class token's, have a position of their own,
which is not part of the picture and must not be resampled with it.

Reference: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021,
https://arxiv.org/abs/2010.11929 (learned; section 3.2 for other grids); Chen et al.
(MoCo v3), ICCV 2021, https://arxiv.org/abs/2104.02057 (fixed sine-cosine); Bao et al.,
"BEiT: BERT Pre-Training of Image Transformers", ICLR 2022,
https://arxiv.org/abs/2106.08254 (relative, with three more for a class token).
"""

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxml.export import export
from jaxml.ops.resize import resize_image
from jaxml.typing import Array, Float, Int


@export("nn.sincos_positions", since="0.1")
def sincos_positions(
    height: int, width: int, features: int, *, temperature: float = 10000.0
) -> Float[np.ndarray, "tokens features"]:
    """Fixed embedding of a grid's positions, row by row, float32 in [-1, 1].

    With f = features / 4 frequencies w_i = temperature^(-i / f), position (y, x) becomes
    [sin(x w), cos(x w), sin(y w), cos(y w)].

    Raises:
        ValueError: if `features` is not a multiple of four.

    >>> sincos_positions(2, 2, 4)[0].tolist()
    [0.0, 1.0, 0.0, 1.0]
    """
    if features % 4:
        raise ValueError(f"features must be a multiple of four, got {features}")
    frequencies = temperature ** (-np.arange(features // 4) / (features // 4))
    y, x = np.mgrid[:height, :width].reshape(2, -1, 1) * frequencies
    parts = [np.sin(x), np.cos(x), np.sin(y), np.cos(y)]
    return np.concatenate(parts, axis=1).astype(np.float32)


@export("nn.resize_positions", since="0.1")
def resize_positions(
    positions: Float[Array, "tokens features"],
    grid: tuple[int, int],
    new_grid: tuple[int, int],
    *,
    antialias: bool = True,
) -> Float[Array, "new_tokens features"]:
    """Positions of one grid of patches resampled to another.

    Args:
        positions: row by row; tokens before the grid, such as a class token's, stay.
        grid: rows and columns of `positions`.
        new_grid: rows and columns of the result.
        antialias: Keys' cubic, a = -1/2, widened when shrinking; False has that of
            PyTorch's plain interpolation, a = -3/4, with the edges repeated.

    Raises:
        ValueError: if there are fewer positions than the grid has.

    >>> resize_positions(jnp.ones((1 + 4, 8)), (2, 2), (3, 5)).shape
    (16, 8)
    """
    others = len(positions) - grid[0] * grid[1]
    if others < 0:
        raise ValueError(
            f"positions must be at least {grid[0]} x {grid[1]}, got {len(positions)}"
        )
    first, rest = positions[:others], positions[others:]
    picture = rest.reshape(*grid, -1)
    if antialias:
        picture = resize_image(jnp.asarray(picture), new_grid, method="bicubic")
    else:
        rows, columns = map(_cubic_weights, grid, new_grid)
        highest = lax.Precision.HIGHEST
        picture = jnp.einsum(
            "oh,pw,hwf->opf", rows, columns, picture, precision=highest
        )
    rest = picture.reshape(-1, rest.shape[-1]).astype(positions.dtype)
    return jnp.concatenate([first, rest])


@export("nn.relative_positions", since="0.1")
def relative_positions(
    height: int, width: int, *, class_token: bool = True
) -> Int[np.ndarray, "tokens tokens"]:
    """Which row of a table of biases belongs to a query (row) and a key (column).

    A grid has (2 height - 1) (2 width - 1) distances query - key. Behind them stand the
    class token's three: to a patch, from a patch, to itself.

    >>> relative_positions(1, 2).tolist()
    [[5, 3, 3], [4, 1, 0], [4, 2, 1]]
    """
    y, x = np.mgrid[:height, :width].reshape(2, -1)
    rows, columns = (p[:, None] - p[None] + n - 1 for p, n in ((y, height), (x, width)))
    places = rows * (2 * width - 1) + columns
    if not class_token:
        return places
    last = (2 * height - 1) * (2 * width - 1)
    places = np.pad(places, ((1, 0), (1, 0)), constant_values=last)
    places[1:, 0], places[0, 0] = last + 1, last + 2
    return places


def _cubic_weights(size: int, new_size: int) -> Float[np.ndarray, "new_size size"]:
    """The matrix of a cubic convolution whose input is continued by its edges."""
    center = (np.arange(new_size) + 0.5) * size / new_size - 0.5
    weights = np.zeros((new_size, size))
    for tap in range(-1, 3):
        place = np.floor(center) + tap
        x = np.abs(center - place)
        near = (1.25 * x - 2.25) * x * x + 1
        far = -0.75 * (((x - 5) * x + 8) * x - 4)
        place = np.clip(place, 0, size - 1).astype(int)
        weights[np.arange(new_size), place] += np.where(x < 1, near, far)
    return weights.astype(np.float32)
