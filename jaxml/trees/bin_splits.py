"""The best split of every node, between bins, of sums by bin and node.

Candidates are tried as XGBoost does: bins ascending with missing values right, then, in
nodes that have some, bins descending with missing values left; of equal gains the first.
What is compared is one key, the gain in its high half, and in its low half which candidate
it is, the earlier the larger: the largest key is the same in any order. On a CPU one loop
goes over the bins, all columns and nodes side by side; elsewhere all bins go at once.

Categorical columns are split by sets of `categories` instead.

Reference: Chen and Guestrin, "XGBoost: A Scalable Tree Boosting System", KDD 2016,
https://arxiv.org/abs/1603.02754 (algorithms 2 and 3).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxml.trees.bin_sums import Table, pack, unpack
from jaxml.trees.bins import Bins
from jaxml.trees.categories import Sets, best_sets, holds, is_member
from jaxml.trees.growth import Columns, Splits, best_column, gain_of
from jaxml.trees.rule import Rule
from jaxml.typing import Array, Bool, Float, Int

Keys = Callable[[Array, Array, Array], Array]
"""(sums before a bin, sums up to it, the bin) -> the largest key of its candidates."""


class Level(NamedTuple):
    """The nodes of a level, as the search reads them.

    Attributes:
        table: integer sums by bin, two channels to a word.
        missing: those of the rows without a value.
        total: integer sums of the nodes.
        sums: the same as numbers.
        unit: of the integers.
        score: of the nodes as they are.
        bounds: of their values, or None.
        rule: scores sums.
        use: constraints of the columns.
    """

    table: Table
    missing: Int[Array, "columns words slots"]
    total: Int[Array, "channels slots"]
    sums: Float[Array, "channels slots"]
    unit: Float[Array, " channels"]
    score: Float[Array, " slots"]
    bounds: Float[Array, "slots 2"] | None
    rule: Rule
    use: Columns

    def halves(self, words: Array) -> Int[Array, "channels columns *n"]:
        """The channels of [columns, words, ...]."""
        return unpack(jnp.moveaxis(words, 1, 0))[: len(self.total)]

    def limits(self, ones: int) -> tuple[Array, Array] | None:
        """Lower and upper bounds, behind so many axes of one."""
        if self.bounds is None:
            return None
        shape = (1,) * ones + (-1,)
        return self.bounds[:, 0].reshape(shape), self.bounds[:, 1].reshape(shape)


def level_of(
    bins: Bins,
    table: Table,
    total: Int[Array, "channels slots"],
    unit: Float[Array, " channels"],
    rule: Rule,
    bounds: Float[Array, "slots 2"] | None,
    use: Columns,
) -> Level:
    """What is known of the nodes before any candidate is tried."""
    with jax.enable_x64(True):
        sums = total * unit[:, None]
        if bounds is None:
            score = rule.score(sums)
        else:
            own = jnp.clip(rule.value(sums), bounds[:, 0][None], bounds[:, 1][None])
            score = rule.score_at(sums, own)
        missing = jnp.zeros_like(table[:, :, 0])
        if bins.has_missing:
            missing = table[:, :, bins.width]
    return Level(table, missing, total, sums, unit, score, bounds, rule, use)


def best_splits(
    bins: Bins, level: Level, allowed: Bool[Array, "slots columns"]
) -> tuple[Splits, Int[Array, " slots"], Int[Array, "channels slots"]]:
    """The best split of every slot, the last bin on its left, and the sums there."""
    top, default_left, at = _between_bins(bins, level)
    threshold = jnp.take_along_axis(bins.cuts, at.clip(0), axis=1)
    threshold = jnp.where(at >= 0, threshold, bins.lowest[:, None])
    words = jnp.zeros((*top.shape, 0), jnp.uint32)
    sets = None
    if level.use.categorical:
        sets = _of_sets(bins, level)
        where = jnp.asarray(level.use.categorical, jnp.int32)
        top = jnp.asarray(top).at[where].set(sets.gain)
        default_left = jnp.asarray(default_left).at[where].set(sets.default_left)
        threshold = threshold.at[where].set(jnp.inf)
        words = jnp.zeros((*top.shape, sets.words.shape[-1]), jnp.uint32)
        words = words.at[where].set(sets.words)
    top = jnp.where(allowed.T, top, -jnp.inf)
    column = jnp.arange(len(top), dtype=jnp.int32)[:, None]
    every = jnp.broadcast_to(column, top.shape)
    splits = best_column(Splits(top, every, threshold, default_left, words))
    cut = at[splits.feature, jnp.arange(top.shape[1], dtype=jnp.int32)]
    return splits, cut, _sums_of_the_left(bins, level, splits, cut, sets)


def _between_bins(
    bins: Bins, level: Level
) -> tuple[
    Float[Array, "columns slots"],
    Bool[Array, "columns slots"],
    Int[Array, "columns slots"],
]:
    """(gain, whether missing rows go left, the last bin on the left) of the best split."""
    width = bins.width
    signs = level.use.monotone or (0,) * len(bins.cuts)
    with jax.enable_x64(True):
        whole, score = level.sums[:, None], level.score[None]
        known = pack(level.total)[None] - level.missing
        some = jnp.any(level.missing != 0, axis=1)

        def gain(words: Array, is_left: bool) -> Array:
            side = level.halves(words).astype(jnp.float64) * level.unit[:, None, None]
            left, right = (side, whole - side) if is_left else (whole - side, side)
            sign = jnp.asarray(signs, jnp.int32)[:, None]
            return gain_of(level.rule, left, right, score, level.limits(1), sign[None])

        def keys(before: Array, prefix: Array, b: Array) -> Array:
            best = _key(gain(prefix, True), 2 * width - b)
            if not bins.has_missing:
                return best
            # Bins from b on go right, and the missing ones left.
            backward = jnp.where(some, gain(known - before, False), -jnp.inf)
            return jnp.maximum(best, _key(backward, b))

        best = lax.platform_dependent(
            level.table[:, :, :width],
            cpu=partial(_best_of_a_loop, keys),
            default=partial(_best_at_once, keys),
        )
        top, rank = _gain_and_rank(best)
        default_left = rank <= width
        return top, default_left, jnp.where(default_left, rank - 1, 2 * width - rank)


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
    start = jnp.zeros(shape, jnp.int64), none
    return lax.fori_loop(0, table.shape[2], step, start)[1]


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


def _of_sets(bins: Bins, level: Level) -> Sets:
    """The best sets of the categorical columns."""
    where = jnp.asarray(level.use.categorical, jnp.int32)
    with jax.enable_x64(True):
        by_bin = level.halves(level.table[where][:, :, : bins.width])
        missing = level.halves(level.missing[where])

        def gain(right: Array) -> Array:
            ones = right.ndim - 2
            spread = (-1,) + (1,) * ones + (len(level.score),)
            right = right * level.unit.reshape(-1, *(1,) * (ones + 1))
            left = level.sums.reshape(spread) - right
            score = level.score.reshape(spread[1:])
            limits = level.limits(ones)
            return gain_of(level.rule, left, right, score, limits, jnp.int32(0))

        return best_sets(
            by_bin.astype(jnp.int64),
            missing.astype(jnp.int64),
            jnp.sum(jnp.isfinite(bins.cuts[where]), axis=1).astype(jnp.int32),
            gain,
            level.rule,
            level.unit,
            level.use.onehot_below,
            level.use.most_categories,
        )


def _sums_of_the_left(
    bins: Bins,
    level: Level,
    splits: Splits,
    cut: Int[Array, " slots"],
    sets: Sets | None,
) -> Int[Array, "channels slots"]:
    """Integer sums of the first child of every slot."""
    each = jnp.arange(len(cut), dtype=jnp.int32)
    with jax.enable_x64(True):
        by_bin = level.table[splits.feature, :, : bins.width, each]
        inside = jnp.arange(bins.width, dtype=jnp.int32)[None, :] <= cut[:, None]
        left = jnp.sum(jnp.where(inside[:, None], by_bin, 0), axis=2)
        astray = level.missing[splits.feature, :, each]
        left = left + jnp.where(splits.default_left[:, None], astray, 0)
        left = level.halves(left).astype(jnp.int64)
        if sets is None:
            return left
        categorical = level.use.categorical
        order = jnp.zeros(len(level.table), jnp.int32)
        order = order.at[jnp.asarray(categorical, jnp.int32)].set(
            jnp.arange(len(categorical), dtype=jnp.int32)
        )
        by_set = is_member(categorical, len(level.table))[splits.feature]
        others = level.total - sets.right[:, order[splits.feature], each]
        return jnp.where(by_set[None], others, left)


def goes_right(
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
