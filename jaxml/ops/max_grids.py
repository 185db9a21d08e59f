"""The largest pixel of every bin of a grid whose bins are whole pixels.

    out[n, i, j, c] = max { image[y, x, c] : y in rows[n, i], x in columns[n, j] }

Bins differ in size, so a few grids at a time are looked at pixel by pixel, for as long as
the largest bin among them needs. The gradient goes to where the maximum was found, which
only the forward pass of a differentiation keeps. The trap is the bin without a pixel: its
value is zero by definition, not minus infinity.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import sequential_vmap

from jaxml.ops.grids import BINS_PER_LOOP, split
from jaxml.typing import Array, Float, Int


def max_grids(
    features: Float[Array, "height width channels"],
    rows: Int[Array, "grids rows 2"],
    columns: Int[Array, "grids columns 2"],
) -> Float[Array, "grids rows columns channels"]:
    """The largest pixel of every bin; 0 where there is none.

    Args:
        features: one image.
        rows: first row of a bin and the one after its last.
        columns: alike.
    """
    if not rows.size or not columns.size:
        shape = (*rows.shape[:2], columns.shape[1], features.shape[-1])
        return jnp.zeros(shape, features.dtype)
    # Inside shard_map, the gradient of what devices share is the sum of theirs.
    features = features + jnp.zeros_like(rows, features.dtype, shape=())
    return _largest(features, rows, columns)


@jax.custom_vjp
def _largest(features: Array, rows: Array, columns: Array) -> Array:
    return _find_largest(features, rows, columns, want_place=False)[0]


def _largest_forward(
    features: Array, rows: Array, columns: Array
) -> tuple[Array, tuple[Array, Array]]:
    out, place = _find_largest(features, rows, columns, want_place=True)
    assert place is not None
    # The backward pass knows shape and type without keeping the features.
    return out, (place, jnp.zeros_like(features, shape=(*features.shape[:2], 0)))


def _largest_backward(
    residuals: tuple[Array, Array], gradient: Array
) -> tuple[Array, None, None]:
    place, like = residuals
    height, width, _ = like.shape
    channels = gradient.shape[-1]

    @sequential_vmap
    def pull(place: Array, gradient: Array) -> Array:
        wide = jnp.promote_types(like.dtype, jnp.float32)
        total = jnp.zeros_like(gradient, wide, shape=(height * width, channels))
        channel = jnp.arange(channels).reshape(1, 1, 1, -1)
        # Empty bins have no place, and a place off the list is dropped.
        return total.at[place, channel].add(gradient.astype(wide), mode="drop")

    total = pull(place, gradient).reshape(height, width, channels)
    return total.astype(like.dtype), None, None


_largest.defvjp(_largest_forward, _largest_backward)


def _find_largest(
    features: Array, rows: Array, columns: Array, *, want_place: bool
) -> tuple[Array, Array | None]:
    """Values, and where they were found among the pixels; past the last for none."""

    def find(limit: int | None, *arrays: Array) -> tuple[Array, Array | None]:
        features, rows, columns = arrays
        blocks, n = split((rows, columns), limit)
        found = lax.map(partial(_find_block, features, want_place), blocks)
        return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:n], found)

    limit = max(BINS_PER_LOOP // (rows.shape[1] * columns.shape[1]), 1)
    on_cpu, elsewhere = (sequential_vmap(partial(find, m)) for m in (limit, None))
    return lax.platform_dependent(
        features, rows, columns, cpu=on_cpu, default=elsewhere
    )


def _find_block(
    features: Array, want_place: bool, block: tuple[Array, Array]
) -> tuple[Array, Array | None]:
    height, width, channels = features.shape
    table = jnp.asarray(features).reshape(-1, channels)
    rows, columns = block
    num_rows, num_columns = (jnp.max(a[..., 1] - a[..., 0]) for a in block)
    shape = (*rows.shape[:2], columns.shape[1], channels)

    def look(t: Array, best: tuple[Array, Array | None]) -> Any:
        value, place = best
        y = (rows[..., 0] + t // num_columns)[:, :, None]
        x = (columns[..., 0] + t % num_columns)[:, None, :]
        inside = (y < rows[:, :, None, 1]) & (x < columns[:, None, :, 1])
        pixel = jnp.where(inside, y * width + x, 0)
        new = table.at[pixel].get(mode="promise_in_bounds")
        more = inside[..., None] & (new > value)
        if place is not None:
            place = jnp.where(more, pixel[..., None], place)
        return jnp.where(more, new, value), place

    value = jnp.full_like(features, -jnp.inf, shape=shape)
    place = jnp.full_like(rows, height * width, shape=shape) if want_place else None
    value, place = lax.fori_loop(0, num_rows * num_columns, look, (value, place))
    return jnp.where(value == -jnp.inf, 0, value), place
