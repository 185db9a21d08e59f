"""Decoding: one query or a few against the keys of all tokens before them.

The keys and values of past tokens are kept in a cache of fixed capacity, with the number
of real tokens per sample; a new token's are written behind them, and its query sees them
all, or a window of the last ones. Nothing is computed twice, and the cost of a token is
one read of the cache up to the longest sample's length.

In a ring cache the capacity is the window: position p lies in slot p mod capacity, the
oldest key makes room for the newest, and memory and time per token stay constant at any
length. Attention does not care for the order of keys, only for who is there.

The trap is the write: past the end of a plain cache there is no room, and JAX would clip
the index and overwrite the last token in silence. Here nothing is written there, and the
outputs of a sample that overflowed are NaN, which says so under jit too.

Reference: Shazeer, "Fast Transformer Decoding: One Write-Head is All You Need", 2019,
https://arxiv.org/abs/1911.02150 (section 2.4, incremental attention); Jiang et al.,
"Mistral 7B", 2023, https://arxiv.org/abs/2310.06825 (section 2, rolling buffer cache).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxml.attention.dispatch import attention
from jaxml.export import export
from jaxml.typing import Array, Float, Int


@export("attention.KVCache", since="0.1")
class KVCache(NamedTuple):
    """Keys and values of the tokens so far.

    Attributes:
        key: of all slots; what no token has written is not read.
        value: of all slots.
        length: tokens so far per sample, in a ring cache also those that were dropped.
    """

    key: Float[Array, "batch capacity kv_heads dim"]
    value: Float[Array, "batch capacity kv_heads value_dim"]
    length: Int[Array, "batch"]

    @classmethod
    def empty(
        cls,
        batch: int,
        capacity: int,
        kv_heads: int,
        dim: int,
        value_dim: int | None = None,
        dtype: Any = jnp.float32,
    ) -> "KVCache":
        """A cache of no tokens."""
        shape = (batch, capacity, kv_heads)
        return cls(
            jnp.zeros((*shape, dim), dtype),
            jnp.zeros((*shape, dim if value_dim is None else value_dim), dtype),
            jnp.zeros((batch,), jnp.int32),
        )


@export("attention.decode_attention", since="0.1")
def decode_attention(
    query: Float[Array, "batch tokens heads dim"],
    key: Float[Array, "batch tokens kv_heads dim"],
    value: Float[Array, "batch tokens kv_heads value_dim"],
    cache: KVCache,
    *,
    is_ring: bool = False,
    window: int | None = None,
    new_lengths: Int[Array, "batch"] | None = None,
    **options: Any,
) -> tuple[Float[Array, "batch tokens heads value_dim"], KVCache]:
    """Appends new tokens to the cache, and lets each see itself and what came before.

    Args:
        query: of the new tokens: one in decoding, many when a prompt is read.
        key: of the new tokens.
        value: of the new tokens.
        cache: of the tokens before; donate it, and it is written in place.
        is_ring: the capacity is the window, and the newest token replaces the oldest;
            one token at a time.
        window: a token sees itself and so many before it; None, all that are cached.
        new_lengths: real new tokens of every sample, from the first on; the rest are
            not written, and give 0.
        options: more of `attention`: scale, logits_soft_cap, sinks, implementation.

    Returns:
        What `attention` gives over the whole sequence at these tokens, and the cache.
        A sample whose plain cache was too short gives NaN.

    Raises:
        ValueError: if the cache does not fit the tokens, or a ring gets several.

    >>> cache = KVCache.empty(batch=1, capacity=8, kv_heads=2, dim=4)
    >>> x = jnp.ones((1, 1, 2, 4))
    >>> out, cache = decode_attention(x, x, x, cache)
    >>> out.shape, cache.length.tolist()
    ((1, 1, 2, 4), [1])
    """
    batch, tokens = query.shape[:2]
    capacity = cache.key.shape[1]
    _check(key, value, cache)
    if is_ring and (tokens != 1 or window is not None):
        raise ValueError(
            "a ring cache takes one token at a time and is its own window, "
            f"got {tokens} tokens and window {window}"
        )
    if new_lengths is None:
        new_lengths = jnp.full((batch,), tokens, jnp.int32)
    after = cache.length + new_lengths
    slots = cache.length[:, None] + jnp.arange(tokens)[None, :]
    slots = slots % capacity if is_ring else slots
    # Padding tokens go where no slot is, and are dropped.
    real = jnp.arange(tokens)[None, :] < new_lengths[:, None]
    slots = jnp.where(real, slots, capacity)
    write = jax.vmap(lambda x, i, new: x.at[i].set(new, mode="drop"))
    cache = KVCache(
        write(cache.key, slots, key.astype(cache.key.dtype)),
        write(cache.value, slots, value.astype(cache.value.dtype)),
        after,
    )
    seen = jnp.minimum(after, capacity)
    position = seen - 1 if is_ring else after - new_lengths
    out = attention(
        query,
        cache.key.astype(query.dtype),
        cache.value.astype(query.dtype),
        is_causal=True,
        causal_offset=position,
        local_window_size=(window, 0) if window is not None else None,
        key_value_seq_lengths=seen,
        query_seq_lengths=new_lengths,
        **options,
    )
    if not is_ring:
        fits = (after <= capacity)[:, None, None, None]
        out = jnp.where(fits, out, jnp.nan)
    return out, cache


def _check(key: Array, value: Array, cache: KVCache) -> None:
    for name, new, old in (
        ("key", key, cache.key),
        ("value", value, cache.value),
    ):
        if (new.shape[0], *new.shape[2:]) != (old.shape[0], *old.shape[2:]):
            raise ValueError(
                f"{name} must fit the cache in batch, heads and dim, "
                f"got {new.shape} and {old.shape}"
            )
