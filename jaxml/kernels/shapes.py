"""What goes into a kernel and comes out: padded arrays, and the types of results.

Inside `shard_map` an array is known to differ along axes of the mesh; a kernel forgets it.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxml.typing import Array


def like(arrays: Any, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    """The type of a kernel's result, which differs between devices as its inputs do."""
    types = [jax.typeof(x) for x in jax.tree.leaves(arrays)]
    if hasattr(types[0], "vma"):  # jax 0.10
        given: dict[str, Any] = {"vma": axes_of(arrays)}
    else:
        manual = (t.manual_axis_type for t in types)
        given = {"manual_axis_type": max(manual, key=lambda m: len(m.varying))}
    return jax.ShapeDtypeStruct(shape, dtype, **given)


def axes_of(arrays: Any) -> frozenset[str]:
    """The axes of a mesh along which any of the arrays differs, inside `shard_map`."""
    types = [jax.typeof(x) for x in jax.tree.leaves(arrays)]
    names = (t.vma if hasattr(t, "vma") else t.manual_axis_type.varying for t in types)
    return frozenset().union(*names)


def varying(x: Array, axes: frozenset[str]) -> Array:
    """The same array, known to differ along these axes."""
    missing = tuple(sorted(axes - axes_of(x)))
    return lax.pcast(x, missing, to="varying") if missing else x


def padded(x: Array, axis: int, multiple: int, mode: str = "constant") -> Array:
    """An axis made a multiple of so many."""
    missing = -x.shape[axis] % multiple
    if not missing:
        return x
    widths = [(0, missing * (a == axis % x.ndim)) for a in range(x.ndim)]
    return jnp.pad(x, widths, mode=mode)


def unpadded(x: Array, shape: tuple[int, ...]) -> Array:
    """The corner of that shape."""
    return x[tuple(slice(n) for n in shape)]
