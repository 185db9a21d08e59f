"""Attention in tiles: memory linear in length, on any device, differentiable to any order.

Tiles of the logits are made, used and forgotten; per row of tiles an online softmax runs
over the tiles that are not empty.

The derivative needs one thought. With L = log sum_j exp(s_j) held fixed, the pair

    F = (sum_j exp(s_j - L) v_j,  sum_j exp(s_j - L))

is a sum over tiles, and its derivative dF = (a, b) gives all there is to know:

    dL = b,    d out = a - out b.

What is kept is not L but its parts, the maximum m and the sum l of exp(s - m), and the
weights are exp(s - m) / l: where logits are in the thousands, L itself is rounded by more
than its derivative can bear.

So the forward derivative is one more pass over the tiles, each the derivative of a plain
function, and it is linear. Its transpose, which JAX derives, is the backward pass of
flash attention: tiles are computed again from q, k, m and l instead of being stored, and

    delta = sum(out * d_out) - d_L,   ds = p (d_out v^T - delta),   dq = ds k,  dk = ds^T q

come out of it unwritten. Since the rule is a `custom_jvp` in plain code, forward mode,
reverse mode, and both over both work; a `custom_vjp` would have allowed reverse alone.

The trap is what reverse mode stores. Tiles are wrapped in `jax.checkpoint`, so that the
linear pass keeps q and k of a tile and not its weights: without it the memory is
quadratic again, and every test of values still passes. `test_chunked.py` looks.

On a CPU the products of one head are plain matrix products of two axes. The logits stand
as [queries, keys] in the first pass and as [keys, queries] in the second: so three of the
four products of the transpose contract contiguous axes, and the fourth, dq, comes out
transposed, which is free for two axes and three times as slow for three.

Reference: Dao et al., "FlashAttention", NeurIPS 2022, https://arxiv.org/abs/2205.14135
(algorithms 1 and 4); Dao, "FlashAttention-2", ICLR 2024,
https://arxiv.org/abs/2307.08691 (loops over rows, one L instead of m and l). Theirs is
first order; the rule above is what makes it any order.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jaxml.attention.masks import kept, occupied, visible
from jaxml.attention.online_softmax import (
    SoftmaxState,
    absorb,
    empty_state,
    log_total,
    mean,
)
from jaxml.attention.spec import Context, Operands, Spec
from jaxml.attention.tiles import (
    Around,
    Tiles,
    cut,
    cut_context,
    cut_queries,
    map_axis,
    over_heads,
    scan_axis,
    spread,
    tile_at,
    tree_at,
    uncut,
    varying_like,
)
from jaxml.typing import Array, Bool, Float

_checkpoint = partial(jax.checkpoint, prevent_cse=False)  # inside a loop nothing merges


def chunked(
    spec: Spec, operands: Operands, context: Context, tiles: Tiles | None = None
) -> tuple[Float[Array, "B T N V"], Float[Array, "B T N"]]:
    """The output in the query's dtype, and the log-sum-exp in float32 or wider."""
    if 0 in (*operands.query.shape[:3], operands.key.shape[1]):
        return _nothing(operands)
    tiles = tiles or Tiles.of(operands)
    out, maximum, total = _compiled(spec, tiles, operands, context)
    return out, log_total(maximum, total)


def _nothing(operands: Operands) -> tuple[Array, Array]:
    shape = operands.query.shape[:3]
    out = jnp.zeros((*shape, operands.value.shape[3]), operands.query.dtype)
    return out, jnp.full(shape, -jnp.inf, operands.accumulator)


# The function and its derivative.


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _attend(
    spec: Spec, tiles: Tiles, operands: Operands, context: Context
) -> tuple[Array, Array, Array]:
    """The output, and the maximum and the total of every row's softmax."""
    parts = (cut(tiles, operands), cut_context(tiles, operands, context))
    state = over_heads(partial(_forward, spec, tiles), tiles, operands, parts)
    out = uncut(mean(state), tiles, operands).astype(operands.query.dtype)
    base = jnp.stack([state.maximum, state.total], axis=-1)
    base = uncut(base, tiles, operands)
    return out, base[..., 0], base[..., 1]


def _attend_jvp(
    spec: Spec, tiles: Tiles, primals: tuple[Operands, Context], tangents: Any
) -> tuple[Any, Any]:
    operands, context = primals
    results = _attend(spec, tiles, operands, context)
    changes = known_changes(tangents[0])

    # Not in a loop: the barrier of `prevent_cse` keeps XLA from holding on to the tiles
    # that the first pass has cut, until the last.
    @jax.checkpoint
    def linear(changes: Operands) -> tuple[Array, Array, Array]:
        parts = partial_change(spec, operands, changes, context, *results[1:], tiles)
        return change_of_results(results, parts)

    return results, linear(changes)


