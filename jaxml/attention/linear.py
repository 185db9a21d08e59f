"""Linear attention: without the softmax the product is associative.

    out_i = phi(q_i)^T S / phi(q_i)^T z,    S = sum_j phi(k_j) v_j^T,   z = sum_j phi(k_j)

over all keys, in time linear in length, or over j <= i, where (S, z) is the state of a
recurrence: training is parallel, decoding takes constant time and memory per token.
Here z is one more column of S, from a value that is 1, so that one pass gives both.

The causal sum goes by chunks. Inside a chunk it is a masked product of queries and keys;
what lies before is the state, carried from chunk to chunk:

    out_c = mask(phi(q_c) phi(k_c)^T) [v_c, 1] + phi(q_c) S_{c-1},
    S_c = S_{c-1} + phi(k_c)^T [v_c, 1]

The trap is segments: a state knows of one. Here a segment is a run of equal numbers, and
a state belongs to the run of the last token before it.

Reference: Katharopoulos et al., "Transformers are RNNs: Fast Autoregressive Transformers
with Linear Attention", ICML 2020, https://arxiv.org/abs/2006.16236 (equations 4 to 6 and
16 to 20; their epsilon in the normaliser is left out, a query of weight zero gives 0);
Hua et al., "Transformer Quality in Linear Time", ICML 2022,
https://arxiv.org/abs/2202.10447 (section 3.2, chunks).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxml.attention.feature_maps import FeatureMap, feature_map_of
from jaxml.attention.tiles import map_axis
from jaxml.export import export
from jaxml.typing import Array, Float, Int


@export("attention.LinearState", since="0.1")
class LinearState(NamedTuple):
    """What linear attention remembers of all tokens so far, in float32 or wider.

    Attributes:
        products: sum of phi(k) v^T.
        normalizer: sum of phi(k).
        segment: the run these tokens belong to, or None where there are no segments.
    """

    products: Float[Array, "batch kv_heads features value_dim"]
    normalizer: Float[Array, "batch kv_heads features"]
    segment: Int[Array, "batch"] | None = None


@export("attention.linear_attention", since="0.1")
def linear_attention(
    query: Float[Array, "batch queries heads dim"],
    key: Float[Array, "batch keys kv_heads dim"],
    value: Float[Array, "batch keys kv_heads value_dim"],
    *,
    feature_map: str | FeatureMap = "elu",
    is_causal: bool = False,
    normalize: bool = True,
    key_value_seq_lengths: Int[Array, "batch"] | None = None,
    segment_ids: Int[Array, "batch keys"] | None = None,
    initial_state: LinearState | None = None,
    return_state: bool = False,
    chunk_size: int = 64,
) -> Any:
    """Attention with weights phi(q) . phi(k), in time and memory linear in length.

    Args:
        query: of any length if not causal and without segments, else that of the keys.
        key: of as many heads as the query, or fewer, each shared by a group.
        value: of as many heads as the key.
        feature_map: a name of `feature_maps`, or a function of the last axis.
        is_causal: query i sees keys up to i, and the initial state.
        normalize: divide by the sum of the weights.
        key_value_seq_lengths: real keys of every sample; the rest are not seen.
        segment_ids: runs of equal numbers; a query sees its own run.
        initial_state: of tokens that come before; seen by all queries (of its segment).
        return_state: also return the state after the last token.
        chunk_size: tokens at a time; the result depends on it by rounding alone.

    Returns:
        [batch, queries, heads, value_dim] in the query's dtype, and if asked for the
        `LinearState`. A query whose weights sum to zero gives 0.

    Raises:
        ValueError: if the shapes do not fit, or an option is unknown.

    >>> x = jnp.ones((1, 5, 2, 4))
    >>> linear_attention(x, x, x, is_causal=True).shape
    (1, 5, 2, 4)
    """
    phi = feature_map_of(feature_map)
    _check(query, key, value, chunk_size, is_causal or segment_ids is not None)
    if segment_ids is not None and segment_ids.shape != key.shape[:2]:
        raise ValueError(
            f"segment_ids must be {key.shape[:2]}, got {segment_ids.shape}"
        )
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    q, k, v = (x.astype(dtype) for x in (query, key, value))
    # The normaliser is the sum over a value of one.
    v = jnp.concatenate([v, jnp.ones_like(v[..., :1])], axis=-1)
    q, k = phi(q), phi(k)
    if key_value_seq_lengths is not None:
        seen = jnp.arange(k.shape[1])[None, :] < key_value_seq_lengths[:, None]
        k = jnp.where(seen[..., None, None], k, 0)
    groups = q.shape[2] // k.shape[2]
    q = q.reshape(*q.shape[:2], k.shape[2], groups, q.shape[-1])
    state = _joined(initial_state, q, k, v, segment_ids)
    if segment_ids is None and not is_causal:
        sums, total = _full_sums(q, k, v, state[0])
        state = (total, None)
    else:
        causal = partial(_causal_sums, chunk_size=chunk_size)
        sums, after = causal(q, k, v, segment_ids, state)
        if not is_causal:  # the keys after i, by the same recurrence from the end
            assert segment_ids is not None
            q, k, v, segment_ids = (x[:, ::-1] for x in (q, k, v, segment_ids))
            nothing = (jnp.zeros_like(state[0]), segment_ids[:, 0])
            later, _ = causal(q, k, v, segment_ids, nothing, strictly=True)
            sums += later[:, :, ::-1]
        state = after
    out = _ratio(sums) if normalize else sums[..., :-1]
    out = out.transpose(0, 2, 1, 3, 4).reshape(*query.shape[:3], value.shape[-1])
    out = out.astype(query.dtype)
    result = LinearState(state[0][..., :-1], state[0][..., -1], state[1])
    return (out, result) if return_state else out


@export("attention.linear_attention_step", since="0.1")
def linear_attention_step(
    query: Float[Array, "batch heads dim"],
    key: Float[Array, "batch kv_heads dim"],
    value: Float[Array, "batch kv_heads value_dim"],
    state: LinearState,
    *,
    feature_map: str | FeatureMap = "elu",
    normalize: bool = True,
) -> tuple[Float[Array, "batch heads value_dim"], LinearState]:
    """One token of causal linear attention: constant time and memory at any length.

    Args:
        query: of the new token.
        key: of the new token.
        value: of the new token.
        state: of all tokens before, such as `linear_attention` returns.
        feature_map: as it was for those.
        normalize: as it was for those.
    """
    phi = feature_map_of(feature_map)
    dtype = state.products.dtype
    q, k, v = (x.astype(dtype) for x in (query, key, value))
    q, k = phi(q), phi(k)
    products = state.products + k[..., :, None] * v[..., None, :]
    normalizer = state.normalizer + k
    q = q.reshape(q.shape[0], k.shape[1], -1, q.shape[-1])
    out = jnp.einsum("bkgf,bkfv->bkgv", q, products)
    if normalize:
        weight = jnp.einsum("bkgf,bkf->bkg", q, normalizer)[..., None]
        out = _ratio(jnp.concatenate([out, weight], axis=-1))
    out = out.reshape(*query.shape[:2], -1).astype(query.dtype)
    return out, LinearState(products, normalizer, state.segment)


# [batch, kv_heads, features, value_dim + 1], segment
State = tuple[Array, Array | None]


def _joined(
    state: LinearState | None, q: Array, k: Array, v: Array, segments: Array | None
) -> State:
    """The state with its normaliser as one more column."""
    if state is None:
        shape = (k.shape[0], k.shape[2], k.shape[3], v.shape[-1])
        first = None if segments is None else segments[:, 0]
        return jnp.zeros(shape, k.dtype), first
    if segments is not None and state.segment is None:
        raise ValueError("initial_state must know its segment where there are segments")
    columns = (state.products, state.normalizer[..., None])
    return jnp.concatenate(columns, axis=-1).astype(k.dtype), state.segment


def _causal_sums(
    q: Float[Array, "B T K G F"],
    k: Float[Array, "B T K F"],
    v: Float[Array, "B T K V"],
    segments: Int[Array, "B T"] | None,
    state: State,
    *,
    chunk_size: int,
    strictly: bool = False,
) -> tuple[Float[Array, "B K T G V"], State]:
    """Sum over j <= i of (q_i . k_j) v_j, or j < i, and the state at the end."""
    batch, length, heads, groups, features = q.shape
    size = min(chunk_size, max(length, 1))
    missing = -length % size if length else size
    chunks = (length + missing) // size

    def cut(x: Array) -> Array:
        padding = [(0, missing * (axis == 1)) for axis in range(x.ndim)]
        return jnp.pad(x, padding).reshape(batch, chunks, size, *x.shape[2:])

    q, k, v = cut(q), cut(k), cut(v)
    # [B, K, chunks, ...]: products of contiguous matrices.
    q = q.transpose(0, 3, 1, 4, 2, 5).reshape(batch, heads, chunks, -1, features)
    k, v = (x.transpose(0, 3, 1, 2, 4) for x in (k, v))
    here = last = before = None
    if segments is not None and state[1] is not None:
        padding = [(0, 0), (0, missing)]  # padded keys are zero: any run will do
        here = jnp.pad(segments, padding, mode="edge").reshape(batch, chunks, size)
        last = here[:, :, -1]
        before = jnp.concatenate([state[1][:, None], last[:, :-1]], axis=1)
    runs = tuple(x if x is None else x[:, None] for x in (here, last, before))
    head = jax.checkpoint(partial(_head_sums, groups=groups, strictly=strictly))
    parts = (q, k, v, state[0], *runs)
    sums, final = _by_head(lambda x: head(*x), batch, heads, parts)
    sums = sums.reshape(batch, heads, chunks, groups, size, -1).swapaxes(3, 4)
    sums = sums.reshape(batch, heads, -1, groups, v.shape[-1])
    return sums[:, :, :length], (final, None if last is None else last[:, -1])


def _full_sums(
    q: Float[Array, "B T K G F"],
    k: Float[Array, "B S K F"],
    v: Float[Array, "B S K V"],
    state: Float[Array, "B K F V"],
) -> tuple[Float[Array, "B K T G V"], Float[Array, "B K F V"]]:
    """Sum over all j of (q_i . k_j) v_j, and the state."""
    batch, length, heads, groups, features = q.shape
    q = q.transpose(0, 2, 1, 3, 4).reshape(batch, heads, -1, features)
    k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)

    def head(x: tuple[Array, ...]) -> tuple[Array, Array]:
        q, k, v, state = x
        state = state + k.T @ v
        return q @ state, state

    sums, state = _by_head(head, batch, heads, (q, k, v, state))
    return sums.reshape(batch, heads, length, groups, -1), state


def _by_head(
    f: Callable[[Any], Any], batch: int, heads: int, parts: tuple[Any, ...]
) -> Any:
    """Maps f over batch and heads; all heads at once where they are small."""
    at_once = heads if parts[0].size <= 2**18 else 1
    return map_axis(lambda x: map_axis(f, heads, at_once, x), batch, 1, parts)


def _head_sums(
    q: Float[Array, "chunks rows F"],
    k: Float[Array, "chunks size F"],
    v: Float[Array, "chunks size V"],
    state: Float[Array, "F V"],
    here: Int[Array, "chunks size"] | None,
    last: Int[Array, "chunks"] | None,
    before: Int[Array, "chunks"] | None,
    *,
    groups: int,
    strictly: bool,
) -> tuple[Float[Array, "chunks rows V"], Float[Array, "F V"]]:
    """The sums of one head: inside chunks, and from the state before each."""
    size = k.shape[1]
    i, j = jnp.arange(size)[:, None], jnp.arange(size)[None, :]
    sees = (j < i if strictly else j <= i)[None]
    kept, keys, reads = None, k, q
    if here is not None and last is not None and before is not None:
        sees = sees & (here[:, :, None] == here[:, None, :])
        kept = (last == before).astype(q.dtype)
        keys = jnp.where((here == last[:, None])[..., None], k, 0)
        own = jnp.tile(here == before[:, None], (1, groups))
        reads = jnp.where(own[..., None], q, 0)

    def carry(state: Array, x: Any) -> tuple[Array, Array]:
        new, keep = x
        old = state if keep is None else state * keep
        return old + new, state

    added = jnp.einsum("csf,csv->cfv", keys, v)
    final, states = lax.scan(carry, state, (added, kept))
    weights = jnp.einsum("crf,csf->crs", q, k)
    weights = jnp.where(jnp.tile(sees, (1, groups, 1)), weights, 0)
    return weights @ v + reads @ states, final


def _ratio(sums: Float[Array, "*rows columns"]) -> Float[Array, "*rows value_dim"]:
    """Weighted sums over the sum of weights, in the last column; 0 where that is 0."""
    # Two axes: the derivative's sum of products over the last one of several takes
    # XLA's CPU backend fifteen times as long.
    rows = sums.reshape(sums[..., 0].size, sums.shape[-1])
    total = rows[:, -1:]
    some = total != 0
    mean = rows[:, :-1] * jnp.where(some, 1 / jnp.where(some, total, 1), 0)
    return mean.reshape(*sums.shape[:-1], mean.shape[-1])


def _check(q: Array, k: Array, v: Array, chunk_size: int, is_square: bool) -> None:
    if k.shape[:3] != v.shape[:3] or q.shape[0] != k.shape[0]:
        raise ValueError(
            "query, key and value must have one batch, and key and value one length "
            f"and one number of heads, got {q.shape}, {k.shape} and {v.shape}"
        )
    if q.shape[3] != k.shape[3] or q.shape[2] % k.shape[2]:
        raise ValueError(
            "query and key must have one dim, and the query a multiple of the key's "
            f"heads, got {q.shape} and {k.shape}"
        )
    if is_square and q.shape[1] != k.shape[1]:
        raise ValueError(
            "query and key must have one length if causal or in segments, "
            f"got {q.shape[1]} and {k.shape[1]}"
        )
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be positive, got {chunk_size}")
