"""Deformable convolution: every tap of the kernel moves by an offset of its own.

A small convolution predicts, for every place and tap, by how much the tap is to move and,
in v2, how much it is to count; the pixels are then sampled and multiplied as ever:

    y(p) = sum_k w_k m_k(p) x(p + p_k + dp_k(p)).

What a block of places reads is made, multiplied by the kernel and forgotten, so that it
stays in cache, and made again for the gradients. The traps: offsets are (dy, dx), tap by
tap, row by row of the kernel; and the border is black, fading within one pixel, not
clamped as in RoIAlign. At whole offsets the gradient is one-sided.

Reference: Dai et al., "Deformable Convolutional Networks", ICCV 2017,
https://arxiv.org/abs/1703.06211 (equations 2 to 4); Zhu et al., "Deformable ConvNets v2",
CVPR 2019, https://arxiv.org/abs/1811.11168 (equation 1).
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import sequential_vmap

from jaxml.export import export
from jaxml.ops.columns import multiply_columns
from jaxml.ops.grids import (
    Axis,
    Block,
    Places,
    pull_block,
    read_block,
    sample_grids,
    split,
)
from jaxml.ops.sampling import Taps, check_form, neighbors
from jaxml.typing import Array, Float

PLACES_PER_BLOCK = 2048
"""Fewer cost more: the kernel is packed anew for the product of each block."""
CHANNELS_PER_PRODUCT = 256
"""Taps are read and multiplied a few at a time, so that what is read stays in cache."""
PLACES_PER_GRADIENT = 256
"""Whose columns, of 3 x 3 taps and 256 channels, are as large as a core's second cache."""


@export("ops.deform_conv2d", since="0.1")
def deform_conv2d(
    inputs: Float[Array, "batch height width channels"],
    offsets: Float[Array, "batch height_out width_out moves"],
    kernel: Float[Array, "rows columns group_channels features"],
    *,
    mask: Float[Array, "batch height_out width_out taps"] | None = None,
    bias: Float[Array, "features"] | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | None = None,
    dilation: int | tuple[int, int] = 1,
    offset_groups: int = 1,
    form: str = "gather",
) -> Float[Array, "batch height_out width_out features"]:
    """Cross-correlates images with a kernel whose taps move, v1 or, with a mask, v2.

    Args:
        inputs: images.
        offsets: in pixels; channels are [offset_groups, rows, columns, (dy, dx)].
        kernel: its third axis has channels / groups entries, which tells the groups.
        mask: what each tap is multiplied by; channels are [offset_groups, rows, columns].
        bias: added to every place.
        stride: pixels between outputs, one number or (rows, columns), also for the next.
        padding: zeros around the image; None for what keeps the size at stride 1 with an
            odd kernel.
        dilation: pixels between the kernel's taps.
        offset_groups: parts of the channels whose taps move together.
        form: "gather", or "matmul" for a TPU.

    Raises:
        ValueError: if shapes do not fit one another.

    >>> image, kernel = jnp.arange(4.0).reshape(1, 1, 4, 1), jnp.ones((1, 1, 1, 1))
    >>> half = jnp.full((1, 1, 4, 2), jnp.array([0.0, 0.5]))
    >>> deform_conv2d(image, half, kernel)[0, 0, :, 0].tolist()
    [0.5, 1.5, 2.5, 1.5]
    """
    check_form(form)
    places = _sampling_grid(
        inputs.shape, kernel.shape[:2], _pair(stride), padding, _pair(dilation)
    )
    taps = math.prod(kernel.shape[:2])
    _check(inputs, offsets, kernel, mask, places.shape[:2], offset_groups)
    batch, height, width, _ = inputs.shape
    shape = (batch, *places.shape[:2], offset_groups, taps)
    at = jnp.asarray(offsets, jnp.promote_types(offsets.dtype, jnp.float32))
    at = at.reshape(*shape, 2) + places[None, :, :, None]
    # A block is places, taps and groups: what one place reads lies as the kernel does.
    at = at.swapaxes(3, 4).reshape(batch, -1, taps, offset_groups, 2)
    rows = neighbors(at[..., 0], height, "zeros")
    columns = neighbors(at[..., 1], width, "zeros")
    if mask is not None:
        weight = mask.reshape(shape).swapaxes(3, 4).reshape(*at.shape[:-1], 1)
        rows = rows._replace(weight=rows.weight * weight)
    if form == "matmul":
        out = _by_products(jnp.asarray(inputs), kernel, rows, columns)
    else:
        x, kernel = _varying_like(inputs, kernel), _varying_like(kernel, inputs)
        weights = rows.weight, columns.weight
        out = _convolve(x, kernel, *weights, (rows.pixel * width, columns.pixel))
    out = out.reshape(batch, *places.shape[:2], -1).astype(inputs.dtype)
    return out if bias is None else out + bias[None, None, None].astype(out.dtype)


