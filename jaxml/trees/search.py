"""The best threshold of one column per node, for all open nodes of a level at once.

Four ways to the sums: rows sorted by (node, code) with prefix sums over them; a `walk` over
rows sorted by code alone; a table by node and code with prefix sums over codes; or one
threshold per node drawn at random. The first three find the same splits; which is quickest
depends on the device and on how many nodes are open. Missing rows are tried on both sides
of every threshold, and against all the others.

The trap: a threshold lies between values that the node itself has, not between
neighbouring codes, or predictions fall on the wrong side of a gap.

Reference: Breiman et al., "Classification and Regression Trees", 1984,
https://doi.org/10.1201/9781315139470 (section 2.4); random thresholds as in Geurts et al.,
"Extremely Randomized Trees", Machine Learning 2006,
https://doi.org/10.1007/s10994-006-6226-1.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxml.trees import radix
from jaxml.trees.codes import Codes
from jaxml.trees.deviation import Targets, both_sides
from jaxml.trees.impurity import Impurity
from jaxml.trees.scan import prefix_sums
from jaxml.trees.scatter import kind_of
from jaxml.trees.walk import walk
from jaxml.typing import Array, Bool, Float, Int, PRNGKeyArray


class Shape(NamedTuple):
    """What a program that grows trees is compiled for.

    Attributes:
        nodes: that a tree may have.
        open: nodes of one level that may split.
        random: thresholds are drawn instead of searched.
        draws: whether nodes draw columns; otherwise all are tried.
        has_missing: whether values may be missing.
        counts: whether the last channel counts rows, for `min_leaf` above 1.
        tables: how many open nodes each table serves, ascending.
        sorts: whether more nodes than that are served, by sorting.
        stages: rows and shape of each stage, for `stages`; none for all in one.
    """

    nodes: int
    open: int
    random: bool = False
    draws: bool = False
    has_missing: bool = True
    counts: bool = True
    tables: tuple[int, ...] = ()
    sorts: bool = True
    stages: tuple[tuple[int, "Shape"], ...] = ()

    def bare(self, sums: Array) -> Array:
        """Sums without the channel that counts rows."""
        return sums[:-1] if self.counts else sums


class Rows(NamedTuple):
    """What is known of the rows; targets where deviations from medians are the cost."""

    x: Float[Array, "columns rows"]
    codes: Codes | None
    q: Float[Array, "rows channels"]
    same: Int[Array, " rows"]
    targets: Targets | None = None


class Level(NamedTuple):
    """The open nodes of a level: slots of rows, places once rows are sorted by slot."""

    slot: Int[Array, " rows"]
    first: Int[Array, " open"]
    count: Int[Array, " open"]
    sums: Float[Array, "channels open"]


class Least(NamedTuple):
    """The least that a child must have."""

    rows: Int[Array, ""]
    weight: Float[Array, ""]


class Split(NamedTuple):
    """The best split of every open node; the gain is -inf where there is none.

    Rows are parted by the last code on the left, or by thresholds that were drawn.
    """

    gain: Float[Array, " open"]
    feature: Int[Array, " open"]
    below: Int[Array, " open"]
    threshold: Float[Array, " open"]
    default_left: Bool[Array, " open"]
    some_missing: Bool[Array, " open"]


Found = tuple[Split, Float[Array, "channels open"], Bool[Array, " open"]]
"""Splits, sums of their left children, and whether the column varies in the node."""


def by_sort(
    rows: Rows,
    level: Level,
    feature: Int[Array, " open"],
    impurity: Impurity,
    least: Least,
    shape: Shape,
) -> Found:
    """Every threshold, from rows in the order of (slot, code, row)."""
    codes = rows.codes
    assert codes is not None
    n, width, capacity = rows.x.shape[1], codes.width, len(feature)
    row_bits, code_bits = max(n - 1, 1).bit_length(), width.bit_length()
    row = jnp.arange(n, dtype=jnp.int64)
    code = _at(codes.index, feature, level.slot).astype(jnp.int64)
    key = (level.slot.astype(jnp.int64) << code_bits) + code
    bits = row_bits + code_bits + capacity.bit_length()
    key = radix.sort((key << row_bits) + row, row_bits, bits)
    row = (key & (2**row_bits - 1)).astype(jnp.int32)
    key = key >> row_bits
    code = (key & (2**code_bits - 1)).astype(jnp.int32)
    slot = (key >> code_bits).astype(jnp.int32)
    near = jnp.minimum(slot, capacity - 1)

    before = jnp.cumsum(level.sums, axis=1) - level.sums  # of the slots before each
    q = take(rows.q, row).T
    left = prefix_sums(q) - take(before.T, near).T
    total = take(level.sums.T, near).T
    place = jnp.arange(n, dtype=jnp.int32)
    last = place == take(level.first + level.count - 1, near)
    ahead = jnp.where(last, -1, jnp.roll(code, -1))
    present = (slot < capacity) & (code < width)
    ends = present & ~last & (ahead != code)
    gain = _gain(impurity, left, total - left, least, shape)
    if rows.targets is not None:
        first = level.first[near]
        weight = impurity.weight(shape.bare(q))
        cost = both_sides(
            rows.targets, row, weight, first, first + level.count[near] - 1
        )
        gain = jnp.where(gain > -jnp.inf, cost, -jnp.inf)
    gain = jnp.where(ends, gain, -jnp.inf)
    most_left, missing = jnp.zeros(n, bool), jnp.zeros_like(level.sums)
    if shape.has_missing:
        known_at = jnp.where(present & (last | (ahead == width)), slot, capacity)
        known = jnp.zeros_like(missing).at[:, known_at].set(left, mode="drop")
        missing = level.sums - known
        other = left + missing[:, near]
        other = _gain(impurity, other, total - other, least, shape)
        other = jnp.where(ends & (ahead < width), other, -jnp.inf)
        most_left = other > gain
        gain = jnp.maximum(gain, other)
    sure = {"mode": "promise_in_bounds", "indices_are_sorted": True}
    none = jnp.full(capacity + 1, -jnp.inf)
    top = none.at[slot].max(gain, **sure)
    tied = jnp.where(gain == take(top, slot), place, n - 1)
    best = jnp.full(capacity + 1, n - 1, jnp.int32).at[slot].min(tied, **sure)
    best = jnp.minimum(best[:capacity], n - 1)
    goes = most_left[best]
    sums = left[:, best] + jnp.where(goes[None, :], missing, 0)
    ends_at = jnp.clip(level.first + level.count - 1, 0, n - 1)
    lowest, highest = code[jnp.minimum(level.first, n - 1)], code[ends_at]
    split = Split(
        gain=top[:capacity],
        feature=feature,
        below=code[best],
        threshold=_threshold(codes, feature, code[best], ahead[best]),
        default_left=goes,
        some_missing=highest == width,
    )
    return split, sums, lowest != highest


def by_walk(
    rows: Rows,
    level: Level,
    feature: Int[Array, " open"],
    impurity: Impurity,
    least: Least,
    shape: Shape,
) -> Found:
    """Every threshold, from rows in the order of their codes; for CPUs."""
    codes = rows.codes
    assert codes is not None
    code = _at(codes.index, feature, level.slot)
    found, goes = walk(
        code,
        level.slot,
        rows.q,
        level.sums,
        partial(_gain, impurity, shape=shape),
        least,
        codes.width,
        shape.has_missing,
    )
    split = Split(
        gain=found.gain,
        feature=feature,
        below=found.below,
        threshold=_threshold(codes, feature, found.below, found.above),
        default_left=goes,
        some_missing=found.last == codes.width,
    )
    return split, found.left, found.above >= 0


def by_table(
    rows: Rows,
    level: Level,
    feature: Int[Array, " open"],
    impurity: Impurity,
    least: Least,
    shape: Shape,
    size: int,
) -> Found:
    """Every threshold, from sums by slot and code; only the first `size` slots are open."""
    codes = rows.codes
    assert codes is not None
    width, capacity = codes.width, len(feature)
    stride = width + 1
    kind = kind_of(size * stride + 1)
    code = _at(codes.index, feature[:size], level.slot)
    place = level.slot.astype(kind) * kind.type(stride) + code.astype(kind)
    place = jnp.where(level.slot < size, place, kind.type(size * stride))
    table = jnp.zeros((size * stride + 1, rows.q.shape[1]), rows.q.dtype)
    table = table.at[place].add(rows.q, mode="promise_in_bounds")[:-1]
    table = jnp.moveaxis(table.reshape(size, stride, -1), 2, 0)
    total, missing = level.sums[:, :size, None], table[..., width:]
    left = prefix_sums(table[..., :width])
    some = _weight(impurity, table, shape) > 0
    filled, some_missing = some[:, :width], some[:, width]
    each = jnp.arange(width, dtype=jnp.int32)[None, :]
    gain = _gain(impurity, left, total - left, least, shape)
    gain = jnp.where(filled, gain, -jnp.inf)
    goes = jnp.zeros((size, width), bool)
    if shape.has_missing:
        other = left + missing
        other = _gain(impurity, other, total - other, least, shape)
        highest = jnp.max(jnp.where(filled, each, -1), axis=1)
        inner = filled & (each < highest[:, None]) & some_missing[:, None]
        other = jnp.where(inner, other, -jnp.inf)
        goes = other > gain
        gain = jnp.maximum(gain, other)
    top = jnp.max(gain, axis=1)
    best = jnp.where(gain == top[:, None], each, width - 1).min(axis=1)
    after = jnp.where(filled & (each > best[:, None]), each, width).min(axis=1)
    most_left = jnp.take_along_axis(goes, best[:, None], axis=1)[:, 0]
    sums = jnp.take_along_axis(left, best[None, :, None], axis=2)[..., 0]
    sums = sums + jnp.where(most_left[None, :], missing[..., 0], 0)
    split = Split(
        gain=top,
        feature=feature[:size],
        below=best.astype(jnp.int32),
        threshold=_threshold(codes, feature[:size], best, after),
        default_left=most_left,
        some_missing=some_missing,
    )
    varies = jnp.sum(some, axis=1) > 1

    def pad(part: Array) -> Array:
        edges = [(0, 0)] * (part.ndim - 1) + [(0, capacity - size)]
        fill = -jnp.inf if jnp.issubdtype(part.dtype, jnp.floating) else 0
        return jnp.pad(part, edges, constant_values=fill)

    return jax.tree.map(pad, split), pad(sums), pad(varies)


def by_chance(
    rows: Rows,
    level: Level,
    feature: Int[Array, " open"],
    impurity: Impurity,
    least: Least,
    shape: Shape,
    key: PRNGKeyArray,
) -> Found:
    """One threshold per node, uniform between its extremes; missing rows by a coin."""
    capacity = len(feature)
    near = jnp.minimum(level.slot, capacity - 1)
    value = _at(rows.x, feature, near)
    present = ~jnp.isnan(value)
    inf = jnp.float32(jnp.inf)
    sure = {"mode": "promise_in_bounds"}
    most = jnp.full(capacity + 1, inf)  # the last for rows at rest
    low = most.at[level.slot].min(jnp.where(present, value, inf), **sure)[:-1]
    high = (-most).at[level.slot].max(jnp.where(present, value, -inf), **sure)[:-1]
    where, coin = jax.random.uniform(key, (2, capacity), jnp.float32)
    varies = high > low
    span = jnp.where(varies, high - low, 0)
    cut = jnp.where(varies, low, 0) + where * span
    cut = jnp.where((cut >= high) | (cut < low), low, cut)
    goes = coin < 0.5
    left_is = jnp.where(present, value <= take(cut, near), take(goes, near))
    parts = jnp.where(left_is[:, None], rows.q, 0)
    left = jnp.zeros((capacity + 1, rows.q.shape[1]))
    left = left.at[level.slot].add(parts, **sure)[:-1].T
    gain = _gain(impurity, left, level.sums - left, least, shape)
    some = jnp.zeros(capacity, bool)
    if shape.has_missing:
        some = some.at[level.slot].max(~present, mode="drop")
    split = Split(
        gain=jnp.where(varies, gain, -jnp.inf),
        feature=feature,
        below=jnp.zeros(capacity, jnp.int32),
        threshold=jnp.nextafter(cut, inf),
        default_left=goes,
        some_missing=some,
    )
    return split, left, varies


def goes_left(rows: Rows, slot: Array, split: Split) -> Bool[Array, " rows"]:
    """Whether each row goes to the first child of its node, if that splits.

    Codes say the same as features, and are a quarter of their size.
    """
    if rows.codes is None:
        value = _at(rows.x, split.feature, slot)
        below = value < take(split.threshold, slot)
        missing = jnp.isnan(value)
    else:
        value = _at(rows.codes.index, split.feature, slot)
        below = value <= take(split.below, slot)
        missing = value == rows.codes.width
    return jnp.where(missing, take(split.default_left, slot), below)


def default_side(split: Split, count: Int[Array, " children"]) -> Bool[Array, " open"]:
    """Where missing values go: as found, or with most rows where none was missing."""
    left, right = count[0::2], count[1::2]
    return jnp.where(split.some_missing, split.default_left, left > right)


def _at(table: Array, feature: Array, slot: Array) -> Array:
    """Each row's entry in the column that its node looks at; some entry at rest."""
    if len(feature) == 1:
        return table[feature[0]]
    n = table.shape[1]
    near = jnp.minimum(slot, len(feature) - 1)
    at = take(feature, near) * n + jnp.arange(n, dtype=jnp.int32)
    return take(table.reshape(-1), at)


