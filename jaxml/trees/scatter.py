"""Sums by place, one scalar at a time: a nanosecond each on a CPU.

XLA's CPU backend adds scalars at narrow unsigned places in 0.8 ns each, where pairs of them
at int32 places cost 5 (63,300 rows, 8,192 and 256,000 places): places that are read as they
are need no test of their sign, and scalars no loop over a window. A batch would be a window:
under `vmap` one is added up after the other.

The trap: a place must be below `size`, nothing looks whether it is.

Reference: Ke et al., "LightGBM: A Highly Efficient Gradient Boosting Decision Tree", NIPS
2017 (algorithm 1), https://dl.acm.org/doi/10.5555/3294996.3295074.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxml.typing import Array


def kind_of(size: int) -> jnp.dtype:
    """The narrowest unsigned integers that hold places below `size`, and it.

    XLA checks places in their own type, which must hold the last of them.

    >>> kind_of(256).name, kind_of(257).name
    ('uint8', 'uint16')
    """
    return jnp.dtype(f"uint{next(bits for bits in (8, 16, 32) if size <= 2**bits)}")


def add_at(values: Array, place: Array, size: int) -> Array:
    """Sums of `values` [channels, rows] by place, [channels, size], in their own type.

    >>> add_at(jnp.array([[1, 2, 4]]), jnp.array([0, 2, 0], jnp.uint8), 3).tolist()
    [[5, 0, 2]]
    """
    where = place.astype(kind_of(size))[:, None]
    return jnp.stack([_summed(size)(value, where) for value in values])


def _summed(size: int) -> Callable[[Array, Array], Array]:
    """Sums of one channel; under `vmap` a CPU takes batch after batch, scalars still."""
    scalars = lax.ScatterDimensionNumbers((), (0,), (0,))

    def one(value: Array, where: Array) -> Array:
        zero = jnp.zeros(size, value.dtype)
        return lax.scatter_add(zero, where, value, scalars, mode="promise_in_bounds")

    by_turns = jax.custom_batching.custom_vmap(one)

    @by_turns.def_vmap
    def _(axis_size: int, in_batched: list[bool], value: Array, where: Array) -> Any:
        with jax.enable_x64(value.dtype.itemsize == 8):
            value, where = (
                x if batched else jnp.broadcast_to(x, (axis_size, *x.shape))
                for x, batched in zip((value, where), in_batched, strict=True)
            )
            told = lax.platform_dependent(
                value,
                where,
                cpu=lambda *x: lax.map(lambda each: by_turns(*each), x),
                default=jax.vmap(one),
            )
            return told, True

    return by_turns
