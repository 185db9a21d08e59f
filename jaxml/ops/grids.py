"""Weighted sums of pixels on small grids: what pooling a region of interest comes to.

A region is a grid of bins, a bin the mean of samples, a sample the weighted sum of two
pixels per axis. Rows and columns separate, so that a region needs no more than the pixels
and weights of its rows and those of its columns:

    out[n, i, j] = sum_ab R[n, i, a] C[n, j, b] image[r[n, i, a], c[n, j, b]].

On a CPU all that matters is that what is read stays in cache: a few regions at a time,
with the gradient of the image added up in place. Autodiff would start from an image of
zeros for each tap, hence a gradient of its own here, and with it loops that go on for as
long as the largest region of a few needs. The trap is a batch: under `vmap` such loops
would copy what they carry for each image, so images are taken one after another where
there are loops.

The traps of a `custom_vjp` hold: no pure forward mode. The reference is the definition in
`jaxml.ops.roi`; `experiments/bench/dense_ops.py` has the figures.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import sequential_vmap

from jaxml.ops.sampling import Taps, dense
from jaxml.typing import Array, Float, Int

T = TypeVar("T")

BINS_PER_BLOCK = 512
"""Whose pixels fit a core's second cache."""
BINS_PER_LOOP = 64
"""Fewer where there is a loop, since all grids of a block wait for the largest."""
UNROLLED = 4
"""Samples of a bin up to which their loop is written out."""
LINES_PER_PRODUCT = 1024
"""Rows of bins at a time in the form of matrices, each as large as a row of the image."""


class Axis(NamedTuple):
    """One axis of many grids.

    Attributes:
        taps: pixels and weights, [grids, bins, samples, taps].
        samples: how many of each grid's samples count, [grids]; None for all of them. The
            weights of the others must be zero.
    """

    taps: Taps
    samples: Int[Array, "grids"] | None = None

    def scaled(self, stride: int) -> "Axis":
        """The axis of rows that are so many places apart in a list of pixels."""
        return self._replace(taps=self.taps._replace(pixel=self.taps.pixel * stride))


def sample_grids(
    features: Float[Array, "height width channels"],
    rows: Axis,
    columns: Axis,
    *,
    form: str = "gather",
) -> Float[Array, "grids rows columns channels"]:
    """Every grid's bins, summed over their samples and taps.

    Args:
        features: one image.
        rows: of the grids.
        columns: of the grids.
        form: "gather" or "matmul", as in `jaxml.ops.bilinear_sample`.
    """
    _, width, channels = features.shape
    if form == "matmul":
        return _by_products(features, rows.taps, columns.taps)
    table = jnp.asarray(features).reshape(-1, channels)
    return sample_table(table, rows.scaled(width), columns)


def sample_slots(
    features: Float[Array, "height width channels slots"],
    rows: Axis,
    columns: Axis,
    *,
    form: str = "gather",
) -> Float[Array, "grids slots channels"]:
    """Grids whose every bin lies at a place of its own and reads channels of its own.

    Args:
        features: one image; slot b is what bin b reads.
        rows: of the bins, with as many bins as slots.
        columns: of the bins, likewise.
        form: "gather" or "matmul".
    """
    _, width, channels, num = features.shape
    if form == "matmul":
        return _by_slot_products(features, rows.taps, columns.taps)
    grids = rows.taps.pixel.shape[0]

    def single(axis: Axis) -> Axis:  # every bin a grid
        taps = jax.tree.map(lambda a: a.reshape(-1, 1, *a.shape[2:]), axis.taps)
        samples = axis.samples
        return Axis(taps, None if samples is None else jnp.repeat(samples, num))

    table = jnp.asarray(features).reshape(-1, channels, num)
    slots = jnp.tile(jnp.arange(num), grids)[:, None, None]
    out = sample_table(table, single(rows).scaled(width), single(columns), slots)
    return out.reshape(grids, num, channels)