def take(values: Array, index: Array) -> Array:
    """Rows of `values`, without a check that the index is in bounds."""
    return jnp.asarray(values).at[index].get(mode="promise_in_bounds")


def _gain(
    impurity: Impurity, left: Array, right: Array, least: Least, shape: Shape
) -> Float[Array, "..."]:
    """Scores of both sides, -inf where a child may not be."""
    fits = jnp.bool_(True)
    if shape.counts:
        fits = (left[-1] >= least.rows) & (right[-1] >= least.rows)
    left, right = shape.bare(left), shape.bare(right)
    fits &= admits(impurity, left, least) & admits(impurity, right, least)
    return jnp.where(
        fits, impurity.rule.score(left) + impurity.rule.score(right), -jnp.inf
    )


def admits(impurity: Impurity, sums: Array, least: Least) -> Bool[Array, "..."]:
    """Whether a node of these sums, without the channel of rows, may be a child."""
    return impurity.rule.admits(sums) & (impurity.weight(sums) >= least.weight)


def _weight(impurity: Impurity, sums: Array, shape: Shape) -> Float[Array, "..."]:
    return impurity.weight(shape.bare(sums))


def _threshold(
    codes: Codes, feature: Array, below: Array, above: Array
) -> Float[Array, " open"]:
    """The least float32 above the middle of the values that face each other.

    A row is left of the middle t if x <= t, in the manner of scikit-learn, and in float32
    that is x < this threshold. +inf parts the present from the missing ones.
    """
    last = codes.width - 1
    low = codes.high[feature, jnp.clip(below, 0, last)].astype(jnp.float64)
    high = codes.low[feature, jnp.clip(above, 0, last)].astype(jnp.float64)
    middle = low / 2 + high / 2
    near = middle.astype(jnp.float32)
    up = jnp.nextafter(near, jnp.float32(jnp.inf))
    near = jnp.where(near > middle, near, up)
    return jnp.where(above >= codes.width, jnp.float32(jnp.inf), near)
