"""What a half dtype would make of parameters or gradients, leaf by leaf.

Numbers are counted by their exponent, floor(log2 |x|), which is what decides whether they
survive a cast: multiplied by the scale S, a number below 2^-25 becomes zero in float16,
one below 2^-14 loses bits, one from 65520 on becomes infinite. The cast itself is made,
so the counts hold for any floating dtype.

Shares are of the finite numbers that are not zero: a gradient that was zero before the
cast loses nothing by it.

Reference: Micikevicius et al., "Mixed Precision Training", ICLR 2018,
https://arxiv.org/abs/1710.03740 (figures 2b and 3: such histograms).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxml.export import export
from jaxml.typing import Array, Int


@export("precision.FloatRow", since="0.1")
@dataclass(frozen=True)
class FloatRow:
    """One array's numbers; counts, and magnitudes of those that are finite and not zero.

    Attributes:
        name: path of the array, as "encoder/kernel".
        size: numbers in all.
        zeros: that are zero.
        non_finite: that are NaN or infinite.
        subnormal: that are subnormal in the dtype they have.
        smallest: magnitude; NaN if there is none.
        largest: magnitude; NaN if there is none.
        to_zero: that the cast turns into zero.
        to_subnormal: that the cast turns into subnormal numbers.
        to_infinity: that the cast turns into infinity or NaN.
        exponents: floor(log2 magnitude), rising, those that occur.
        counts: how often each occurs.
    """

    name: str
    size: int
    zeros: int
    non_finite: int
    subnormal: int
    smallest: float
    largest: float
    to_zero: int
    to_subnormal: int
    to_infinity: int
    exponents: Int[np.ndarray, "bins"]
    counts: Int[np.ndarray, "bins"]

    @property
    def underflow(self) -> float:
        """The share that the cast turns into zero, in [0, 1]."""
        return self._share(self.to_zero)

    @property
    def precision_loss(self) -> float:
        """The share that the cast turns into subnormal numbers, in [0, 1]."""
        return self._share(self.to_subnormal)

    @property
    def overflow(self) -> float:
        """The share that the cast turns into infinity, in [0, 1]."""
        return self._share(self.to_infinity)

    def _share(self, count: int) -> float:
        return count / max(self.size - self.zeros - self.non_finite, 1)


@export("precision.FloatReport", since="0.1")
@dataclass(frozen=True)
class FloatReport:
    """What `float_report` returns; `print` shows it as a table.

    Attributes:
        dtype: what the numbers would be cast to.
        scale: S, what they are multiplied by before.
        rows: one for each array.
        total: all arrays as one.
    """

    dtype: Any
    scale: float
    rows: Sequence[FloatRow]
    total: FloatRow

    def __str__(self) -> str:
        width = max(len(row.name) for row in (*self.rows, self.total))
        times = "" if self.scale == 1 else f" after x {self.scale:g}"
        head = (
            f"{'':{width}}  {'':>33}  {'in ' + str(self.dtype) + times}\n"
            f"{'':{width}}  {'size':>10}  {'smallest':>10}  {'largest':>9}"
            f"  {'zero':>6}  {'subnormal':>9}  {'infinite':>8}"
        )
        lines = [
            f"{row.name:{width}}  {row.size:>10}  {row.smallest:>10.2e}"
            f"  {row.largest:>9.2e}  {row.underflow:>6.1%}"
            f"  {row.precision_loss:>9.1%}  {row.overflow:>8.1%}"
            for row in (*self.rows, self.total)
        ]
        return "\n".join([head, *lines])


@export("precision.float_report", since="0.1")
def float_report(
    tree: Any, dtype: Any = jnp.float16, scale: float = 1.0
) -> FloatReport:
    """Counts what a cast to `dtype` would do to every floating array of the tree.

    It runs on the host, outside of jit.

    Args:
        tree: parameters, gradients, activations.
        dtype: what they would be cast to.
        scale: S, the loss scale: multiplied before the cast.

    Raises:
        ValueError: if the scale is not positive, or no array of the tree is floating.

    >>> grads = {"w": jnp.array([1.0, 1e-9, 0.0])}
    >>> float_report(grads).total.underflow
    0.5
    >>> float_report(grads, scale=2.0**10).total.underflow
    0.0
    """
    if not scale > 0:
        raise ValueError(f"the scale must be positive, got {scale}")
    dtype = jnp.dtype(dtype)
    arrays = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree.leaves_with_path(tree)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    }
    if not arrays:
        raise ValueError("the tree must hold floating arrays, got none")
    rows = [_row(name, x, dtype, scale) for name, x in arrays.items()]
    return FloatReport(dtype, scale, rows, _total(rows))


def _row(name: str, x: Array, dtype: Any, scale: float) -> FloatRow:
    own_tiny = float(jnp.finfo(x.dtype).tiny)
    finite = np.isfinite(x)
    there = np.abs(x[finite & (x != 0)]).astype(np.float64)
    with np.errstate(over="ignore"):
        cast = (there * scale).astype(dtype)
    exponents, counts = np.unique(np.frexp(there)[1] - 1, return_counts=True)
    return FloatRow(
        name,
        size=x.size,
        zeros=int(np.sum(x == 0)),
        non_finite=int(np.sum(~finite)),
        subnormal=int(np.sum(there < own_tiny)),
        smallest=float(there.min()) if there.size else np.nan,
        largest=float(there.max()) if there.size else np.nan,
        to_zero=int(np.sum(cast == 0)),
        to_subnormal=int(np.sum((cast != 0) & (cast < jnp.finfo(dtype).tiny))),
        to_infinity=int(np.sum(~np.isfinite(cast))),
        exponents=exponents.astype(np.int64),
        counts=counts,
    )


def _total(rows: Sequence[FloatRow]) -> FloatRow:
    def add(name: str) -> int:
        return sum(getattr(row, name) for row in rows)

    exponents, where = np.unique(
        np.concatenate([row.exponents for row in rows]), return_inverse=True
    )
    counts = np.concatenate([row.counts for row in rows])
    return FloatRow(
        "total",
        size=add("size"),
        zeros=add("zeros"),
        non_finite=add("non_finite"),
        subnormal=add("subnormal"),
        smallest=float(np.fmin.reduce([row.smallest for row in rows])),
        largest=float(np.fmax.reduce([row.largest for row in rows])),
        to_zero=add("to_zero"),
        to_subnormal=add("to_subnormal"),
        to_infinity=add("to_infinity"),
        exponents=exponents,
        counts=np.bincount(where, counts, len(exponents)).astype(np.int64),
    )
