"""Features as small integers: cuts of every column, and the bin of every value.

Bin b of a column holds the values cuts[b-1] <= x < cuts[b]; values above the last cut go to
the last bin, missing ones to a bin of their own behind all others. A split after bin b is
the float32 threshold cuts[b], so that a tree found on bins predicts on values.

Columns with at most `max_bin` distinct values get a bin for each; others are cut at their
(weighted) quantiles, exact ones, from one sort. Bins lie column by column, for a histogram
reads one column at a time.

The trap: another choice of cuts is another model, and moves a test AUC by thousandths; to
compare with XGBoost give both the same, `DMatrix.get_quantile_cut()`.

Reference: Chen and Guestrin, "XGBoost: A Scalable Tree Boosting System", KDD 2016,
https://arxiv.org/abs/1603.02754 (section 3.2 and appendix A; here sorted, not sketched).
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxml.export import export
from jaxml.typing import Array, Float

Leaf = Any
"""An array; or what JAX puts in its place while it takes a pytree apart."""
GAP = 1e-5
"""The last cut lies above the greatest value by this share of it and this much."""


@export("trees.bins.Bins", since="0.1")
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Bins:
    """Binned features.

    Attributes:
        index: [columns, rows], the bin of every value; `width` where it is missing.
        cuts: [columns, bins], their upper bounds, ascending; +inf behind the last.
        lowest: [columns], below all values: the threshold that parts them from the missing ones.
        has_missing: whether values may be missing; if not, there is no bin for them.
    """

    index: Leaf
    cuts: Leaf
    lowest: Leaf
    has_missing: bool = field(default=True, metadata={"static": True})

    @property
    def width(self) -> int:
        """Bins for values; missing ones have one more."""
        return self.cuts.shape[1]

    @property
    def stride(self) -> int:
        """All bins of a column."""
        return self.width + self.has_missing

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns), as of the features themselves."""
        return self.index.shape[1], self.index.shape[0]


@export("trees.bins.make_bins", since="0.1")
def make_bins(
    x: Float[Array, "rows columns"],
    max_bin: int = 256,
    weights: Float[Array, " rows"] | None = None,
    axis_name: str | None = None,
    *,
    has_missing: bool = True,
    categorical: tuple[int, ...] = (),
) -> Bins:
    """Cuts the columns at quantiles and bins their values.

    Args:
        x: features; NaN is missing.
        max_bin: bins per column, at least 2.
        weights: of the rows, for weighted quantiles; rows of weight zero make no cuts.
        axis_name: mesh axis over which the rows are split; all of them are gathered to
            find the cuts.
        has_missing: False where no value is NaN, which saves a bin.
        categorical: columns of categories 0, 1, ... below `max_bin`, one to a bin.

    >>> bins = make_bins(jnp.array([[3.0], [1.0], [jnp.nan], [1.0]]), max_bin=4)
    >>> bins.index.tolist(), bins.cuts.round(2).tolist()
    ([[1, 0, 4, 0]], [[3.0, 6.0, inf, inf]])
    """
    if not 2 <= max_bin < 2**15:
        raise ValueError(f"max_bin must be in [2, 32768), got {max_bin}")
    columns = jnp.asarray(x, jnp.float32).T
    every, mass = columns, None if weights is None else jnp.asarray(weights)
    if axis_name is not None:
        every = lax.all_gather(columns, axis_name, axis=1, tiled=True, to="invarying")
        if mass is not None:
            mass = lax.all_gather(mass, axis_name, tiled=True, to="invarying")
    if mass is None:
        # Two loops: in one, XLA would make the sorted column again for each of its uses.
        ascending = lax.map(_ascending, every)
        found = lax.map(lambda column: _cut(column, None, max_bin), ascending)
    else:

        def weighted(column: Array) -> tuple[Array, Array]:
            column = jnp.where(mass > 0, column, jnp.nan)
            order = jnp.argsort(column)
            return _cut(column[order], mass[order], max_bin)

        found = lax.map(weighted, every)
    if categorical:
        which = jnp.asarray(categorical, jnp.int32)
        most = jnp.max(jnp.nan_to_num(every[which], nan=-1.0), axis=1, keepdims=True)
        code = jnp.arange(max_bin, dtype=jnp.float32)[None, :]
        ends = jnp.where(code <= most, code + 1, jnp.inf)
        found = jnp.asarray(found[0]).at[which].set(ends), found[1]
    return assign(columns, *found, has_missing=has_missing)


