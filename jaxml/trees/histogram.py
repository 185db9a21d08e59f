"""Histogram splits: thresholds between bins, sums by bin and node in integers.

Channels are rounded to 31-bit fixed point (`fixed_point.quantize`), two to an int64 word,
and added up by (node, bin), column after column: one scalar scatter each, which XLA's CPU
backend does in a nanosecond or two. Integer sums know no order: the trees are the same, bit
for bit, for any order of the rows and any number of devices (`lax.psum` of the words).

All rows are summed on every level. To sum the smaller child of each split alone and get the
other by subtraction halves the scatters, but to gather its rows costs XLA's CPU backend
more than that: 7.7 ms a level against 5.8 (100,000 rows, 28 columns, 32 nodes).

Candidates are tried as XGBoost does: bins ascending with missing values right, then, in
nodes that have some, bins descending with missing values left; of equal gains the first.

The trap: a word holds two channels, the second in its low half without a sign, so every
second channel must not be negative (Hessians, weights and counts are not).

With monotone constraints and missing values together a threshold now and then is another
one than XGBoost's on the same cuts; otherwise the trees are equal.

Reference: Chen and Guestrin, "XGBoost: A Scalable Tree Boosting System", KDD 2016,
https://arxiv.org/abs/1603.02754 (algorithm 2).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxml.export import export
from jaxml.trees.bins import Bins
from jaxml.trees.fixed_point import power_of_two, quantize
from jaxml.trees.growth import (
    MIN_GAIN,
    Columns,
    Nodes,
    Splits,
    assemble,
    best_column,
    child_bounds,
    gain_of,
)
from jaxml.trees.rule import Rule
from jaxml.trees.tree import Tree
from jaxml.typing import Array, Bool, Float, Int, PRNGKeyArray

Table = Int[Array, "columns words slots bins"]


@export("trees.histogram.grow", since="0.1")
def grow(
    bins: Bins,
    channels: Float[Array, "channels rows"],
    rule: Rule,
    max_depth: int,
    *,
    gamma: Float[Array, ""] | float = 0.0,
    use: Columns | None = None,
    available: Bool[Array, " columns"] | None = None,
    key: PRNGKeyArray | None = None,
    axis_name: str | None = None,
) -> tuple[Tree, Int[Array, " rows"]]:
    """One tree, and the leaf of every row.

    Args:
        bins: binned features.
        channels: what is summed; every second one not negative. Rows left out carry zeros.
        rule: scores the sums.
        max_depth: levels of splits.
        gamma: the least gain of a split.
        use: constraints and sampling of columns.
        available: the columns that this tree may use.
        key: for the sampling of columns by level and node.
        axis_name: mesh axis over which the rows are split.

    Returns:
        the tree in heap order, and the node that is each row's leaf.
    """
    use = use or Columns()
    key = jax.random.key(0) if key is None else key
    if available is None:
        available = jnp.ones(bins.shape[1], bool)
    # Wide numbers live inside one program only: op by op they would be narrowed.
    program = partial(
        _grow,
        rule=rule,
        max_depth=max_depth,
        gamma=gamma,
        use=use,
        axis_name=axis_name,
    )
    return jax.jit(program, inline=True)(bins, channels, available, key)


def _grow(
    bins: Bins,
    channels: Float[Array, "channels rows"],
    available: Bool[Array, " columns"],
    key: PRNGKeyArray,
    *,
    rule: Rule,
    max_depth: int,
    gamma: Float[Array, ""] | float,
    use: Columns,
    axis_name: str | None,
) -> tuple[Tree, Int[Array, " rows"]]:
    rows, num_columns = bins.shape
    q, exponent = quantize(channels, axis_name)
    words = _pack(q)
    slot = jnp.zeros(rows, jnp.int32)
    bounds = None
    if use.monotone:
        bounds = jnp.array([[-jnp.inf, jnp.inf]], jnp.float32)
    path = jnp.zeros((1, num_columns), bool)
    alive = jnp.ones(1, bool)
    levels = []
    with jax.enable_x64(True):
        unit = power_of_two(-exponent, jnp.float64)
        total = _psum(jnp.sum(q.astype(jnp.int64), axis=1)[:, None], axis_name)
    for depth in range(max_depth):
        table = _sums_by_bin(bins, words, slot, 2**depth, axis_name)
        nodes = _describe(total, unit, rule, bounds)
        allowed = use.allowed(jax.random.fold_in(key, depth), available, path)
        splits, cut, left = _best_splits(
            bins, table, total, unit, rule, allowed, bounds, use.monotone
        )
        splits = splits._replace(
            gain=jnp.where(splits.gain >= gamma, splits.gain, -jnp.inf)
        )
        levels.append((nodes, splits))
        alive = alive & (splits.gain > MIN_GAIN)
        with jax.enable_x64(True):  # the rows of a leaf stay in its left child
            left = jnp.where(alive[None], left, total)
            total = jnp.stack((left, total - left), axis=2).reshape(len(left), -1)
        slot = 2 * slot + _goes_right(bins, slot, splits, cut, alive)
        if bounds is not None:
            inherited = jnp.repeat(bounds, 2, axis=0)
            value = _describe(total, unit, rule, inherited).value.reshape(-1, 2)
            sign = jnp.asarray(use.monotone, jnp.int32)[splits.feature]
            bounds = child_bounds(bounds, value.sum(axis=1) / 2, sign)
        if use.interaction:
            read = jax.nn.one_hot(splits.feature, num_columns, dtype=bool)
            path = path | (read & alive[:, None])
        path = jnp.repeat(path, 2, axis=0)
        alive = jnp.repeat(alive, 2)
    bottom = _describe(total, unit, rule, bounds)
    tree, leaf = assemble(levels, bottom, 0.0, prune=False)
    return tree, leaf[slot]


def _psum(x: Array, axis_name: str | None) -> Array:
    return x if axis_name is None else lax.psum(x, axis_name)


def _pack(q: Int[Array, "channels rows"]) -> Int[Array, "words rows"]:
    """Two channels to an int64: the first above 32 bits, the second, >= 0, below."""
    with jax.enable_x64(True):
        wide = jnp.pad(q.astype(jnp.int64), ((0, len(q) % 2), (0, 0)))
        return (wide[0::2] << 32) + wide[1::2]


def _unpack(words: Array) -> Array:
    """Channels [channels, ...] of words [words, ...], inside the wide scope."""
    parts = jnp.stack((words >> 32, words & jnp.int64(2**32 - 1)), axis=1)
    return parts.reshape(2 * len(words), *words.shape[1:])


def _sums_by_bin(
    bins: Bins,
    words: Int[Array, "words rows"],
    slot: Int[Array, " rows"],
    slots: int,
    axis_name: str | None,
) -> Table:
    """Sums of the words by column, slot and bin; the missing bin is the last."""
    stride = bins.stride
    base = slot * stride
    table = lax.map(
        lambda index: _add(words, base + index.astype(jnp.int32), slots * stride),
        bins.index,
    )
    with jax.enable_x64(True):
        table = _psum(table, axis_name)
    return table.reshape(len(bins.index), len(words), slots, stride)


def _add(
    words: Int[Array, "words rows"], at: Int[Array, " rows"], size: int
) -> Int[Array, "words places"]:
    with jax.enable_x64(True):
        zero = jnp.zeros(size, jnp.int64)
        add = zero.at[at].add
        return jnp.stack([add(word, mode="promise_in_bounds") for word in words])


def _describe(
    total: Int[Array, "channels slots"], unit: Array, rule: Rule, bounds: Array | None
) -> Nodes:
    with jax.enable_x64(True):
        sums = total * unit[:, None]
        value = rule.value(sums)
        cover = sums[-1].astype(jnp.float32)
    if bounds is not None:
        value = jnp.clip(value, bounds[:, 0][None], bounds[:, 1][None])
    return Nodes(value.T, cover)


def _best_splits(
    bins: Bins,
    table: Table,
    total: Int[Array, "channels slots"],
    unit: Array,
    rule: Rule,
    allowed: Bool[Array, "slots columns"],
    bounds: Float[Array, "slots 2"] | None,
    monotone: tuple[int, ...],
) -> tuple[Splits, Int[Array, " slots"], Int[Array, "channels slots"]]:
    """The best split of every slot, the last bin on its left, and the sums there."""
    channels, slots = total.shape
    with jax.enable_x64(True):
        sums = total * unit[:, None]
        if bounds is not None:
            own = jnp.clip(rule.value(sums), bounds[:, 0][None], bounds[:, 1][None])
            score = rule.score_at(sums, own)
        else:
            score = rule.score(sums)

    def one(column: tuple[Array, ...]) -> tuple[Array, ...]:
        words, cuts, lowest, may, sign = column
        with jax.enable_x64(True):
            by_bin = _unpack(words)[:channels].astype(jnp.float64)
            present = by_bin[..., : bins.width]
            prefix = _prefix_sums(present)
            whole = (total * 1.0)[..., None]
            missing = total - prefix[..., -1]
            scale = unit[:, None, None]

            def gain(left: Array, right: Array) -> Array:
                parent = score[:, None]
                left, right = left * scale, right * scale
                if bounds is None:
                    return gain_of(rule, left, right, parent)
                limits = bounds[:, 0][:, None], bounds[:, 1][:, None]
                return gain_of(rule, left, right, parent, limits, sign)

            forward = gain(prefix, whole - prefix)
            top, at = _first_max(forward)

            def both_ways() -> tuple[Array, Array, Array]:
                # Bins from i on go right, and the missing ones left.
                right = prefix[..., -1:] - prefix + present
                backward = jnp.flip(gain(whole - right, right), axis=-1)
                some = jnp.any(missing != 0, axis=0)
                other, place = _first_max(jnp.where(some[:, None], backward, -jnp.inf))
                left_is = other > top
                place = bins.width - 2 - place
                return (
                    jnp.maximum(other, top),
                    jnp.where(left_is, place, at),
                    left_is,
                )

            def one_way() -> tuple[Array, Array, Array]:
                return top, at, jnp.zeros(slots, bool)

            best, at, default_left = lax.cond(jnp.any(missing != 0), both_ways, one_way)
            best = jnp.where(may, best, -jnp.inf)
            inside = jnp.take_along_axis(prefix, at.clip(0)[None, :, None], axis=2)
            left = jnp.where(at >= 0, inside[..., 0], 0)
            left = left + jnp.where(default_left, missing, 0)
            left = left.astype(jnp.int64)
        threshold = jnp.where(at >= 0, cuts[at.clip(0)], lowest)
        return best, threshold, default_left, at, left

    signs = jnp.asarray(monotone or (0,) * len(bins.cuts), jnp.int32)
    given = table, bins.cuts, bins.lowest, allowed.T, signs
    best, threshold, default_left, at, left = lax.map(one, given)
    feature = jnp.arange(len(best), dtype=jnp.int32)[:, None]
    every = jnp.broadcast_to(feature, best.shape)
    empty = jnp.zeros((*best.shape, 0), jnp.uint32)
    splits = best_column(Splits(best, every, threshold, default_left, empty))
    each = jnp.arange(slots, dtype=jnp.int32)
    with jax.enable_x64(True):
        return splits, at[splits.feature, each], left[splits.feature, :, each].T


def _first_max(gain: Float[Array, "slots bins"]) -> tuple[Array, Array]:
    """The largest of each row and where it is first, faster than by argmax."""
    top = jnp.max(gain, axis=-1)
    place = lax.broadcasted_iota(jnp.int32, gain.shape, 1)
    tied = gain == top[:, None]
    return top, jnp.min(jnp.where(tied, place, gain.shape[1] - 1), axis=-1)


@jax.custom_batching.custom_vmap
def _prefix_sums(x: Float[Array, "*batch bins"]) -> Float[Array, "*batch bins"]:
    """Sums up to and with each bin, of integers in float64: exact in any order.

    Products with triangles of ones, within blocks and over them, for XLA's own prefix sum
    of a long axis costs ten times as much here.
    """
    bins = x.shape[-1]
    block = max(int(np.sqrt(bins)), 1)
    blocks = -(-bins // block)
    edges = [(0, 0)] * (x.ndim - 1)
    padded = jnp.pad(x, [*edges, (0, blocks * block - bins)])
    padded = padded.reshape(*x.shape[:-1], blocks, block)
    within = padded @ jnp.triu(jnp.ones((block, block), x.dtype))
    before = within[..., -1] @ jnp.triu(jnp.ones((blocks, blocks), x.dtype), k=1)
    return (within + before[..., None]).reshape(*x.shape[:-1], -1)[..., :bins]


@_prefix_sums.def_vmap
def _(axis_size: int, in_batched: list[bool], x: Array) -> tuple[Array, bool]:
    """One more leading axis; `jax.vmap` alone would narrow the products to float32."""
    del axis_size, in_batched
    with jax.enable_x64(True):
        return _prefix_sums(x), True


def _goes_right(
    bins: Bins,
    slot: Int[Array, " rows"],
    splits: Splits,
    cut: Int[Array, " slots"],
    alive: Bool[Array, " slots"],
) -> Int[Array, " rows"]:
    """1 for the rows that go to the second child; the rows of leaves stay left."""
    n = len(slot)
    at = splits.feature[slot] * n + jnp.arange(n, dtype=jnp.int32)
    index = (
        bins.index.reshape(-1).at[at].get(mode="promise_in_bounds").astype(jnp.int32)
    )
    right = index > jnp.where(alive, cut, bins.width)[slot]
    if not bins.has_missing:
        return right.astype(jnp.int32)
    stay = (splits.default_left | ~alive)[slot]
    return (right & ~((index == bins.width) & stay)).astype(jnp.int32)
