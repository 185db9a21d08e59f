"""Similarities of all rows with all columns, reduced block by block and never stored.

A contrastive loss over n rows and m columns needs of the n x m products s only sums along
them. Here they are made in tiles, each tile is reduced at once, and the backward pass
makes it again:

    rows[i] = log sum_j exp s_ij        or    sum_j softplus(s_ij),
    columns[j] = the same over i,             s_ij = a_i b_j x_i . y_j + bias.

With the batch split over devices the columns travel once around the ring of devices, and
each meets the rows of all: no device ever holds all columns, and a pair (i, j) is computed
on one device only. Memory is that of the arguments, their gradients and a few tiles.

The losses are a line each. With p_i = x_i . y_i of the positives, and `skip` telling a
pair by equal numbers (its own positive among the columns, or a view itself):

    NT-Xent            softplus(rows - p), rows without itself and its partner
    CLIP               (rows - p + columns - p) / 2
    MoCo               softplus(rows - p), columns = the queue
    SigLIP             rows - p, reduced by softplus

The traps: this is a `custom_vjp`, so pure forward mode (`jax.jvp`) is refused; and a
gradient that stops at the columns is nearly right (its cosine to the true one
is high) and trains quietly worse. Here it flows to both sides, on every device.

Reference: Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016,
https://arxiv.org/abs/1604.06174 (recomputation); Dao et al., "FlashAttention: Fast and
Memory-Efficient Exact Attention with IO-Awareness", NeurIPS 2022,
https://arxiv.org/abs/2205.14135 (tiles with a running log-sum-exp, recomputed backwards);
Zhai et al., "Sigmoid Loss for Language Image Pre-Training", ICCV 2023,
https://arxiv.org/abs/2303.15343 (section 3.3: the exchange around a ring). Deviations: the
tiles also cut what one device holds, and the exchange serves a softmax as well.
"""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxml.export import export
from jaxml.typing import Array, Bool, Float, Int

Reduction = Literal["logsumexp", "softplus"]
_ANY, _PADDING = -1, -2  # the numbers of what skips nothing, and of what is not there


@export("losses.BlockwiseSimilarity", since="0.1")
class BlockwiseSimilarity(NamedTuple):
    """What `blockwise_similarity` returns.

    Attributes:
        rows: every row's similarities, reduced; -inf (or 0) where all were skipped.
        columns: every column's, over the rows of all devices; None unless asked for.
        row_max: the largest similarity of every row, -inf where all were skipped; it has
            no gradient. What it is compared with must be made by the same arithmetic,
            or ties are broken by rounding.
    """

    rows: Float[Array, "rows"]
    columns: Float[Array, "columns"] | None
    row_max: Float[Array, "rows"]


@export("losses.Contrast", since="0.1")
class Contrast(NamedTuple):
    """What telling the positive from the negatives gives, row by row.

    Attributes:
        loss: -log of the positive's share of the softmax, in nats.
        found: whether the positive is nearer than all negatives.
        hardest: share of the nearest negative in the softmax over the negatives alone;
            0 where there is none. Near one at too low a temperature: one negative then
            gets all of the gradient.
    """

    loss: Float[Array, "rows"]
    found: Bool[Array, "rows"]
    hardest: Float[Array, "rows"]


def contrast(
    negatives: BlockwiseSimilarity,
    positive: Float[Array, "rows"],
    margin: Float[Array, "*rows"] | float,
) -> Contrast:
    """Each row's positive among its negatives; `margin` is what rounding may add."""
    nearest = negatives.row_max
    hardest = jnp.exp(nearest - lax.stop_gradient(negatives.rows))
    return Contrast(
        jax.nn.softplus(negatives.rows - positive),
        positive > nearest + margin,
        jnp.where(jnp.isneginf(nearest), 0.0, hardest),
    )


class _Plan(NamedTuple):
    """What the compiled program depends on."""

    reduce: Reduction
    both: bool
    axis_name: str | None  # None also where the axis has one device
    num_devices: int


class _Side(NamedTuple):
    """Rows or columns in tiles; without the leading axis, one tile."""

    vectors: Float[Array, "tiles size dim"]
    scale: Float[Array, "tiles size"]
    ids: Int[Array, "tiles size"]


