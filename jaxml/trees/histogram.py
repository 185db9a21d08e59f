"""Histogram splits: thresholds between bins, sums by bin and node in integers.

Channels are rounded to 31-bit fixed point (`fixed_point.quantize`), and added up by column,
bin and node (`bin_sums`). Integer sums know no order: the trees are the same, bit for bit,
for any order of the rows, any number of devices (`lax.psum` of the sums), and any way to add
them up. Then all candidates of all columns and nodes are tried: on a CPU in one loop over
the bins, a bin at a time, elsewhere all bins at once.

Candidates are tried as XGBoost does: bins ascending with missing values right, then, in
nodes that have some, bins descending with missing values left; of equal gains the first.

The trap: of each two channels the second must not be negative (`bin_sums`).

Reference: Chen and Guestrin, "XGBoost: A Scalable Tree Boosting System", KDD 2016,
https://arxiv.org/abs/1603.02754 (algorithm 2).
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jaxml.export import export
from jaxml.trees.bin_sums import Implementation, Table, pack, sums_by_bin, unpack
from jaxml.trees.bins import Bins
from jaxml.trees.categories import best_sets, holds, is_member
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
    max_leaves: int = 0,
    best_first: bool = False,
    implementation: Implementation = "scatter",
    interpret: bool = False,
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
        max_leaves: how many leaves the tree may have; 0 for as many as there are.
        best_first: whether the splits that gain most are kept then, not the upper ones.
        implementation: "scatter", or "mosaic_gpu", a kernel that is taken on a GPU.
        interpret: run the kernel without one.

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
        max_leaves=max_leaves,
        best_first=best_first,
        sums=partial(sums_by_bin, implementation=implementation, interpret=interpret),
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
    max_leaves: int,
    best_first: bool,
    sums: Callable[..., Table],
) -> tuple[Tree, Int[Array, " rows"]]:
    rows, num_columns = bins.shape
    q, exponent = quantize(channels, axis_name)
    slot = jnp.zeros(rows, jnp.int32)
    bounds = None
    if use.monotone:
        bounds = jnp.array([[-jnp.inf, jnp.inf]], jnp.float32)
    path = jnp.zeros((1, num_columns), bool)
    alive = jnp.ones(1, bool)
    levels, own = [], None
    with jax.enable_x64(True):
        unit = power_of_two(-exponent, jnp.float64)
        total = _psum(jnp.sum(q.astype(jnp.int64), axis=1)[:, None], axis_name)
    for depth in range(max_depth):
        own = sums(bins, q, slot, 2**depth, own)
        with jax.enable_x64(True):
            table = _psum(own, axis_name)
        nodes = _describe(total, unit, rule, bounds)
        allowed = use.allowed(jax.random.fold_in(key, depth), available, path)
        splits, cut, left = _best_splits(
            bins, table, total, unit, rule, allowed, bounds, use
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
    tree, leaf = assemble(
        levels, bottom, 0.0, prune=False, max_leaves=max_leaves, best_first=best_first
    )
    return tree, leaf[slot]


def _psum(x: Array, axis_name: str | None) -> Array:
    return x if axis_name is None else lax.psum(x, axis_name)


def _describe(
    total: Int[Array, "channels slots"], unit: Array, rule: Rule, bounds: Array | None
) -> Nodes:
    with jax.enable_x64(True):
        sums = total * unit[:, None]
        value = rule.value(sums)
        cover = rule.cover_of(sums)
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
    use: Columns,
) -> tuple[Splits, Int[Array, " slots"], Int[Array, "channels slots"]]:
    """The best split of every slot, the last bin on its left, and the sums there.

    One loop over the bins, all columns and slots side by side. What is carried is the
    largest key: the gain in its high half, and in its low half which candidate it is, the
    earlier the larger.
    """
    channels, slots = total.shape
    width = bins.width
    signs = jnp.asarray(use.monotone or (0,) * len(bins.cuts), jnp.int32)[:, None]
    with jax.enable_x64(True):
        sums = total * unit[:, None]
        own = rule.value(sums)
        if bounds is None:
            score = rule.score(sums)
        else:
            own = jnp.clip(own, bounds[:, 0][None], bounds[:, 1][None])
            score = rule.score_at(sums, own)
        whole = sums[:, None]
        shape = len(table), table.shape[1], slots
        missing = jnp.zeros(shape, jnp.int64)
        if bins.has_missing:
            missing = table[:, :, width]
            known = pack(total)[None] - missing
            some = jnp.any(missing != 0, axis=1)

        def gain(words: Array, is_left: bool) -> Array:
            side = unpack(jnp.moveaxis(words, 1, 0))[:channels]
            side = side.astype(jnp.float64) * unit[:, None, None]
            left, right = (side, whole - side) if is_left else (whole - side, side)
            if bounds is None:
                return gain_of(rule, left, right, score[None])
            limits = bounds[:, 0][None], bounds[:, 1][None]
            return gain_of(rule, left, right, score[None], limits, signs[None])

        def keys(before: Array, prefix: Array, b: Array) -> Array:
            """Of candidates after bin b, the sums before it and up to it given."""
            best = _key(gain(prefix, True), 2 * width - b)
            if not bins.has_missing:
                return best
            # Bins from b on go right, and the missing ones left.
            backward = jnp.where(some, gain(known - before, False), -jnp.inf)
            return jnp.maximum(best, _key(backward, b))

        best = lax.platform_dependent(
            table[:, :, :width],
            cpu=partial(_best_of_a_loop, keys),
            default=partial(_best_at_once, keys),
        )
        top, rank = _gain_and_rank(best)
        default_left = rank <= width
        at = jnp.where(default_left, rank - 1, 2 * width - rank)
    threshold = jnp.take_along_axis(bins.cuts, at.clip(0), axis=1)
    threshold = jnp.where(at >= 0, threshold, bins.lowest[:, None])
    sets = None
    words = jnp.zeros((*top.shape, 0), jnp.uint32)
    if use.categorical:
        where = jnp.asarray(use.categorical, jnp.int32)
        with jax.enable_x64(True):
            halves = lambda w: unpack(jnp.moveaxis(w, 1, 0))[:channels]  # noqa: E731
            by_bin = halves(table[where][:, :, :width]).astype(jnp.int64)
            astray = halves(missing[where]).astype(jnp.int64)

            def of_set(right: Array) -> Array:
                ones = (1,) * (right.ndim - 2)
                spread = lambda a: a.reshape(*a.shape[:-1], *ones, slots)  # noqa: E731
                right = right * unit.reshape(-1, *(1,) * (right.ndim - 1))
                limits = None
                if bounds is not None:
                    limits = spread(bounds[:, 0]), spread(bounds[:, 1])
                left = spread(sums) - right
                return gain_of(rule, left, right, spread(score), limits, jnp.int32(0))

            sets = best_sets(
                by_bin,
                astray,
                jnp.sum(jnp.isfinite(bins.cuts[where]), axis=1).astype(jnp.int32),
                of_set,
                rule,
                unit,
                use.onehot_below,
                use.most_categories,
            )
        top = jnp.asarray(top).at[where].set(sets.gain)
        default_left = jnp.asarray(default_left).at[where].set(sets.default_left)
        threshold = threshold.at[where].set(jnp.inf)
        words = jnp.zeros((*top.shape, sets.words.shape[-1]), jnp.uint32)
        words = words.at[where].set(sets.words)
    top = jnp.where(allowed.T, top, -jnp.inf)
    column = jnp.arange(len(top), dtype=jnp.int32)[:, None]
    every = jnp.broadcast_to(column, top.shape)
    splits = best_column(Splits(top, every, threshold, default_left, words))
    each = jnp.arange(slots, dtype=jnp.int32)
    cut = at[splits.feature, each]
    with jax.enable_x64(True):
        by_bin = table[splits.feature, :, :width, each]
        inside = jnp.arange(width, dtype=jnp.int32)[None, :] <= cut[:, None]
        left = jnp.sum(jnp.where(inside[:, None], by_bin, 0), axis=2)
        astray = missing[splits.feature, :, each]
        left = left + jnp.where(splits.default_left[:, None], astray, 0)
        left = unpack(left.T)[:channels].astype(jnp.int64)
        if sets is not None:
            order = (
                jnp.zeros(len(top), jnp.int32)
                .at[where]
                .set(jnp.arange(len(use.categorical), dtype=jnp.int32))
            )
            others = total - sets.right[:, order[splits.feature], each]
            by_set = is_member(use.categorical, len(top))[splits.feature]
            left = jnp.where(by_set[None], others, left)
        return splits, cut, left


def _best_of_a_loop(
    keys: Callable[[Array, Array, Array], Array], table: Table
) -> Int[Array, "columns slots"]:
    """The largest key of all bins, one bin after the other."""

    def step(b: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        before, best = carry
        prefix = before + table[:, :, b]
        return prefix, jnp.maximum(best, keys(before, prefix, b))

    shape = table.shape[:2] + table.shape[3:]
    none = _key(jnp.full((shape[0], shape[2]), -jnp.inf, jnp.float32), 0)
    return lax.fori_loop(0, table.shape[2], step, (jnp.zeros(shape, jnp.int64), none))[
        1
    ]


def _best_at_once(
    keys: Callable[[Array, Array, Array], Array], table: Table
) -> Int[Array, "columns slots"]:
    """The same, all bins side by side."""
    prefix = jnp.cumsum(table, axis=2)
    each = jnp.arange(table.shape[2], dtype=jnp.int32)
    by_bin = jax.vmap(keys, (2, 2, 0))(prefix - table, prefix, each)
    return jnp.max(by_bin, axis=0)


def _key(gain: Float[Array, "columns slots"], rank: Array | int) -> Array:
    """An int64 that grows with the gain, and among equal ones with the rank."""
    bits = lax.bitcast_convert_type(gain, jnp.int32)
    bits = jnp.where(bits < 0, bits ^ jnp.int32(2**31 - 1), bits)
    return (bits.astype(jnp.int64) << 32) | jnp.asarray(rank, jnp.int64)


def _gain_and_rank(key: Array) -> tuple[Array, Array]:
    bits = (key >> 32).astype(jnp.int32)
    bits = jnp.where(bits < 0, bits ^ jnp.int32(2**31 - 1), bits)
    gain = lax.bitcast_convert_type(bits, jnp.float32)
    return gain, (key & jnp.int64(2**32 - 1)).astype(jnp.int32)


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
    if splits.categories.shape[1]:
        by_set = jnp.any(splits.categories != 0, axis=1) & alive
        right = jnp.where(by_set[slot], holds(splits.categories, slot, index), right)
    if not bins.has_missing:
        return right.astype(jnp.int32)
    stay = (splits.default_left | ~alive)[slot]
    lost = index == bins.width
    return jnp.where(lost, ~stay, right).astype(jnp.int32)