def _varying_like(x: Array, other: Array) -> Array:
    """Inside shard_map, the gradient of what devices share is the sum of theirs."""
    return x + jnp.zeros_like(other, x.dtype, shape=())


def _by_products(inputs: Array, kernel: Array, rows: Taps, columns: Taps) -> Array:
    channels = inputs.shape[-1]
    taps, groups = rows.pixel.shape[2:4]

    def image(args: tuple[Array, Taps, Taps]) -> Array:
        x, *axes = args
        parts = []
        for g, part in enumerate(jnp.split(x, groups, axis=-1)):
            grids = (jax.tree.map(lambda a, g=g: a[:, :, g], taps) for taps in axes)
            single = (jax.tree.map(lambda a: a.reshape(-1, 1, 1, 2), t) for t in grids)
            row, column = (Axis(Taps(*taps)) for taps in single)
            parts.append(sample_grids(part, row, column, form="matmul"))
        return jnp.concatenate(parts, axis=-1).reshape(-1, taps * channels)

    return multiply_columns(lax.map(image, (inputs, rows, columns)), kernel)


Pixels = tuple[Array, Array]


@jax.custom_vjp
def _convolve(
    x: Array, kernel: Array, rows: Array, columns: Array, pixels: Pixels
) -> Array:
    """Images [batch, height, width, channels]; taps [batch, places, taps, groups, 2]."""
    return _forward(x, kernel, rows, columns, pixels)[0]