def sample_table(
    table: Float[Array, "pixels channels *slots"],
    rows: Axis,
    columns: Axis,
    slots: Int[Array, "grids rows columns"] | None = None,
) -> Float[Array, "grids rows columns channels"]:
    """The same from a list of pixels; a row's tap plus a column's is a place in it.

    Args:
        table: pixels, each with its channels, or with several slots of them.
        rows: of the grids; what a tap reads is the sum of both axes' `pixel`.
        columns: of the grids.
        slots: which slot each bin reads; None where there are none.
    """
    if slots is None:
        shape = (*rows.taps.pixel.shape[:2], columns.taps.pixel.shape[1])
        slots = jnp.zeros(shape, jnp.int32)
    if not slots.size:
        return jnp.zeros((*slots.shape, table.shape[1]), table.dtype)
    # Inside shard_map, the gradient of what devices share is the sum of theirs.
    table, row, column = _varying_alike(table, rows.taps.weight, columns.taps.weight)
    return _sample(
        table,
        row,
        column,
        Places(
            rows.taps.pixel, columns.taps.pixel, slots, rows.samples, columns.samples
        ),
    )


def _varying_alike(*arrays: Array) -> tuple[Array, ...]:
    zeros = [jnp.zeros_like(a, jnp.float32, shape=()) for a in arrays]
    zero = sum(zeros, jnp.zeros(()))
    return tuple(a + zero.astype(a.dtype) for a in arrays)


