"""Sequence parallelism by two exchanges: from split tokens to split heads, and back.

Every one of P devices holds 1/P of the tokens with all heads. One all-to-all of q, k and
v later it holds all tokens with 1/P of the heads, and attention is local, whatever its
mask; another all-to-all takes the result back. Each token's data travels once each way,
a P-th part of what gathering the keys would move.

The trap is the number of heads: it bounds the number of devices. Shared keys are the
bound that is met first; they are repeated here as often as it takes, no more.

Reference: Jacobs et al., "DeepSpeed Ulysses", 2023, https://arxiv.org/abs/2309.14509
(section 3.1).
"""

from functools import partial
from math import gcd
from typing import Any

import jax.numpy as jnp
from jax import lax

from jaxml.attention.dispatch import attention
from jaxml.export import export
from jaxml.typing import Array, Float


@export("attention.ulysses_attention", since="0.1")
def ulysses_attention(
    query: Float[Array, "batch queries heads dim"],
    key: Float[Array, "batch keys kv_heads dim"],
    value: Float[Array, "batch keys kv_heads value_dim"],
    *,
    axis_name: str,
    **options: Any,
) -> Float[Array, "batch queries heads value_dim"]:
    """Attention over a sequence that is split over the devices of a mesh axis.

    To be called inside `jax.shard_map`, by every device with its own part.

    Args:
        query: this device's queries.
        key: this device's keys.
        value: this device's values.
        axis_name: the mesh axis that the sequence is split over, in order.
        options: more of `attention`, in terms of the whole sequence; what has an axis of
            heads is not taken.

    Raises:
        ValueError: if the devices do not divide the heads, or an option has heads.
    """
    heads, kv_heads = query.shape[2], key.shape[2]
    devices = lax.axis_size(axis_name)
    if heads % devices:
        raise ValueError(
            f"the devices must divide the heads, got {devices} devices and {heads} heads"
        )
    refused = {"bias", "mask", "sinks", "dropout_rate", "return_lse"} & set(options)
    if refused:
        raise ValueError(
            f"ulysses_attention takes nothing with heads, got {', '.join(refused)}"
        )
    repeats = devices // gcd(devices, kv_heads)
    key, value = (jnp.repeat(x, repeats, axis=2) for x in (key, value))
    exchange = partial(lax.all_to_all, axis_name=axis_name, tiled=True)
    q, k, v = (exchange(x, split_axis=2, concat_axis=1) for x in (query, key, value))
    out = attention(q, k, v, **options)
    return exchange(out, split_axis=1, concat_axis=2)