@export("losses.blockwise_similarity", since="0.1")
def blockwise_similarity(
    x: Float[Array, "rows dim"],
    y: Float[Array, "columns dim"] | None = None,
    *,
    x_scale: float | Float[Array, "*rows"] = 1.0,
    y_scale: float | Float[Array, "*columns"] = 1.0,
    skip: Int[Array, "rows"] | tuple[Array, Array] | None = None,
    bias: float | Float[Array, ""] = 0.0,
    reduce: Reduction = "logsumexp",
    both: bool = False,
    chunk: int = 1024,
    axis_name: str | None = None,
) -> BlockwiseSimilarity:
    """Reduces a_i b_j x_i . y_j + bias over all columns j (and rows i), tile by tile.

    Args:
        x: rows.
        y: columns; None compares the rows with each other, at two thirds of the cost.
        x_scale: a, one number or one per row: the inverse of a temperature or of the
            rows' lengths, so that no normalised copy of large arrays is needed.
        y_scale: b, likewise; without `y` it is `x_scale`.
        skip: integers at least 0 for rows and for columns; a pair with equal ones does
            not count. One array stands for both. None skips nothing.
        bias: added to every similarity.
        reduce: "logsumexp" or "softplus" (their sum).
        both: also reduce over the rows. Without `y` the columns are the rows, and need
            no asking.
        chunk: rows and columns of a tile.
        axis_name: mesh axis that rows **and** columns are split over, inside
            `shard_map`. Columns that all devices hold alike, such as a queue, need none.

    Products are computed in the type of the arguments and added up in float32 or wider.

    Raises:
        ValueError: if a shape, `skip`, `reduce` or `chunk` does not fit.

    >>> x, y = jnp.eye(2), jnp.zeros((3, 2))
    >>> jnp.exp(blockwise_similarity(x, y).rows).round(4).tolist()
    [3.0, 3.0]
    """
    is_symmetric = y is None
    columns = x if y is None else y
    if x.shape[1] != columns.shape[1]:
        raise ValueError(f"x and y must have one dim, got {x.shape}, {columns.shape}")
    if 0 in (len(x), len(columns)):
        raise ValueError(
            f"there must be rows and columns, got {x.shape} and {columns.shape}"
        )
    if reduce not in ("logsumexp", "softplus"):
        raise ValueError(f"reduce must be 'logsumexp' or 'softplus', got {reduce!r}")
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    devices = 1 if axis_name is None else lax.axis_size(axis_name)
    plan = _Plan(reduce, both, axis_name if devices > 1 else None, devices)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    a, b = jnp.asarray(x_scale, wide), jnp.asarray(y_scale, wide)
    for name, scale, vectors in (("x", a, x), ("y", b, columns)):
        if scale.shape not in ((), vectors.shape[:1]):
            raise ValueError(
                f"{name}_scale must be a number or {len(vectors)} of them, got "
                f"{scale.shape}"
            )
    bias = jnp.asarray(bias, wide)
    # Inside shard_map all arguments must differ over the devices as the result does, and
    # what they share must get the sum of its gradients: the transpose of this addition.
    zero = jnp.zeros_like(bias)
    for v in (x, columns, a, b):
        zero += jnp.zeros_like(v, wide, shape=())

    def side(vectors: Array, scale: Array, ids: Array) -> _Side:
        def tiled(v: Array, fill: int = 0) -> Array:
            return _tiles(v + zero.astype(v.dtype), min(chunk, len(v)), fill)

        scale = jnp.broadcast_to(scale, vectors.shape[:1])
        return _Side(tiled(vectors), tiled(scale), tiled(ids, _PADDING))

    x_ids, y_ids = _ids(skip, len(x), len(columns))
    rows, reduced, row_max = _reduce(
        plan,
        side(x, a, x_ids),
        None if is_symmetric else side(columns, b, y_ids),
        bias + zero,
    )
    rows, row_max = (a.reshape(-1)[: len(x)] for a in (rows, row_max))
    if not both:
        return BlockwiseSimilarity(rows, None, lax.stop_gradient(row_max))
    reduced = rows if is_symmetric else reduced.reshape(-1)[: len(columns)]
    return BlockwiseSimilarity(rows, reduced, lax.stop_gradient(row_max))


