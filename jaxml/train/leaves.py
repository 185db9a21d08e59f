"""The arrays of a tree by path, as `params/encoder/kernel`: how they are saved and named."""

import math
from typing import Any

import jax
import numpy as np

Leaves = dict[str, Any]
"""Arrays, or `jax.ShapeDtypeStruct`s, by path."""


def leaves(tree: Any) -> Leaves:
    """The leaves of a tree by path, in its order.

    Raises:
        TypeError: if one is not an array of numbers, naming it.
        ValueError: if two have the same path.

    >>> sorted(leaves({"encoder": [np.zeros(2), np.ones(3)]}))
    ['encoder/0', 'encoder/1']
    """
    found: Leaves = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name in found:
            raise ValueError(f"every array must have a path of its own, got two {name}")
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            kind = type(leaf).__name__
            raise TypeError(f"a state must hold arrays, got {kind} at {name}")
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended):
            raise TypeError(f"a state must hold numbers, got {leaf.dtype} at {name}")
        found[name] = leaf
    return found


def nonempty(found: Leaves) -> Leaves:
    """Those that have elements; Orbax saves no others, and nothing is lost."""
    return {name: leaf for name, leaf in found.items() if math.prod(leaf.shape)}


def placed(value: Any, like: Any) -> Any:
    """`value` with the dtype and on the devices of `like`; on the host if it has none."""
    sharding = getattr(like, "sharding", None)
    if sharding is None:
        return np.asarray(value).astype(like.dtype)
    return jax.device_put(value.astype(like.dtype), sharding)


def describe(leaf: Any) -> str:
    """Dtype and shape: `float32[3,4]`."""
    return f"{np.dtype(leaf.dtype).name}[{','.join(map(str, leaf.shape))}]"


def listing(lines: list[str], limit: int = 5) -> str:
    """The first few, and how many more there are."""
    rest = len(lines) - limit
    return "; ".join(lines[:limit]) + (f" and {rest} more" if rest > 0 else "")
