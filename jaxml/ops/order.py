"""Orders: which entry comes first, with ties in the order in which they stand.

A sort that carries positions along is several times as slow on a CPU as one of bare
integers. So the position travels in the same 32 bits: 16 of the key and 16 of the place,
first by the low half of the key and then by the high half, as a radix sort goes,

    a = sort(low(key) << 16 | i),   b = sort(high(key[a]) << 16 | i),   order = a[b],

which is exact and stable for up to 65536 entries; more take the ordinary sort. Scores
become keys by their bits, which order as integers do once negative ones are turned around.

The trap is the score that is no number: NaN has bits above those of infinity and would
win. Here it comes last, and no entry that a mask leaves out is ever chosen.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxml.export import export
from jaxml.typing import Array, Bool, Float, Int

_PACKED = 1 << 16


@export("ops.descending_order", since="0.1")
def descending_order(scores: Float[Array, "*batch n"]) -> Int[Array, "*batch n"]:
    """Positions of the scores from the highest to the lowest; NaN comes last.

    Equal scores, and 0 and -0 are equal, keep their order. Computed in float32.

    >>> descending_order(jnp.array([0.5, jnp.nan, 0.9, 0.5])).tolist()
    [2, 0, 3, 1]
    """
    return stable_order(_key(scores))


@export("ops.masked_top_k", since="0.1")
def masked_top_k(
    scores: Float[Array, "*batch n"], mask: Bool[Array, "*batch n"], k: int
) -> tuple[Int[Array, "*batch k"], Bool[Array, "*batch k"]]:
    """The k highest scores among those that the mask keeps, and NaN is never kept.

    Args:
        scores: of any range, with -inf too.
        mask: True = keep.
        k: how many, and there may be fewer.

    Returns:
        (indices, valid). Where `valid` is False the index is n, one past the end: a
        scatter drops it, `x.at[index].get(mode="fill")` fills it, and it does not wrap.

    Raises:
        ValueError: if k is negative.

    >>> masked_top_k(jnp.array([1.0, 9.0, 3.0]), jnp.array([True, False, True]), 3)[0]
    Array([2, 0, 3], dtype=int32)
    """
    if k < 0:
        raise ValueError(f"k must not be negative, got {k}")
    n = scores.shape[-1]
    mask = mask & ~jnp.isnan(scores)
    # A key that no score has says that an entry is out: a kept -inf comes before it.
    rank = lax.bitcast_convert_type(~_key(scores) ^ jnp.uint32(1 << 31), jnp.int32)
    order = lax.top_k(jnp.where(mask, rank, -(2**31)), min(k, n))[1]
    order = jnp.pad(order, [(0, 0)] * (order.ndim - 1) + [(0, max(0, k - n))])
    count = jnp.sum(mask, axis=-1, keepdims=True)
    valid = jnp.arange(k).reshape((1,) * (order.ndim - 1) + (k,)) < count
    return jnp.where(valid, order, n), valid


def stable_order(keys: jax.Array) -> Int[Array, "*batch n"]:
    """Positions of uint32 or bool keys from the lowest to the highest."""
    n, axis = keys.shape[-1], keys.ndim - 1
    place = lax.broadcasted_iota(jnp.uint32, keys.shape, axis)
    if n > _PACKED:
        place = place.astype(jnp.int32)
        return lax.sort((keys, place), dimension=axis, num_keys=1, is_stable=True)[1]

    def by_half(half: jax.Array) -> jax.Array:
        order = lax.sort(half.astype(jnp.uint32) << 16 | place, dimension=axis)
        return (order & 0xFFFF).astype(jnp.int32)

    if keys.dtype == jnp.bool_:
        return by_half(keys)
    first = by_half(keys & 0xFFFF)
    second = by_half(jnp.take_along_axis(keys >> 16, first, axis=-1))
    return jnp.take_along_axis(first, second, axis=-1)


def _key(scores: Array) -> jax.Array:
    """uint32 that rise as scores fall, NaN above all."""
    scores = lax.stop_gradient(jnp.asarray(scores).astype(jnp.float32))
    bits = lax.bitcast_convert_type(jnp.where(scores == 0, 0.0, scores), jnp.uint32)
    # Not negative: the higher, the larger the bits. Negative: the lower, the larger.
    key = jnp.where(bits >> 31 == 1, bits, ~bits & jnp.uint32(0x7FFFFFFF))
    return jnp.where(jnp.isnan(scores), jnp.uint32(0xFFFFFFFF), key)
