"""Columns as ranks: every value by its place among the distinct values of its column.

A split then compares small integers, and its threshold lies halfway between the two values
that face each other in the node: as exact as floats allow, with no list of candidates.
With `max_codes` neighbouring values share a code, about the same number of rows each, and
thresholds lie halfway between the ranges that codes cover.

The trap: a threshold is found among the rows that are counted. Rows that are not (of
weight zero, or padding) must not open codes of their own.

Reference: Breiman et al., "Classification and Regression Trees", 1984,
https://doi.org/10.1201/9781315139470 (section 2.4, and section 5.6 on thresholds).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxml.export import export
from jaxml.trees import radix
from jaxml.trees.scatter import add_at
from jaxml.typing import Array, Bool, Float, Int


@export("trees.codes.Codes", since="0.1")
class Codes(NamedTuple):
    """Ranks of values.

    Attributes:
        index: the code of every value, `width` where it is missing or not counted.
        low: the least value of each code, +inf where it has none.
        high: the greatest value of each code, -inf where it has none.
    """

    index: Int[Array, "columns rows"]
    low: Float[Array, "columns codes"]
    high: Float[Array, "columns codes"]

    @property
    def width(self) -> int:
        """Codes of values; missing ones have one more."""
        return self.low.shape[1]


@export("trees.codes.encode", since="0.1")
def encode(
    x: Float[Array, "rows columns"],
    max_codes: int | None = None,
    counted: Bool[Array, " rows"] | None = None,
) -> Codes:
    """Ranks the values of every column.

    Args:
        x: features, compared as float32; NaN is missing.
        max_codes: codes per column, at least 2; None for one for each distinct value.
        counted: rows that count; all without it.

    Raises:
        ValueError: if `max_codes` is less than 2.

    >>> codes = encode(jnp.array([[3.0], [1.0], [jnp.nan], [1.0]]))
    >>> codes.index.tolist(), codes.low.tolist()
    ([[1, 0, 4, 0]], [[1.0, 3.0, inf, inf]])
    """
    if max_codes is not None and max_codes < 2:
        raise ValueError(f"max_codes must be 2 or more, got {max_codes}")
    columns = jnp.asarray(x, jnp.float32).T
    if counted is not None:
        columns = jnp.where(counted[None, :], columns, jnp.nan)
    n = columns.shape[1]
    width = n if max_codes is None else min(max_codes, n)
    dtype = jnp.dtype(jnp.uint8 if width < 256 else jnp.int32)

    def one(value: Array) -> Codes:
        value, row = _sort(value)
        place = jnp.arange(n, dtype=jnp.int32)
        present = ~jnp.isnan(value)
        count = jnp.sum(present, dtype=jnp.int32)
        is_new = present & (value != jnp.roll(value, 1)).at[0].set(True)
        code = jnp.cumsum(is_new, dtype=jnp.int32) - 1
        sure: dict[str, Any] = {"mode": "promise_in_bounds"}
        if width < n:  # equal shares, by the place of the first of equal values
            first = jnp.zeros(n + 1, jnp.int32)
            first = first.at[jnp.where(is_new, code, n)].set(place, **sure)
            share = first.at[code].get(**sure).astype(jnp.float32)
            share = (share * (width / jnp.maximum(count, 1))).astype(jnp.int32)
            few = jnp.max(jnp.where(present, code, 0)) < width
            code = jnp.where(few, code, jnp.minimum(share, width - 1))
        code = jnp.where(present, code, width)
        index = jnp.zeros(n, dtype).at[row].set(code.astype(dtype), **sure)
        number = add_at(jnp.ones((1, n), jnp.int32), code, width + 1)[0, :-1]
        end = jnp.cumsum(number, dtype=jnp.int32)
        low = jnp.where(number > 0, value[jnp.minimum(end - number, n - 1)], jnp.inf)
        high = jnp.where(number > 0, value[end - 1], -jnp.inf)
        return Codes(index, low, high)

    return lax.map(one, columns)


def _sort(value: Float[Array, " rows"]) -> tuple[Array, Array]:
    """Values in ascending order, missing ones last, and their rows.

    As one integer each, order-preserving bits above the row.
    """
    value = jnp.where(value == 0, 0.0, jnp.where(jnp.isnan(value), jnp.nan, value))
    bits = lax.bitcast_convert_type(value.astype(jnp.float32), jnp.int32)
    flip = lambda b: jnp.where(b < 0, b ^ jnp.int32(2**31 - 1), b)  # noqa: E731
    bits = jnp.where(jnp.isnan(value), jnp.int32(2**31 - 1), flip(bits))
    with jax.enable_x64(True):
        row = lax.broadcasted_iota(jnp.int64, bits.shape, 0)
        bits = bits.astype(jnp.int64) + 2**31  # from zero up
        key = radix.sort((bits << 31) + row, 31, 63)
        row = (key & (2**31 - 1)).astype(jnp.int32)
    return value.at[row].get(mode="promise_in_bounds"), row