_attend.defjvp(_attend_jvp, symbolic_zeros=True)
_compiled = jax.jit(_attend, static_argnums=(0, 1))  # once, for calls outside of jit


def known_changes(tangents: Operands) -> Operands:
    """None for what does not change, so that nothing is computed for it."""
    return Operands(*(None if isinstance(x, SymbolicZero) else x for x in tangents))


def change_of_results(
    results: tuple[Array, Array, Array], parts: tuple[Array, Array]
) -> tuple[Array, Array, Array]:
    """The change of (out, maximum, total), from (a, b) of the module's docstring.

    Any maximum gives the same softmax, so it counts as a constant.
    """
    (out, maximum, total), (a, b) = results, parts
    # Two axes: the transpose's sum of products over the last one of several takes XLA's
    # CPU backend fifteen times as long.
    rows = out.astype(a.dtype).reshape(b.size, out.shape[-1])
    change = a - (rows * b.reshape(b.size, 1)).reshape(a.shape)
    return change.astype(out.dtype), jnp.zeros_like(maximum), total * b


def partial_change(
    spec: Spec,
    operands: Operands,
    changes: Operands,
    context: Context,
    maximum: Float[Array, "B T N"],
    total: Float[Array, "B T N"],
    tiles: Tiles | None = None,
) -> tuple[Float[Array, "B T N V"], Float[Array, "B T N"]]:
    """(a, b) of the module's docstring: what these keys add to the change of F.

    Args:
        spec: of the call.
        operands: with all of the keys or some.
        changes: of the operands; None where there is none.
        context: of the call.
        maximum: of the logits of all keys.
        total: sum of exp(logit - maximum) over all keys.
        tiles: how to cut.
    """
    dtype, tiles = operands.accumulator, tiles or Tiles.of(operands)
    # Sums over tiles, and the transpose's sums too, in the accumulator's precision.
    changes = jax.tree.map(lambda x: x.astype(dtype), changes)
    base = cut_queries(jnp.stack([maximum, total], axis=-1), tiles)
    none = base[..., 1:] == 0  # sees nothing, or is padding: exp(-inf - 0) / 1 is 0
    nothing = jnp.broadcast_to(jnp.array([0, 1], dtype), base.shape)
    base = jnp.where(none, nothing, base)
    parts = (
        cut(tiles, operands),
        cut(tiles, changes),
        cut_context(tiles, operands, context),
        base,
    )
    a, b = over_heads(partial(_linear, spec, tiles), tiles, operands, parts)
    return uncut(a, tiles, operands), uncut(b[..., None], tiles, operands)[..., 0]


# One head of keys and its group of queries, both cut into tiles.


def _forward(spec: Spec, tiles: Tiles, head: Operands, around: Around) -> SoftmaxState:
    """Row by row of tiles, an online softmax over those that are not empty."""
    dtype = head.accumulator
    tall, wide = head.query.shape[0], head.key.shape[0]
    table = _table(spec, around)
    order, count = jnp.argsort(~table, axis=1, stable=True), jnp.sum(table, axis=1)
    empty = empty_state(head.query.shape[1:2], head.value.shape[-1], dtype)
    empty = varying_like(empty, (head, around))

    def row(i: Array) -> SoftmaxState:
        q = head.query[i].astype(dtype) * spec.scale

        def step(n: Array, state: SoftmaxState) -> SoftmaxState:
            j = order[i, n]
            k, v = head.key[j].astype(dtype), head.value[j].astype(dtype)
            sees, factors = _modifiers(spec, tiles, around, i, j)
            bias = (
                None if head.bias is None else spread(tile_at(head.bias, i, j), tiles)
            )
            return absorb(state, _logits(spec, q @ k.T, bias, sees), v, factors)

        if wide == 1:
            return step(jnp.int32(0), empty)
        return lax.fori_loop(0, count[i], step, empty)

    return map_axis(row, tall, 1, jnp.arange(tall))