@export("trees.bins.from_cuts", since="0.1")
def from_cuts(
    x: Float[Array, "rows columns"],
    cuts: list[Float[np.ndarray, "_"]],
    lowest: Float[Array, " columns"] | None = None,
    max_bin: int | None = None,
    *,
    has_missing: bool = True,
) -> Bins:
    """Bins the features at given cuts, one ascending vector per column.

    Args:
        x: features; NaN is missing.
        cuts: upper bounds of the bins of every column.
        lowest: below all values of every column; by default a little below the first cut.
        max_bin: bins per column, at least as many as cuts; by default as many.
        has_missing: False where no value is NaN, which saves a bin.

    Raises:
        ValueError: unless there is one vector for each column, ascending, not empty.
    """
    if len(cuts) != x.shape[1] or not all(len(c) for c in cuts):
        raise ValueError(
            f"cuts must be {x.shape[1]} vectors, none empty, got {len(cuts)}"
        )
    if any((np.diff(c) < 0).any() for c in cuts):
        raise ValueError("cuts must be ascending")
    table = np.full((len(cuts), max_bin or max(map(len, cuts))), np.inf, np.float32)
    for row, one in zip(table, cuts, strict=True):
        row[: len(one)] = one
    if lowest is None:
        first = np.array([c[0] for c in cuts], np.float32)
        lowest = first - (np.abs(first) + np.float32(GAP))
    columns = jnp.asarray(x, jnp.float32).T
    lowest = jnp.asarray(lowest, jnp.float32)
    return assign(columns, jnp.asarray(table), lowest, has_missing=has_missing)


def assign(
    columns: Float[Array, "columns rows"],
    cuts: Float[Array, "columns bins"],
    lowest: Float[Array, " columns"],
    *,
    has_missing: bool = True,
) -> Bins:
    """The bin of every value: the first cut above it, or the column's last bin."""
    width = cuts.shape[1]
    dtype = jnp.dtype(jnp.uint8 if width + has_missing <= 256 else jnp.uint16)
    last = jnp.sum(jnp.isfinite(cuts), axis=1).astype(jnp.int32) - 1

    def one(column: tuple[Array, Array, Array]) -> Array:
        value, cut, end = column
        index = jnp.minimum(
            jnp.searchsorted(cut, value, side="right", method="scan_unrolled"),
            end.clip(0),
        )
        if has_missing:
            index = jnp.where(jnp.isnan(value), width, index)
        return index.astype(dtype)

    index = lax.map(one, (columns, cuts, last))
    return Bins(index, cuts, lowest, has_missing)


def _ascending(x: Float[Array, " rows"]) -> Float[Array, " rows"]:
    """Sorted, NaN last; as integers, which XLA's CPU backend sorts five times as fast."""
    x = jnp.where(jnp.isnan(x), jnp.float32(jnp.nan), jnp.where(x == 0, 0.0, x))
    bits = lax.bitcast_convert_type(x, jnp.int32)
    flip = lambda b: jnp.where(b < 0, b ^ jnp.int32(2**31 - 1), b)  # noqa: E731
    bits = flip(jnp.sort(flip(bits)))
    return lax.bitcast_convert_type(bits, jnp.float32)


def _cut(
    value: Float[Array, " rows"], weights: Float[Array, " rows"] | None, max_bin: int
) -> tuple[Float[Array, " bins"], Float[Array, ""]]:
    """Cuts of one ascending column, and its lowest threshold."""
    n = len(value)
    present = ~jnp.isnan(value)
    count = jnp.sum(present)
    top = jnp.where(count > 0, value[(count - 1).clip(0)], 0.0)
    low = jnp.where(count > 0, value[0], 0.0)
    is_new = present & (value != jnp.roll(value, 1)).at[0].set(False)
    order = jnp.cumsum(is_new)  # distinct values before each
    distinct = order[-1] + 1
    # A bin for each value: cut at all distinct values but the first.
    slot = jnp.where(is_new & (order < max_bin), order - 1, max_bin)
    each = jnp.full(max_bin, jnp.inf).at[slot].set(value, mode="drop")
    # Or quantiles: the value at which j / max_bin of the mass is reached.
    share = jnp.arange(1, max_bin + 1, dtype=jnp.float32) / max_bin
    if weights is None:
        # j count / max_bin without overflow or rounding.
        j = jnp.arange(1, max_bin + 1, dtype=jnp.int32)
        at = j * (count // max_bin) + j * (count % max_bin) // max_bin
    else:
        mass = jnp.cumsum(jnp.where(present, weights, 0))
        at = jnp.searchsorted(mass, share * mass[-1], side="left") + 1
    at = jnp.minimum(at, count - 1).clip(0, n - 1)
    quantiles = value[at]
    above = top + (jnp.abs(top) + GAP)
    few = distinct <= max_bin
    cuts = jnp.where(few, each, quantiles)
    end = jnp.where(few, distinct - 1, max_bin - 1)
    cuts = cuts.at[end.clip(0, max_bin - 1)].set(above)
    return cuts, low - (jnp.abs(low) + GAP)
