"""Data sets at the door: checked, counted, and padded to sizes that programs share.

Small data sets are padded to a power of two of rows, of weight zero, and to a multiple of
eight columns, which nobody draws: folds of 455 and 456 rows then train in one program.

The trap: shares of rows (`min_samples_leaf=0.1`) are shares of the rows that were given.

Reference: Breiman et al., "Classification and Regression Trees", 1984,
https://doi.org/10.1201/9781315139470 (section 2.2).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxml.trees.cart_config import check_config
from jaxml.typing import Array, Float

LEAST_ROWS = 64
"""Rows of the smallest program."""
PADDED_ROWS = 4096
"""Above this number rows are not padded."""


class Table(NamedTuple):
    """A data set: y is [rows, outputs], weights are ones where none were given."""

    x: Float[Array, "rows columns"]
    y: Array
    weights: Float[Array, " rows"]
    rows: int
    columns: int
    outputs: int
    num_classes: int
    has_missing: bool
    squeeze: bool


def table(x: Array, y: Array, config: Any, weights: Array | None) -> Table:
    """Checks and pads.

    Raises:
        ValueError: if something is not what it must be.
    """
    shape = np.shape(x)
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"x must be [rows, columns], both positive, got {shape}")
    n, columns = shape
    if np.ndim(y) not in (1, 2) or len(y) != n or 0 in np.shape(y):
        raise ValueError(f"y must be [{n}] or [{n}, outputs], got {np.shape(y)}")
    if weights is not None and np.shape(weights) != (n,):
        raise ValueError(f"weights must be [{n}], got {np.shape(weights)}")
    check_config(config)
    squeeze = np.ndim(y) == 1
    leaves = (x, y, weights)
    known = not any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
    num_classes = config.num_classes
    has_missing = True
    if known:
        x = np.asarray(x, np.float32)
        has_missing = bool(np.isnan(x).any())
        if np.isinf(x).any():
            raise ValueError("x must be finite in float32, or NaN where missing")
        if has_missing and config.criterion == "absolute_error":
            raise ValueError("x must have no missing values for 'absolute_error'")
        y = np.asarray(y)
        num_classes = _check_targets(y, config)
        if weights is not None:
            weights = np.asarray(weights, np.float32)
            if not np.isfinite(weights).all() or (weights < 0).any():
                raise ValueError("weights must be finite and not negative")
            if not weights.any():
                raise ValueError("weights must not all be zero")
    elif config.classifies and not num_classes:
        raise ValueError("num_classes must be given where labels cannot be looked at")
    module: Any = np if known else jnp
    dtype = jnp.int32 if config.classifies else jnp.float32
    y = module.asarray(y, dtype).reshape(n, -1)
    weights = module.ones(n, np.float32) if weights is None else weights
    outputs = y.shape[1]
    if known and n <= PADDED_ROWS:
        more = max(1 << (n - 1).bit_length(), LEAST_ROWS) - n
        x = np.pad(x, ((0, more), (0, -columns % 8)))
        y, weights = np.pad(y, ((0, more), (0, 0))), np.pad(weights, (0, more))
    return Table(
        jnp.asarray(x, jnp.float32),
        jnp.asarray(y, dtype),
        jnp.asarray(weights, jnp.float32),
        n,
        columns,
        outputs,
        num_classes if config.classifies else 0,
        has_missing,
        squeeze,
    )


def _check_targets(y: np.ndarray, config: Any) -> int:
    """The number of classes, 0 for numbers."""
    if not np.issubdtype(y.dtype, np.number) and y.dtype != bool:
        raise ValueError(f"y must be numbers, got {y.dtype}")
    if not np.isfinite(y).all():
        raise ValueError("y must be finite, got NaN or infinity")
    if not config.classifies:
        if config.criterion == "poisson" and (y < 0).any() | (y.sum() <= 0):
            raise ValueError("y must not be negative, nor all zero, for 'poisson'")
        return 0
    if (y != np.round(y)).any() or (y < 0).any():
        raise ValueError("y must be class indices 0, 1, ..., for a classifier")
    most = int(y.max())
    if config.num_classes and most >= config.num_classes:
        raise ValueError(
            f"y must be class indices below num_classes, {config.num_classes}, got {most}"
        )
    return config.num_classes or most + 1


def check_width(x: Array, columns: int) -> None:
    """Raises ValueError unless x has as many columns as a model was fitted to."""
    if np.ndim(x) != 2 or x.shape[1] != columns:
        raise ValueError(
            f"x must be [rows, {columns}], as many features as the model was fitted to, "
            f"got {np.shape(x)}"
        )


def pad_rows(function: Callable[[Array], Array], x: Array) -> Array:
    """`function` of x, called with a power of two of rows where they are few."""
    if isinstance(x, jax.core.Tracer) or len(x) > PADDED_ROWS:
        return function(jnp.asarray(x, jnp.float32))
    n = len(x)
    more = max(1 << max(n - 1, 0).bit_length(), LEAST_ROWS) - n
    padded = np.pad(np.asarray(x, np.float32), ((0, more), (0, 0)))
    return function(jnp.asarray(padded))[:n]


def check_rows(
    x: Array, y: Array, weights: Array | None, num_classes: int
) -> tuple[Array, Array, Array]:
    """X float32, y [rows] as class indices or numbers, and weights, checked.

    Raises:
        ValueError: if something is not what it must be.
    """
    if np.ndim(x) != 2 or 0 in np.shape(x):
        raise ValueError(f"x must be [rows, columns], both positive, got {np.shape(x)}")
    n = len(x)
    if np.shape(y) != (n,):
        raise ValueError(f"y must be [{n}], one per row, got {np.shape(y)}")
    if weights is not None and np.shape(weights) != (n,):
        raise ValueError(f"weights must be [{n}], got {np.shape(weights)}")
    if not any(isinstance(leaf, jax.core.Tracer) for leaf in (x, y, weights)):
        told = np.asarray(y)
        if not np.isfinite(told).all():
            raise ValueError("y must be finite, got NaN or infinity")
        whole = (told == np.round(told)) & (told >= 0) & (told < num_classes)
        if num_classes and not whole.all():
            raise ValueError(f"y must be class indices below {num_classes}")
        if weights is not None:
            w = np.asarray(weights)
            if not np.isfinite(w).all() or (w < 0).any() or not w.any():
                raise ValueError(
                    "weights must be finite, not negative, and not all zero"
                )
    dtype = jnp.int32 if num_classes else jnp.float32
    mass = jnp.ones(n, jnp.float32) if weights is None else weights
    return jnp.asarray(x, jnp.float32), jnp.asarray(y, dtype), jnp.asarray(mass)