def _linear(
    spec: Spec,
    tiles: Tiles,
    head: Operands,
    change: Operands,
    around: Around,
    base: Float[Array, "tall rows 2"],
) -> tuple[Array, Array]:
    """(a, b) of the module's docstring: the sum over columns of tiles."""
    dtype = head.accumulator
    tall, wide = head.query.shape[0], head.key.shape[0]
    table = _table(spec, around) if _has_gaps(spec, around) else None
    empty = (
        jnp.zeros((*head.query.shape[1:2], head.value.shape[-1]), dtype),
        jnp.zeros_like(base[0, :, 0]),
    )
    empty = varying_like(empty, (head, around, base))

    def turn(x: Operands) -> Operands:
        # [H, rows], and the bias by columns of tiles.
        q = None if x.query is None else x.query.astype(dtype).swapaxes(1, 2)
        bias = None if x.bias is None else x.bias.swapaxes(0, 1)
        return x._replace(query=q if q is None else q * spec.scale, bias=bias)

    def by_column(x: Operands) -> Operands:
        return x._replace(query=None)

    head, change = turn(head), turn(change)

    def column(total: Any, x: tuple[Array, Operands, Operands]) -> tuple[Any, None]:
        j, here, moves = x
        here = here._replace(key=here.key.astype(dtype), value=here.value.astype(dtype))

        def tile(y: tuple[Any, ...]) -> tuple[Array, Array]:
            i, at, q, dq, bias, dbias = y
            wide_bias = None if bias is None else bias.astype(dtype)
            tile_here = here._replace(query=q, bias=wide_bias)
            tile_moves = moves._replace(query=dq, bias=dbias)
            around_it = _modifiers(spec, tiles, around, i, j)
            compute = _checkpoint(partial(_tile_change, spec, tiles))
            operands = (tile_here, tile_moves, at, *around_it)
            if table is None:
                return compute(*operands)
            return lax.cond(table[i, j], compute, lambda *_: empty, *operands)

        rows = (
            jnp.arange(tall),
            base,
            head.query,
            change.query,
            here.bias,
            moves.bias,
        )
        parts = map_axis(_checkpoint(tile), tall, 1, rows)
        return jax.tree.map(jnp.add, total, parts), None

    total = jax.tree.map(lambda x: jnp.broadcast_to(x, (tall, *x.shape)), empty)
    columns = (jnp.arange(wide), by_column(head), by_column(change))
    return scan_axis(column, total, wide, columns)[0]


def _tile_change(
    spec: Spec,
    tiles: Tiles,
    here: Operands,
    moves: Operands,
    base: Float[Array, "rows 2"],
    sees: Array | None,
    factors: Array | None,
) -> tuple[Array, Array]:
    """The derivative of one tile's part of F, along `moves`."""
    maximum, inverse = base[None, :, 0], 1 / base[None, :, 1]
    moved = {name: x for name, x in moves._asdict().items() if x is not None}

    def part(**moving: Array) -> tuple[Array, Array]:
        q, k, v, bias = here._replace(**moving)
        turned = None if bias is None else spread(bias, tiles).T
        s = _logits(spec, k @ q, turned, None if sees is None else sees.T)
        p = jnp.exp(s - maximum) * inverse
        total = jnp.sum(p, axis=0)
        return (p if factors is None else p * factors.T).T @ v, total

    at = {name: getattr(here, name) for name in moved}
    return jax.jvp(lambda x: part(**x), (at,), (moved,))[1]


def _logits(
    spec: Spec, products: Array, bias: Array | None, sees: Array | None
) -> Array:
    """What the softmax is taken of, from the scaled products; -inf where hidden."""
    s = products
    if spec.soft_cap is not None:
        s = spec.soft_cap * jnp.tanh(s / spec.soft_cap)
    if bias is not None:
        s = s + bias.astype(s.dtype)
    return s if sees is None else jnp.where(sees, s, -jnp.inf)


def _modifiers(
    spec: Spec, tiles: Tiles, around: Around, i: Array, j: Array
) -> tuple[Array | None, Array | None]:
    """Who sees whom in tile (i, j), and the factors of dropout."""
    rows, columns = tree_at(around.rows, i), tree_at(around.columns, j)
    mask = None
    if around.mask is not None:
        mask = spread(tile_at(around.mask, i, j), tiles)
    sees = visible(spec, around.limits, rows, columns, mask)
    if around.seeds is None:
        return sees, None
    heads = around.head * tiles.groups + jnp.arange(tiles.groups)
    index = rows.number[: tiles.queries]
    factors = jax.vmap(
        lambda head: kept(spec.dropout_rate, around.seeds, head, index, columns.number)
    )(heads)
    return sees, spread(factors, tiles)


def _table(spec: Spec, around: Around) -> Bool[Array, "tall wide"]:
    """The tiles that are not empty."""
    some = None if around.mask is None else jnp.any(around.mask, axis=(2, 3, 4))
    return _of_any(occupied(spec, around.limits, around.rows, around.columns, some))


@jax.custom_batching.custom_vmap
def _of_any(table: Array) -> Array:
    """One table for a whole batch under `vmap`: loops and conditions stay as they are.

    A tile that is empty for one sample and not for another is computed for both; where
    it is empty, it adds nothing.
    """
    return table


@_of_any.def_vmap
def _of_any_vmap(axis_size: int, in_batched: Any, table: Array) -> tuple[Array, bool]:
    del axis_size, in_batched
    return _of_any(jnp.any(table, axis=0)), False


def _has_gaps(spec: Spec, around: Around) -> bool:
    """Whether any tile may be empty."""
    hides = (around.mask, around.rows.segment, *around.limits[1:])
    window = (spec.left, spec.right)
    return any(x is not None for x in (*hides, *window))