def _ids(
    skip: Array | tuple[Array, Array] | None, num_rows: int, num_columns: int
) -> tuple[Array, Array]:
    if skip is None:
        return jnp.full(num_rows, _ANY), jnp.full(num_columns, _ANY)
    x_ids, y_ids = skip if isinstance(skip, tuple) else (skip, skip)
    if (x_ids.shape, y_ids.shape) != ((num_rows,), (num_columns,)):
        raise ValueError(
            f"skip must number {num_rows} rows and {num_columns} columns, "
            f"got {x_ids.shape} and {y_ids.shape}"
        )
    return jnp.asarray(x_ids, jnp.int32), jnp.asarray(y_ids, jnp.int32)


def _tiles(a: Array, size: int, fill: int) -> Array:
    """[n, ...] -> [tiles, size, ...], the last one filled up."""
    missing = -len(a) % size
    if missing:
        widths = ((0, missing), *[(0, 0)] * (a.ndim - 1))
        a = jnp.pad(a, widths, constant_values=fill)
    return a.reshape(-1, size, *a.shape[1:])


def _similarity(x: _Side, y: _Side, bias: Array) -> Array:
    """One tile [rows, columns], -inf where a pair does not count."""
    s = _product(x.vectors, y.vectors.T) * x.scale[:, None] * y.scale[None]
    x_ids, y_ids = x.ids[:, None], y.ids[None]
    counts = (x_ids != y_ids) | (x_ids == _ANY)
    counts &= (x_ids != _PADDING) & (y_ids != _PADDING)
    return jnp.where(counts, s + bias, -jnp.inf)


def _product(x: Array, y: Array) -> Array:
    wide = jnp.promote_types(y.dtype, jnp.float32)
    return jnp.matmul(
        x.astype(y.dtype), y, precision="highest", preferred_element_type=wide
    )


def _add_at(total: Array, i: Array, part: Array) -> Array:
    """`total` with a part added at i: in place, when it is carried by a scan."""
    there = lax.dynamic_index_in_dim(total, i, keepdims=False)
    return lax.dynamic_update_index_in_dim(total, there + part, i, 0)


def _empty(plan: _Plan, like: Array) -> Array:
    return jnp.full_like(like, -jnp.inf if plan.reduce == "logsumexp" else 0)


def _add(plan: _Plan, total: Array, s: Array, axis: int) -> Array:
    """A running reduction and one more tile."""
    if plan.reduce == "softplus":
        return total + jnp.sum(jax.nn.softplus(s), axis)
    largest = jnp.max(s, axis)
    shift = jnp.where(jnp.isneginf(largest), 0, largest)
    exps = jnp.exp(s - jnp.expand_dims(shift, axis))
    return jnp.logaddexp(total, jnp.log(jnp.sum(exps, axis)) + shift)


def _around(plan: _Plan, meet: Any, still: Any, moving: Any) -> tuple[Any, Any]:
    """`meet(still, moving) -> (still, moving)` on every device, for all that move."""
    if plan.axis_name is None:
        return meet(still, moving)
    to_next = [(i, (i + 1) % plan.num_devices) for i in range(plan.num_devices)]

    def turn(carry: Any, _: None) -> tuple[Any, None]:
        still, moving = meet(*carry)
        move = partial(lax.ppermute, axis_name=plan.axis_name, perm=to_next)
        return (still, jax.tree.map(move, moving)), None

    # As many turns as devices: what moves comes home.
    carry, _ = lax.scan(turn, (still, moving), length=plan.num_devices)
    return carry