def _forward(
    x: Array, kernel: Array, rows: Array, columns: Array, pixels: Pixels
) -> tuple[Array, tuple[Array, ...]]:
    def image(limit: int | None, kernel: Array, x: Array, *taps: Array) -> Array:
        table = _table(x, taps[0].shape[2])
        blocks, n = split(taps, limit)
        step = max(CHANNELS_PER_PRODUCT // x.shape[-1], 1)
        each = kernel.reshape(1, -1, *kernel.shape[2:])
        wide = jnp.promote_types(x.dtype, jnp.float32)

        def multiply(taps: tuple[Array, ...]) -> Array:
            total = jnp.zeros((), wide)
            for k in range(0, each.shape[1], step):
                some = tuple(a[:, k : k + step] for a in taps)
                read = read_block(table, _block(some)).reshape(len(some[0]), -1)
                total += multiply_columns(read, each[:, k : k + step], wide)
            return total

        out = lax.map(multiply, blocks)
        return out.reshape(-1, out.shape[-1])[:n]

    def on_cpu(kernel: Array, *arrays: Array) -> Array:
        f = partial(image, PLACES_PER_BLOCK, kernel)
        return lax.map(lambda a: f(*a), arrays)

    elsewhere = jax.vmap(partial(image, None), (None, *[0] * 5))
    out = lax.platform_dependent(
        kernel,
        x,
        rows,
        columns,
        *pixels,
        cpu=sequential_vmap(on_cpu),
        default=elsewhere,
    )
    return out, (x, kernel, rows, columns, *pixels)


def _backward(
    residuals: tuple[Array, ...], gradient: Array
) -> tuple[Array, Array, Array, Array, None]:
    kernel = residuals[1]
    wide = jnp.promote_types(kernel.dtype, jnp.float32)

    def image(
        limit: int | None, kernel: Array, x: Array, g: Array, *taps: Array
    ) -> tuple[Any, ...]:
        table = _table(x, taps[0].shape[2])
        blocks, n = split((taps, g), limit)

        def pull(
            sums: tuple[jax.Array, ...], block: tuple[tuple[Array, ...], Array]
        ) -> tuple[tuple[jax.Array, ...], tuple[Array, Array]]:
            d_table, d_kernel = sums
            taps, g = block
            read = read_block(table, _block(taps)).reshape(len(g), -1)
            # The product is linear in either factor.
            _, transpose = jax.vjp(multiply_columns, read, kernel)
            d_read, more = transpose(g.astype(read.dtype))
            shape = (-1, 1, 1, table.shape[1])
            grids = _block(taps)._replace(gradient=d_read.reshape(shape))
            d_table, weights = pull_block(table, d_table, grids)
            return (d_table, d_kernel + more.astype(wide)), weights

        start = tuple(jnp.zeros_like(g, wide, shape=a.shape) for a in (table, kernel))
        (d_table, d_kernel), weights = lax.scan(pull, start, blocks)
        d_rows, d_columns = (w.reshape(-1, *taps[0].shape[1:])[:n] for w in weights)
        return d_table.reshape(x.shape), d_kernel, d_rows, d_columns

    def on_cpu(kernel: Array, *arrays: Array) -> tuple[Array, ...]:
        def step(
            total: jax.Array, arrays: tuple[Array, ...]
        ) -> tuple[jax.Array, tuple[Array, ...]]:
            d_x, d_kernel, *weights = image(PLACES_PER_GRADIENT, kernel, *arrays)
            return total + d_kernel, (d_x, *weights)

        start = jnp.zeros_like(gradient, wide, shape=kernel.shape)
        d_kernel, (d_x, *weights) = lax.scan(step, start, arrays)
        return d_x, d_kernel, *weights

    def elsewhere(kernel: Array, *arrays: Array) -> tuple[Array, ...]:
        f = jax.vmap(partial(image, None), (None, *[0] * 6))
        d_x, d_kernel, *weights = f(kernel, *arrays)
        return d_x, jnp.sum(d_kernel, axis=0), *weights

    x, kernel, *taps = residuals
    d_x, d_kernel, d_rows, d_columns = lax.platform_dependent(
        kernel, x, gradient, *taps, cpu=sequential_vmap(on_cpu), default=elsewhere
    )
    return d_x.astype(x.dtype), d_kernel.astype(kernel.dtype), d_rows, d_columns, None


_convolve.defvjp(_forward, _backward)


def _table(x: Array, groups: int) -> jax.Array:
    """Pixels as rows, a row for every group of channels."""
    return jnp.asarray(x).reshape(-1, x.shape[-1] // groups)


def _block(taps: tuple[Array, ...]) -> Block:
    """Every place, tap and group as a grid of one bin."""
    groups = taps[0].shape[2]
    rows, columns, row, column = (a.reshape(-1, 1, 1, 2) for a in taps)
    group = jnp.arange(len(row)) % groups
    row, column = row * groups + group[:, None, None, None], column * groups
    slots = jnp.zeros((len(row), 1, 1), jnp.int32)
    return Block(rows, columns, Places(row, column, slots, None, None))


def _sampling_grid(
    shape: tuple[int, ...],
    size: tuple[int, ...],
    stride: tuple[int, int],
    padding: int | tuple[int, int] | None,
    dilation: tuple[int, int],
) -> Array:
    """Where the taps are before they move: [height_out, width_out, taps, 2]."""
    if padding is None:
        rows, columns = (d * (k - 1) // 2 for d, k in zip(dilation, size, strict=True))
    else:
        rows, columns = _pair(padding)
    at = []
    for n, k, s, p, d in zip(
        shape[1:3], size, stride, (rows, columns), dilation, strict=True
    ):
        count = (n + 2 * p - d * (k - 1) - 1) // s + 1
        if count < 1:
            raise ValueError(
                f"the kernel must fit in the padded image, got {k} taps {d} apart on an "
                f"axis of {n} pixels with a padding of {p}"
            )
        start = s * jnp.arange(count, dtype=jnp.float32) - p
        at.append(start[:, None] + d * jnp.arange(k, dtype=jnp.float32)[None])
    y, x = at
    grid = jnp.broadcast_arrays(y[:, None, :, None], x[None, :, None, :])
    return jnp.stack(grid, axis=-1).reshape(len(y), len(x), -1, 2)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def _check(
    inputs: Array,
    offsets: Array,
    kernel: Array,
    mask: Array | None,
    places: tuple[int, ...],
    offset_groups: int,
) -> None:
    rows, columns, each, features = kernel.shape
    batch, _, _, channels = inputs.shape
    groups, rest = divmod(channels, max(each, 1))
    if rest or not groups or features % groups:
        raise ValueError(
            "groups must divide the channels of input and output, got a kernel of shape "
            f"{kernel.shape} for {channels} channels"
        )
    if offset_groups < 1 or channels % offset_groups:
        raise ValueError(
            f"offset_groups must divide {channels} channels, got {offset_groups}"
        )
    taps = offset_groups * rows * columns
    if offsets.shape != (batch, *places, 2 * taps):
        raise ValueError(
            f"offsets must have the shape {(batch, *places, 2 * taps)}, "
            f"got {offsets.shape}"
        )
    if mask is not None and mask.shape != (batch, *places, taps):
        raise ValueError(
            f"mask must have the shape {(batch, *places, taps)}, got {mask.shape}"
        )