def _by_products(features: Array, rows: Taps, columns: Taps) -> Array:
    """Rows of matrices that are zero but at the taps, added up over samples."""
    dtype = jnp.promote_types(features.dtype, rows.weight.dtype)
    wide, high = features.astype(dtype), lax.Precision.HIGHEST

    def grid(taps: tuple[Taps, Taps]) -> Array:
        row, column = _matrices(taps, features.shape)
        lines = jnp.einsum("ih,hwc->iwc", row, wide, precision=high)
        return jnp.einsum("jw,iwc->ijc", column, lines, precision=high)

    size = max(LINES_PER_PRODUCT // rows.pixel.shape[1], 1)
    out = lax.map(grid, (rows, columns), batch_size=size)
    return out.astype(features.dtype)


def _by_slot_products(features: Array, rows: Taps, columns: Taps) -> Array:
    dtype = jnp.promote_types(features.dtype, rows.weight.dtype)
    wide, high = features.astype(dtype), lax.Precision.HIGHEST

    def grid(taps: tuple[Taps, Taps]) -> Array:
        row, column = _matrices(taps, features.shape)
        lines = jnp.einsum("bh,hwcb->bwc", row, wide, precision=high)
        return jnp.einsum("bw,bwc->bc", column, lines, precision=high)

    size = max(LINES_PER_PRODUCT // rows.pixel.shape[1], 1)
    out = lax.map(grid, (rows, columns), batch_size=size)
    return out.astype(features.dtype)


def _matrices(taps: tuple[Taps, Taps], sizes: Sequence[int]) -> tuple[Array, Array]:
    row, column = taps
    return jnp.sum(dense(row, sizes[0]), 1), jnp.sum(dense(column, sizes[1]), 1)


class Places(NamedTuple):
    """Which pixels and slots grids read, and how many samples of either axis count."""

    rows: Array
    columns: Array
    slots: Array
    num_rows: Array | None
    num_columns: Array | None


class Block(NamedTuple):
    """Some grids: weights [grids, bins, samples, taps], places alike, and gradients."""

    row_weight: Array
    column_weight: Array
    places: Places
    gradient: Array | None = None

    @property
    def trips(self) -> tuple[int | Array, int | Array]:
        """How many samples count on either axis."""
        rows, columns = self.places.num_rows, self.places.num_columns
        return (
            self.row_weight.shape[2] if rows is None else jnp.max(rows),
            self.column_weight.shape[2] if columns is None else jnp.max(columns),
        )

    def sample(self, p: int | Array, q: int | Array) -> "Block":
        """The p-th sample of the rows and the q-th of the columns alone."""
        pick = partial(lax.dynamic_slice_in_dim, slice_size=1, axis=2)
        places = self.places._replace(
            rows=pick(self.places.rows, p), columns=pick(self.places.columns, q)
        )
        return self._replace(
            row_weight=pick(self.row_weight, p),
            column_weight=pick(self.column_weight, q),
            places=places,
        )


@jax.custom_vjp
def _sample(table: Array, rows: Array, columns: Array, places: Places) -> Array:
    return _forward(table, rows, columns, places)[0]


def _forward(
    table: Array, rows: Array, columns: Array, places: Places
) -> tuple[Array, tuple[Array, Block]]:
    block = Block(rows, columns, places)

    def read(table: Array, block: Block, limit: int | None) -> Array:
        blocks, n = split(block, limit)
        out = lax.map(partial(read_block, table), blocks)
        return out.reshape(-1, *out.shape[2:])[:n]

    run = _by_platform(read, block, table.shape[1])
    return run(table, block), (table, block)


def _backward(
    residuals: tuple[Array, Block], gradient: Array
) -> tuple[Array, Array, Array, None]:
    table, block = residuals
    block = block._replace(gradient=gradient)

    def pull(
        table: jax.Array, block: Block, limit: int | None
    ) -> tuple[Array, Array, Array]:
        blocks, n = split(block, limit)
        wide = jnp.promote_types(table.dtype, jnp.float32)
        # Zeros "like" the gradient: inside shard_map they differ over the devices as the
        # sum will.
        start = jnp.zeros_like(gradient, wide, shape=table.shape)
        d_table, weights = lax.scan(partial(pull_block, table), start, blocks)
        d_rows, d_columns = (w.reshape(-1, *w.shape[2:])[:n] for w in weights)
        return d_table.astype(table.dtype), d_rows, d_columns

    return *_by_platform(pull, block, table.shape[1])(table, block), None


_sample.defvjp(_forward, _backward)


def _by_platform(
    f: Callable[..., Any], block: Block, channels: int
) -> Callable[..., Any]:
    """`f` some grids at a time on a CPU, and with all of them at once elsewhere."""
    bins = block.row_weight.shape[1] * block.column_weight.shape[1]
    most = BINS_PER_BLOCK if _is_unrolled(block) else BINS_PER_LOOP
    most = max(most * 256 // channels, most)
    on_cpu = sequential_vmap(partial(f, limit=max(most // bins, 1)))
    elsewhere: Callable[..., Any] = partial(f, limit=None)
    if block.places.num_rows is not None or block.places.num_columns is not None:
        elsewhere = sequential_vmap(elsewhere)
    return partial(lax.platform_dependent, cpu=on_cpu, default=elsewhere)


def split(tree: T, limit: int | None) -> tuple[T, int]:
    """Arrays in blocks of about `limit` grids, and how many grids there are.

    The size of blocks is one that wastes little; what fills the last one is zero, and so
    reads the first pixel with a weight of zero.
    """
    n = len(jax.tree.leaves(tree)[0])
    size = n
    if limit is not None and limit < n:
        sizes = range(max(limit // 2, 1), limit + 1)
        size = min(sizes, key=lambda size: (-n % size, -size))

    def blocks(a: Array) -> Array:
        a = jnp.pad(a, ((0, -n % size), *[(0, 0)] * (a.ndim - 1)))
        return a.reshape(-1, size, *a.shape[1:])

    return jax.tree.map(blocks, tree), n


def read_block(table: Array, block: Block) -> Array:
    """The sums of some grids: [grids, rows, columns, channels]."""
    wide = jnp.promote_types(table.dtype, block.row_weight.dtype)
    slots, channels = block.places.slots, table.shape[1]
    total = jnp.zeros_like(block.row_weight, wide, shape=(slots.size, channels))
    rows, columns = block.trips

    def add(t: Array, total: jax.Array) -> jax.Array:
        return _add(table, block.sample(t // columns, t % columns), total)

    if _is_unrolled(block):
        total = _add(table, block, total)
    else:
        total = lax.fori_loop(0, rows * columns, add, total)
    return total.astype(table.dtype).reshape(*slots.shape, channels)


def _is_unrolled(block: Block) -> bool:
    rows, columns = block.places.num_rows, block.places.num_columns
    samples = block.row_weight.shape[2] * block.column_weight.shape[2]
    return rows is None and columns is None and samples <= UNROLLED


def _add(table: Array, block: Block, total: jax.Array) -> jax.Array:
    """Adds every tap of every sample of a block."""
    for row, row_weight in _each(block.places.rows, block.row_weight):
        for column, column_weight in _each(block.places.columns, block.column_weight):
            weight = row_weight[:, :, None] * column_weight[:, None, :]
            pixel = row[:, :, None] + column[:, None, :]
            # As a plain list: axes of size one would cost a copy of what is read.
            at = _at(table, pixel.reshape(-1), block.places.slots.reshape(-1))
            pixels = at.get(mode="promise_in_bounds")
            total += weight.reshape(-1, 1) * pixels
    return total


def _each(pixels: Array, weights: Array) -> list[tuple[Array, Array]]:
    return [
        (pixels[:, :, s, t], weights[:, :, s, t])
        for s in range(pixels.shape[2])
        for t in range(pixels.shape[3])
    ]


def _at(table: Array, pixel: Array, slots: Array) -> Any:
    """Reference to the channels of a pixel and slot, in the shape of the index."""
    if table.ndim == 2:
        return jnp.asarray(table).at[pixel]
    return jnp.asarray(table).at[pixel, :, jnp.broadcast_to(slots, pixel.shape)]


def pull_block(
    table: jax.Array, d_table: jax.Array, block: Block
) -> tuple[jax.Array, tuple[Array, Array]]:
    """Adds a block's gradient to that of the table; also the gradients of weights."""
    if _is_unrolled(block):
        return _pull_taps(table, d_table, block)
    rows, columns = block.trips

    def pull(t: Array, carry: tuple[jax.Array, ...]) -> tuple[Array, ...]:
        d_table, d_rows, d_columns = carry
        p, q = t // columns, t % columns
        sums, (d_row, d_column) = _pull_taps(table, d_table, block.sample(p, q))
        d_rows = d_rows.at[:, :, p].add(d_row[:, :, 0])
        return sums, d_rows, d_columns.at[:, :, q].add(d_column[:, :, 0])

    zeros = jnp.zeros_like
    start = d_table, zeros(block.row_weight), zeros(block.column_weight)
    d_table, *weights = lax.fori_loop(0, rows * columns, pull, start)
    return d_table, (weights[0], weights[1])


def _pull_taps(
    table: jax.Array, d_table: jax.Array, block: Block
) -> tuple[jax.Array, tuple[Array, Array]]:
    assert block.gradient is not None
    g = block.gradient.astype(d_table.dtype)
    places, weights = block.places, (block.row_weight, block.column_weight)
    row, column, row_weight, column_weight = (
        a.reshape(*a.shape[:2], -1)  # samples and taps
        for a in (places.rows, places.columns, *weights)
    )
    pixel = row[:, :, None, :, None] + column[:, None, :, None, :]
    slots = block.places.slots[..., None, None]
    # The gradient of a weight is the product of what it weighs and what came back.
    pixels = _at(table, pixel, slots).get(mode="promise_in_bounds")
    dots = jnp.einsum("nijabc,nijc->nijab", pixels.astype(g.dtype), g)
    d_row = jnp.einsum("nijab,njb->nia", dots, column_weight)
    d_column = jnp.einsum("nijab,nia->njb", dots, row_weight)
    weight = row_weight[:, :, None, :, None] * column_weight[:, None, :, None, :]
    update = weight[..., None] * g[:, :, :, None, None, :]
    d_table = _at(d_table, pixel, slots).add(update, mode="promise_in_bounds")
    d_row = d_row.reshape(block.row_weight.shape)
    return d_table, (d_row, d_column.reshape(block.column_weight.shape))