def _reduce_forward(
    plan: _Plan, x: _Side, y: _Side | None, bias: Array
) -> tuple[Any, Any]:
    reduces_columns = plan.both and y is not None

    def meet(still: Any, moving: Any) -> tuple[Any, Any]:
        y, columns = moving

        def row(columns: Array, own: Any) -> tuple[Array, Any]:
            x, *own = own

            def column(carry: Any, other: Any) -> tuple[Any, Array]:
                (total, largest), (y, column) = carry, other
                s = _similarity(x, y, bias)
                total = _add(plan, total, s, 1)
                largest = jnp.maximum(largest, jnp.max(s, 1))
                if reduces_columns:
                    column = _add(plan, column, s, 0)
                return (total, largest), column

            own, columns = lax.scan(column, tuple(own), (y, columns))
            return columns, own

        columns, still = lax.scan(row, columns, (x, *still))
        return still, (y, columns)

    moving = x if y is None else y
    still = (_empty(plan, x.scale), jnp.full_like(x.scale, -jnp.inf))
    (rows, row_max), (_, columns) = _around(
        plan, meet, still, (moving, _empty(plan, moving.scale))
    )
    return (rows, columns, row_max), (x, y, bias, rows, columns)


def _reduce_backward(plan: _Plan, residuals: Any, cotangents: Any) -> tuple[Any, ...]:
    x, y, bias, rows, columns = residuals
    g_rows, g_columns, _ = cotangents
    is_symmetric = y is None
    if is_symmetric:  # s_ji is s_ij: what a column gets, it gets as a row
        y, columns, g_columns = x, rows, g_rows

    def weight(s: Array, total: Array, g: Array) -> Array:
        """The derivative by s of g times a reduction whose result is `total`."""
        if plan.reduce == "softplus":
            return g * jax.nn.sigmoid(s)
        # Where all were skipped, s and total are -inf: their difference says nothing.
        return g * jnp.exp(s - jnp.where(jnp.isneginf(total), 0, total))

    def meet(still: Any, moving: Any) -> tuple[Any, Any]:
        y, columns, g_columns, dy = moving

        def row(carry: Any, own: Any) -> tuple[Any, None]:
            dx_all, *carry = carry
            x, total, g, i = own

            def column(carry: Any, other: Any) -> tuple[Any, None]:
                (dx, dy, d_bias), (y, column, g_column, j) = carry, other
                s = _similarity(x, y, bias)
                d = weight(s, total[:, None], g[:, None])
                if plan.both or is_symmetric:
                    d += weight(s, column[None], g_column[None])
                dx += _product(d * y.scale[None], y.vectors)
                if not is_symmetric:
                    part = _product((d * x.scale[:, None]).T, x.vectors)
                    dy = _add_at(dy, j, part)
                return (dx, dy, d_bias + jnp.sum(d)), None

            start = (jnp.zeros_like(x.vectors, bias.dtype), *carry)
            others = (y, columns, g_columns, jnp.arange(len(columns)))
            (dx, *carry), _ = lax.scan(column, start, others)
            return (_add_at(dx_all, i, dx), *carry), None

        owns = (x, rows, g_rows, jnp.arange(len(rows)))
        (dx, dy, d_bias), _ = lax.scan(row, (still[0], dy, still[1]), owns)
        return (dx, d_bias), (y, columns, g_columns, dy)

    # Derivatives by a_i x_i and b_j y_j; of the symmetric kind there is one.
    dx = jnp.zeros_like(x.vectors, bias.dtype)
    dy = jnp.zeros_like(y.vectors, bias.dtype, shape=None if not is_symmetric else (0,))
    still = (dx, jnp.zeros_like(bias))
    (dx, d_bias), (*_, dy) = _around(plan, meet, still, (y, columns, g_columns, dy))
    if is_symmetric:  # every pair was met from both of its ends
        return _side_gradient(x, dx), None, d_bias / 2
    return _side_gradient(x, dx), _side_gradient(y, dy), d_bias


def _side_gradient(side: _Side, d: Array) -> _Side:
    vectors = (d * side.scale[..., None]).astype(side.vectors.dtype)
    scale = jnp.sum(d * side.vectors.astype(d.dtype), axis=-1)
    return _Side(vectors, scale, np.zeros(side.ids.shape, jax.dtypes.float0))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _reduce(plan: _Plan, x: _Side, y: _Side | None, bias: Array) -> Any:
    return _reduce_forward(plan, x, y, bias)[0]


_reduce.defvjp(_reduce_forward, _reduce_backward)
