"""Pooling whose windows are not all alike, and pooling that can be undone.

A spatial pyramid asks for n x n bins of an image of any size; bin i holds the pixels

    floor(i size / n) .. ceil((i + 1) size / n) - 1,

so that bins overlap where n does not divide the size. The trap is a window of fixed size
and stride, which differs from that wherever there is a remainder.

Reference: He et al., "Spatial Pyramid Pooling in Deep Convolutional Networks", ECCV 2014,
https://arxiv.org/abs/1406.4729 (section 2.3; Appendix A for the bins); Redmon and Farhadi,
"YOLOv3", 2018, https://arxiv.org/abs/1804.02767 (whose SPP variant keeps the size);
Noh et al., "Learning Deconvolution Network for Semantic Segmentation", ICCV 2015,
https://arxiv.org/abs/1505.04366 (section 3.2.1, unpooling).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from jaxml.export import export
from jaxml.typing import Array, Float, Int

Images = Float[Array, "batch height width channels"]


@export("ops.adaptive_max_pool", since="0.1")
def adaptive_max_pool(
    x: Images,
    bins: int | tuple[int, int],
    sizes: Int[Array, "batch 2"] | None = None,
) -> Float[Array, "batch rows columns channels"]:
    """The largest pixel in each of so many bins, which overlap where there is a remainder.

    Args:
        x: images, padded at the bottom and on the right if they differ in size.
        bins: (rows, columns) or one number for both.
        sizes: (height, width) of every image before it was padded, at least 1; may be
            traced, so that one program serves all sizes.

    Raises:
        ValueError: if there is no bin.

    >>> line = jnp.arange(5.0).reshape(1, 1, 5, 1)
    >>> adaptive_max_pool(line, (1, 2)).ravel().tolist()
    [2.0, 4.0]
    """
    counts = (bins, bins) if isinstance(bins, int) else bins
    if min(counts) < 1:
        raise ValueError(f"bins must be positive, got {bins}")
    for axis, count in enumerate(counts):
        size = jnp.full((len(x),), x.shape[1]) if sizes is None else sizes[:, axis]
        x = _largest_of_bins(x, size, count).swapaxes(1, 2)
    return x


def _largest_of_bins(x: Array, size: Array, count: int) -> Array:
    """Pools the second axis: [batch, count, rest, channels]."""
    bins, place = jnp.arange(count)[None], jnp.arange(x.shape[1])[None, None]
    start = bins * size[:, None] // count
    stop = -(-(bins + 1) * size[:, None] // count)
    inside = (place >= start[..., None]) & (place < stop[..., None])
    pick = lambda inside: jnp.max(  # noqa: E731
        jnp.where(inside[:, :, None, None], x, -jnp.inf), axis=1
    )
    return lax.map(pick, inside.swapaxes(0, 1)).swapaxes(0, 1)


@export("ops.spatial_pyramid_pool", since="0.1")
def spatial_pyramid_pool(
    x: Images,
    levels: Sequence[int] = (4, 2, 1),
    sizes: Int[Array, "batch 2"] | None = None,
) -> Float[Array, "batch features"]:
    """Maxima of n x n bins for every n, one after another: as long for any image.

    Args:
        x: images.
        levels: bins a side, of each level.
        sizes: as for `adaptive_max_pool`.

    Raises:
        ValueError: if there is no level, or one without bins.
    """
    if not levels:
        raise ValueError("levels must name at least one number of bins, got none")
    pooled = [adaptive_max_pool(x, n, sizes) for n in levels]
    return jnp.concatenate([p.reshape(len(x), -1) for p in pooled], axis=1)


@export("ops.yolo_spp", since="0.1")
def yolo_spp(
    x: Images, windows: Sequence[int] = (13, 9, 5)
) -> Float[Array, "batch height width all_channels"]:
    """Maxima of windows around every pixel, the widest first, and the image itself last.

    Raises:
        ValueError: unless windows are odd.
    """
    if any(n % 2 == 0 or n < 1 for n in windows):
        raise ValueError(f"windows must be odd, got {tuple(windows)}")
    around = [
        lax.reduce_window(x, -jnp.inf, lax.max, (1, n, n, 1), (1, 1, 1, 1), "SAME")
        for n in windows
    ]
    return jnp.concatenate([*around, x], axis=-1)


@export("ops.max_pool_with_indices", since="0.1")
def max_pool_with_indices(
    x: Images, window: int, *, stride: int | None = None, padding: int = 0
) -> tuple[
    Float[Array, "batch height_out width_out channels"],
    Int[Array, "batch height_out width_out channels"],
]:
    """Maxima of windows, and where they were: row times width plus column of the image.

    Args:
        x: images.
        window: side of the window.
        stride: between windows; None for the window's side.
        padding: pixels around the image, which are never the maximum.

    Raises:
        ValueError: if the padding is more than half a window, or no window fits.

    The first of several equal pixels counts, row by row.
    """
    stride = stride or window
    _, height, width, _ = x.shape
    if 2 * padding > window or min(height, width) + 2 * padding < window:
        raise ValueError(
            f"windows of {window} must fit, with a padding of at most half of that, got "
            f"{padding} around {x.shape}"
        )
    side = ((padding, padding), (padding, padding))
    padded = jnp.pad(x, ((0, 0), *side, (0, 0)), constant_values=-jnp.inf)
    pixel = jnp.arange(height * width).reshape(height, width)
    place = jnp.pad(pixel, side)
    rows, columns = (
        stride * ((n + 2 * padding - window) // stride) + 1 for n in (height, width)
    )
    best, where = None, None
    for i in range(window):
        for j in range(window):
            cut = slice(i, i + rows, stride), slice(j, j + columns, stride)
            value = padded[:, cut[0], cut[1]]
            at = jnp.broadcast_to(place[cut][None, ..., None], value.shape)
            if best is None or where is None:
                best, where = value, at
            else:
                more = (value > best) | jnp.isnan(value)
                best, where = jnp.where(more, value, best), jnp.where(more, at, where)
    assert best is not None
    assert where is not None
    return best, where


@export("ops.max_unpool", since="0.1")
def max_unpool(
    x: Images, indices: Int[Array, "batch height width channels"], size: tuple[int, int]
) -> Float[Array, "batch height_out width_out channels"]:
    """Puts maxima back where `max_pool_with_indices` found them, and zeros elsewhere.

    Args:
        x: maxima.
        indices: row times width plus column, in the image of that size.
        size: (height, width) of the result.

    Raises:
        ValueError: if there is not one index for every maximum.

    Where windows overlapped, one of the maxima that share a pixel stays.
    """
    if x.shape != indices.shape:
        raise ValueError(
            f"x and indices must have one shape, got {x.shape} and {indices.shape}"
        )
    batch, _, _, channels = x.shape

    def place(values: Array, at: Array) -> Array:
        empty = jnp.zeros_like(values, shape=(size[0] * size[1], channels))
        channel = jnp.arange(channels)[None]
        return empty.at[at, channel].set(values, mode="drop")

    flat = (a.reshape(batch, -1, channels) for a in (x, indices))
    return jax.vmap(place)(*flat).reshape(batch, *size, channels)
