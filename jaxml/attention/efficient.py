"""Efficient attention: one softmax over the features, one over the keys.

    out = softmax_features(q) (softmax_keys(k)^T v)

Both factors are non-negative and sum to one, and so does every row of their product:
queries read d global summaries of the values, with a softmax over which of them. Time is
linear in length, n d^2.

The trap is causality. The second softmax runs over all keys, the future too, and no mask
can take it back: this attention is bidirectional.

Reference: Shen et al., "Efficient Attention: Attention with Linear Complexities",
WACV 2021, https://arxiv.org/abs/1812.01243 (equation 4, the softmax normalisation).
"""

import jax
import jax.numpy as jnp

from jaxml.export import export
from jaxml.typing import Array, Float, Int


@export("attention.efficient_attention", since="0.1")
def efficient_attention(
    query: Float[Array, "batch queries heads dim"],
    key: Float[Array, "batch keys kv_heads dim"],
    value: Float[Array, "batch keys kv_heads value_dim"],
    *,
    key_value_seq_lengths: Int[Array, "batch"] | None = None,
) -> Float[Array, "batch queries heads value_dim"]:
    """softmax(q) (softmax(k)^T v), each softmax over its own axis.

    Args:
        query: of any length.
        key: of as many heads as the query, or fewer, each shared by a group.
        value: of as many heads as the key.
        key_value_seq_lengths: real keys of every sample; a sample of none gives 0.

    Raises:
        ValueError: if the shapes do not fit.

    >>> x = jnp.ones((1, 5, 2, 4))
    >>> efficient_attention(x[:, :3], x, x).shape
    (1, 3, 2, 4)
    """
    heads, kv_heads = query.shape[2], key.shape[2]
    if key.shape[:3] != value.shape[:3] or query.shape[::3] != key.shape[::3]:
        raise ValueError(
            "query and key must have one batch and one dim, and key and value one length "
            f"and one number of heads, got {query.shape}, {key.shape} and {value.shape}"
        )
    if heads % kv_heads:
        raise ValueError(
            "the number of query heads must be a multiple of the key heads, "
            f"got {heads} and {kv_heads}"
        )
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    q, k, v = (x.astype(dtype) for x in (query, key, value))
    seen = jnp.ones((1, 1, 1, 1), bool)
    if key_value_seq_lengths is not None:
        index = jnp.arange(key.shape[1])[None, :]
        seen = (index < key_value_seq_lengths[:, None])[..., None, None]
    k = jax.nn.softmax(k, axis=1, where=seen)
    shape = (*q.shape[:2], kv_heads, heads // kv_heads, q.shape[-1])
    q = jax.nn.softmax(q, axis=-1).reshape(shape)
    summaries = jnp.einsum("bskf,bskv->bkfv", k, v)
    out = jnp.einsum("btkgf,bkfv->btkgv", q, summaries)
    return out.reshape(*query.shape[:3], value.shape[-1]).astype(query.dtype)
