"""Exact greedy splits: every threshold between two values that a node's rows have.

Columns are sorted once. On each level the rows of a column stay grouped by node and, inside
a node, sorted by value: a stable partition by child keeps them so in O(n), and one prefix
sum over a column then holds the sums left of every candidate of every node.

With rows a < b next to each other the threshold is (a + b) / 2 in float32. Missing rows are
tried on both sides; two more candidates part all present rows from the missing ones. Sums
are 62-bit integers (`fixed_point.quantize_wide`), scores float64 rounded to float32, and of
equal gains the first counts, in the order: columns, missing right (thresholds ascending),
missing left (descending). That makes the trees those of XGBoost's `tree_method="exact"`.

The trap: where nothing is missing only missing-left is tried, so default directions are
True there, as in XGBoost.

Reference: Chen and Guestrin, "XGBoost: A Scalable Tree Boosting System", KDD 2016,
https://arxiv.org/abs/1603.02754 (algorithms 1 and 3).
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxml.export import export
from jaxml.trees.fixed_point import power_of_two, quantize_wide
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

GAP = 1e-6
"""Added to the last value where all present rows are parted from the missing ones."""


@export("trees.exact.Sorted", since="0.1")
class Sorted(NamedTuple):
    """Columns in ascending order, missing values last.

    Attributes:
        row: the row at each place.
        value: its value, NaN where missing.
        both_ways: whether missing rows are tried on the right too: some are missing in
            the column, and the others are not all equal. None if none can be missing.
    """

    row: Int[Array, "columns rows"]
    value: Float[Array, "columns rows"]
    both_ways: Bool[Array, " columns"] | None


@export("trees.exact.presort", since="0.1")
def presort(x: Float[Array, "rows columns"], *, has_missing: bool = True) -> Sorted:
    """Sorts the columns of x, once for all trees.

    Args:
        x: features; NaN is missing.
        has_missing: False where no value is NaN: then half the candidates need not be
            tried, nor compiled.

    >>> presort(jnp.array([[2.0], [jnp.nan], [1.0]])).row.tolist()
    [[2, 0, 1]]
    """
    columns = jnp.asarray(x, jnp.float32).T
    row = jnp.argsort(columns, axis=1, stable=True).astype(jnp.int32)
    value = jnp.take_along_axis(columns, row, axis=1)
    value = jnp.where(value == 0, 0.0, value)  # no negative zero
    if not has_missing:
        return Sorted(row, value, None)
    some_missing = jnp.any(jnp.isnan(columns), axis=1)
    varies = jnp.nanmax(columns, axis=1) > jnp.nanmin(columns, axis=1)
    return Sorted(row, value, some_missing & varies)


class _Segments(NamedTuple):
    """How the places of a level are grouped into slots, the same for every column."""

    slot: Int[Array, " rows"]
    first: Int[Array, " slots"]
    count: Int[Array, " slots"]


@export("trees.exact.grow", since="0.1")
def grow(
    columns: Sorted,
    channels: Float[Array, "channels rows"],
    rule: Rule,
    max_depth: int,
    *,
    gamma: Float[Array, ""] | float = 0.0,
    use: Columns | None = None,
    available: Bool[Array, " columns"] | None = None,
    key: PRNGKeyArray | None = None,
) -> tuple[Tree, Int[Array, " rows"]]:
    """One tree, and the leaf of every row.

    Args:
        columns: from `presort`.
        channels: what is summed; rows that are left out carry zeros.
        rule: scores the sums.
        max_depth: levels of splits.
        gamma: splits that gain less are pruned from the leaves up.
        use: constraints and sampling of columns.
        available: the columns that this tree may use.
        key: for the sampling of columns by level and node.

    Returns:
        the tree in heap order, and the node that is each row's leaf.
    """
    use = use or Columns()
    key = jax.random.key(0) if key is None else key
    if available is None:
        available = jnp.ones(len(columns.row), bool)
    # Wide numbers live inside one program only: op by op they would be narrowed.
    program = partial(_grow, rule=rule, max_depth=max_depth, gamma=gamma, use=use)
    return jax.jit(program, inline=True)(columns, channels, available, key)


def _grow(
    columns: Sorted,
    channels: Float[Array, "channels rows"],
    available: Bool[Array, " columns"],
    key: PRNGKeyArray,
    *,
    rule: Rule,
    max_depth: int,
    gamma: Float[Array, ""] | float,
    use: Columns,
) -> tuple[Tree, Int[Array, " rows"]]:
    num_columns, n = columns.row.shape
    with jax.enable_x64(True):
        q, exponent = quantize_wide(channels)
        q = q.T
        unit = power_of_two(-exponent, jnp.float64)
    slots = 2 ** max(max_depth - 1, 0)  # of the widest level that splits

    def level(carry: _Level, depth: Array) -> tuple[_Level, tuple[Nodes, Splits]]:
        columns, slot, alive, bounds, path = carry
        total = _slot_sums(q, slot, slots)
        limits = bounds[:slots] if use.monotone else None
        nodes = _describe(total, unit, rule, limits)
        allowed = use.allowed(jax.random.fold_in(key, depth), available, path)
        splits = _best_splits(
            columns, q, unit, total, slot, rule, allowed, limits, use.monotone
        )
        alive = alive & (splits.gain > MIN_GAIN)
        right = _goes_right(columns, slot, splits, alive)
        columns = _partition(columns, slot, right, slots)
        slot = 2 * slot + right
        if use.monotone:
            child = _slot_sums(q, slot, 2 * slots)
            inherited = jnp.repeat(bounds[:slots], 2, axis=0)
            value = _describe(child, unit, rule, inherited).value.reshape(-1, 2)
            sign = jnp.asarray(use.monotone, jnp.int32)[splits.feature]
            bounds = child_bounds(bounds[:slots], value.sum(axis=1) / 2, sign)
        if use.interaction:
            read = jax.nn.one_hot(splits.feature, num_columns, dtype=bool)
            path = jnp.repeat(path | (read & alive[:, None]), 2, axis=0)[:slots]
        alive = jnp.repeat(alive, 2)[:slots]
        return _Level(columns, slot, alive, bounds, path), (nodes, splits)

    start = _Level(
        columns,
        slot=jnp.zeros(n, jnp.int32),
        alive=jnp.ones(slots, bool),
        bounds=jnp.tile(jnp.array([[-jnp.inf, jnp.inf]], jnp.float32), (2 * slots, 1)),
        path=jnp.zeros((slots, num_columns), bool),
    )
    end, found = lax.scan(level, start, jnp.arange(max_depth))
    levels = [
        jax.tree.map(lambda leaf, d=d: leaf[d, : 2**d], found) for d in range(max_depth)
    ]
    total = _slot_sums(q, end.slot, 2**max_depth)
    limits = end.bounds[: 2**max_depth] if use.monotone else None
    bottom = _describe(total, unit, rule, limits)
    tree, leaf = assemble(levels, bottom, gamma, prune=True)
    return tree, leaf[end.slot]


class _Level(NamedTuple):
    """What is carried from one level to the next."""

    columns: Sorted
    slot: Int[Array, " rows"]
    alive: Bool[Array, " slots"]
    bounds: Float[Array, "children 2"]
    path: Bool[Array, "slots columns"]


def _slot_sums(q: Array, slot: Array, slots: int) -> Int[Array, "channels slots"]:
    with jax.enable_x64(True):
        zero = jnp.zeros((slots, q.shape[1]), jnp.int64)
        return zero.at[slot].add(q, mode="promise_in_bounds").T


def _describe(total: Array, unit: Array, rule: Rule, bounds: Array | None) -> Nodes:
    with jax.enable_x64(True):
        sums = total * unit[:, None]
        value = rule.value(sums)
        cover = rule.cover_of(sums)
    if bounds is not None:
        value = jnp.clip(value, bounds[:, 0][None], bounds[:, 1][None])
    return Nodes(value.T, cover)


def _segments(slot: Array, slots: int) -> _Segments:
    count = jnp.zeros(slots, jnp.int32).at[slot].add(1, mode="promise_in_bounds")
    first = jnp.cumsum(count) - count
    place = jnp.repeat(
        jnp.arange(slots, dtype=jnp.int32), count, total_repeat_length=len(slot)
    )
    return _Segments(place, first, count)


def _best_splits(
    columns: Sorted,
    q: Array,
    unit: Array,
    total: Array,
    slot: Array,
    rule: Rule,
    allowed: Array,
    bounds: Array | None,
    monotone: tuple[int, ...],
) -> Splits:
    """The best split of every slot over all columns."""
    segments = _segments(slot, total.shape[1])
    with jax.enable_x64(True):
        sums = total * unit[:, None]
        own = rule.value(sums)
        if bounds is not None:
            own = jnp.clip(own, bounds[:, 0][None], bounds[:, 1][None])
            score = rule.score_at(sums, own)
        else:
            score = rule.score(sums)

    def gain(sign: Array, left: Array, right: Array) -> Array:
        """Of every place, from integer sums; inside the wide scope."""
        left, right = left * unit[:, None], right * unit[:, None]
        parent = score[segments.slot]
        if bounds is None:
            return gain_of(rule, left, right, parent)
        limits = bounds[segments.slot, 0], bounds[segments.slot, 1]
        return gain_of(rule, left, right, parent, limits, sign)

    def one_column(column: tuple[Sorted, Array, Array]) -> tuple[Array, Array, Array]:
        (row, value, both_ways), may, sign = column
        return _scan_column(
            row, value, both_ways, may, q, total, segments, partial(gain, sign)
        )

    signs = jnp.asarray(monotone or (0,) * len(allowed.T), jnp.int32)
    found = lax.map(one_column, (columns, allowed.T, signs))
    best, threshold, default_left = found
    feature = jnp.arange(len(best), dtype=jnp.int32)[:, None]
    empty = jnp.zeros((*best.shape, 0), jnp.uint32)
    every = jnp.broadcast_to(feature, best.shape)
    return best_column(Splits(best, every, threshold, default_left, empty))


def _scan_column(
    row: Array,
    value: Array,
    both_ways: Array | None,
    may: Array,
    q: Array,
    total: Array,
    segments: _Segments,
    gain: Any,
) -> tuple[Array, Array, Array]:
    """The best gain of each slot in one column, its threshold and default direction."""
    n, slots = len(row), total.shape[1]
    place = jnp.arange(n, dtype=jnp.int32)
    present = ~jnp.isnan(value)
    is_first = place == segments.first[segments.slot]
    ahead = jnp.roll(value, -1)
    is_last_row = place == (segments.first + segments.count - 1)[segments.slot]
    last = present & (is_last_row | jnp.isnan(ahead))
    behind = jnp.roll(value, 1)
    with jax.enable_x64(True):
        prefix = jnp.cumsum(q[row], axis=0)  # over all places before and at each
        before = prefix - q[row]
        base = before[segments.first.clip(0, n - 1)]
        inside = (prefix - base[segments.slot]).T
        outside = (before - base[segments.slot]).T
        # The sums of the present rows of each slot: the prefix at its last of them.
        here = jnp.where(last[None], inside, 0)
        there = jnp.zeros((slots, q.shape[1]), jnp.int64)
        known = there.at[segments.slot].add(here.T, mode="promise_in_bounds").T
        total_at = total[:, segments.slot]

        def missing_right() -> Array:
            valid = present & (last | (ahead != value))
            return jnp.where(valid, gain(inside, total_at - inside), -jnp.inf)

        forward = jnp.full(n, -jnp.inf, jnp.float32)
        if both_ways is not None:
            forward = lax.cond(both_ways, missing_right, lambda: forward)
        right = known[:, segments.slot] - outside
        valid = present & (is_first | (behind != value))
        backward = jnp.where(valid, gain(total_at - right, right), -jnp.inf)

    top_forward, at_forward = _best_place(forward, segments, slots, first=True)
    top_backward, at_backward = _best_place(backward, segments, slots, first=False)
    end = value + (jnp.abs(value) + GAP)
    after = jnp.where(last, end, _middle(value, ahead))[at_forward]
    end = value - (jnp.abs(value) + GAP)
    ahead_of = jnp.where(is_first, end, _middle(behind, value))[at_backward]
    default_left = top_backward > top_forward
    best = jnp.where(may, jnp.maximum(top_forward, top_backward), -jnp.inf)
    return best, jnp.where(default_left, ahead_of, after), default_left


def _middle(low: Array, high: Array) -> Array:
    """Halfway in float32, and never where rounding would leave `low` on the right."""
    middle = (low + high) * jnp.float32(0.5)
    return jnp.where(middle > low, middle, high)


def _best_place(
    gain: Array, segments: _Segments, slots: int, *, first: bool
) -> tuple[Array, Array]:
    """The largest gain of each slot, and the first or last place that has it."""
    place = jnp.arange(len(gain), dtype=jnp.int32)
    top = jax.ops.segment_max(gain, segments.slot, slots, indices_are_sorted=True)
    tied = gain == top[segments.slot]
    if first:
        at = jax.ops.segment_min(
            jnp.where(tied, place, len(gain) - 1),
            segments.slot,
            slots,
            indices_are_sorted=True,
        )
    else:
        at = jax.ops.segment_max(
            jnp.where(tied, place, 0), segments.slot, slots, indices_are_sorted=True
        )
    return top, at.clip(0, len(gain) - 1)


def _goes_right(
    columns: Sorted, slot: Array, splits: Splits, alive: Array
) -> Int[Array, " rows"]:
    """1 for the rows that go to the second child; the rows of leaves stay left."""
    n = len(slot)
    segments = _segments(slot, len(splits.gain))
    feature = splits.feature[segments.slot]
    place = jnp.arange(n, dtype=jnp.int32)
    flat = feature * n + place  # the place in the column that the slot's split reads
    value, row = columns.value.reshape(-1)[flat], columns.row.reshape(-1)[flat]
    default_right = ~splits.default_left[segments.slot]
    right = value >= splits.threshold[segments.slot]
    right = jnp.where(jnp.isnan(value), default_right, right) & alive[segments.slot]
    return jnp.zeros(n, jnp.int32).at[row].set(right.astype(jnp.int32))


def _partition(columns: Sorted, slot: Array, right: Array, slots: int) -> Sorted:
    """Groups the rows of every column by child, keeping their order inside a child."""
    n = len(slot)
    segments = _segments(slot, slots)
    rights = jnp.zeros(slots, jnp.int32).at[slot].add(right)
    middle = segments.first + segments.count - rights

    def one(column: tuple[Array, Array]) -> tuple[Array, Array]:
        row, value = column
        goes = right[row]
        before = jnp.cumsum(goes) - goes  # rows that went right earlier, in any slot
        before = before - before[segments.first.clip(0, n - 1)][segments.slot]
        rank = jnp.arange(n, dtype=jnp.int32) - segments.first[segments.slot]
        to = jnp.where(
            goes == 1,
            middle[segments.slot] + before,
            segments.first[segments.slot] + rank - before,
        )
        put = partial(jnp.zeros_like(row).at[to].set, unique_indices=True)
        return put(row), jnp.zeros_like(value).at[to].set(value, unique_indices=True)

    row, value = lax.map(one, (columns.row, columns.value))
    return Sorted(row, value, columns.both_ways)
