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
from jaxml.attention.tiles import map_axis, varying_like
from jaxml.export import export
from jaxml.typing import Array, Bool, Float, Int


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
    implementation: str | None = None,
    interpret: bool = False,
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
        implementation: None or "chunked" is plain JAX; "mosaic_gpu" a kernel for Hopper,
            not measured yet, of causal sums without segments in 16 bits; "flash" that
            kernel on a GPU and plain JAX elsewhere, in one program.
        interpret: run the kernel without a GPU.

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
    if implementation not in (None, "chunked", *KERNELS):
        raise ValueError(
            "implementation must be None, chunked, mosaic_gpu or flash, "
            f"got {implementation!r}"
        )
    if implementation in KERNELS and not is_causal:
        raise ValueError(f"{implementation} takes causal sums, got is_causal=False")
    _check(query, key, value, chunk_size, is_causal or segment_ids is not None)
    if segment_ids is not None and segment_ids.shape != key.shape[:2]:
        raise ValueError(
            f"segment_ids must be {key.shape[:2]}, got {segment_ids.shape}"
        )
    seen = None
    if key_value_seq_lengths is not None:
        seen = jnp.arange(key.shape[1])[None, :] < key_value_seq_lengths[:, None]
    tokens = Tokens(_grouped(query, key.shape[2]), key, value, seen, segment_ids)
    mapped = partial(_mapped, phi, jnp.promote_types(query.dtype, jnp.float32))
    finish = _ratio if normalize else _sums
    state = _joined(initial_state, mapped, tokens)
    if segment_ids is None and not is_causal:
        sums, total = _full_sums(mapped(tokens), state[0])
        out, state = finish(sums), (total, None)
    elif is_causal and implementation in KERNELS:
        _check_kernel(implementation, interpret, query, segment_ids, tokens, mapped)
        plain = partial(_causal_sums, mapped, chunk_size=chunk_size)
        kernel = partial(_kernel_sums, mapped, interpret=interpret)
        run = kernel
        if implementation == "flash" and not interpret:
            run = partial(lax.platform_dependent, cuda=kernel, default=plain)
        sums, state = run(tokens, state)
        out = finish(sums)
    elif is_causal:
        out, state = _causal_sums(mapped, tokens, state, chunk_size, finish)
    else:  # the keys after i, by the same recurrence from the end
        sums, after = _causal_sums(mapped, tokens, state, chunk_size)
        turned = jax.tree.map(lambda x: x[:, ::-1], tokens)
        nothing = (jnp.zeros_like(state[0]), after[1])
        strictly = partial(_causal_sums, strictly=True)
        later, _ = strictly(mapped, turned, nothing, chunk_size)
        out, state = finish(sums + later[:, ::-1]), after
    out = out.reshape(*query.shape[:3], value.shape[-1]).astype(query.dtype)
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


KERNELS = ("mosaic_gpu", "flash")

# [batch, kv_heads, features, value_dim + 1], segment
State = tuple[Array, Array | None]


class Tokens(NamedTuple):
    """Queries in groups that share a head of keys, and which keys are seen."""

    query: Float[Array, "B T K G F"]
    key: Float[Array, "B S K F"]
    value: Float[Array, "B S K V"]
    seen: Bool[Array, "B S"] | None
    segment: Int[Array, "B S"] | None


def _grouped(query: Array, heads: int) -> Float[Array, "B T K G F"]:
    groups, dim = query.shape[2] // heads, query.shape[3]
    return query.reshape(*query.shape[:2], heads, groups, dim)


def _mapped(phi: FeatureMap, dtype: Any, tokens: Tokens) -> Tokens:
    """Queries and keys mapped, in a wide type; the normaliser is a sum of ones."""
    q, k, v = (x.astype(dtype) for x in tokens[:3])
    v = jnp.concatenate([v, jnp.ones_like(v[..., :1])], axis=-1)
    q, k = phi(q), phi(k)
    if tokens.seen is not None:
        k = jnp.where(tokens.seen[..., None, None], k, 0)
    return tokens._replace(query=q, key=k, value=v)


def _joined(
    state: LinearState | None, mapped: Callable[[Tokens], Tokens], tokens: Tokens
) -> State:
    """The state with its normaliser as one more column."""
    segments = tokens.segment
    like = jax.eval_shape(mapped, tokens)
    batch, _, heads, features = like.key.shape
    if state is None:
        zeros = jnp.zeros((batch, heads, features, like.value.shape[-1]))
        first = None if segments is None else jnp.pad(segments, ((0, 0), (0, 1)))[:, 0]
        return zeros.astype(like.key.dtype), first
    if segments is not None and state.segment is None:
        raise ValueError("initial_state must know its segment where there are segments")
    columns = (state.products, state.normalizer[..., None])
    return jnp.concatenate(columns, axis=-1).astype(like.key.dtype), state.segment


def _sums(sums: Float[Array, "*rows columns"]) -> Float[Array, "*rows value_dim"]:
    return sums[..., :-1]


def _causal_sums(
    mapped: Callable[[Tokens], Tokens],
    tokens: Tokens,
    state: State,
    chunk_size: int,
    finish: Callable[[Array], Array] = lambda sums: sums,
    *,
    strictly: bool = False,
) -> tuple[Float[Array, "B T K G V"], State]:
    """Sum over j <= i of (q_i . k_j) v_j, or j < i, and the state at the end."""
    batch, length = tokens.query.shape[:2]
    size = min(chunk_size, max(length, 1))
    missing = -length % size
    if missing and tokens.seen is None:  # padding is not
        tokens = tokens._replace(seen=jnp.full((batch, length), True))

    def cut(x: Array, mode: str = "constant") -> Array:
        padding = [(0, missing * (axis == 1)) for axis in range(x.ndim)]
        x = jnp.pad(x, padding, mode=mode) if missing else x
        count = (length + missing) // size
        return x.reshape(batch, count, size, *x.shape[2:]).swapaxes(0, 1)

    chunks = jax.tree.map(cut, tokens._replace(segment=None))
    if tokens.segment is not None:  # padded keys are not seen: any run will do
        chunks = chunks._replace(segment=cut(tokens.segment, "edge"))

    @jax.checkpoint
    def step(state: State, chunk: Tokens) -> tuple[State, Array]:
        sums, state = _chunk_sums(mapped(chunk), state, strictly)
        return state, finish(sums)

    if length and batch:
        state = varying_like(state, tokens)
    state, sums = lax.scan(step, state, chunks)
    # [chunks, B, K, size, G, V]
    sums = sums.transpose(1, 0, 3, 2, 4, 5)
    return sums.reshape(batch, length + missing, *sums.shape[3:])[:, :length], state


def _chunk_sums(
    chunk: Tokens, state: State, strictly: bool
) -> tuple[Float[Array, "B K C G V"], State]:
    """The sums of a chunk: inside it, and from the state before it."""
    q, k, v = (x.swapaxes(1, 2) for x in chunk[:3])
    total, before = state
    size, groups = q.shape[2:4]
    q = q.reshape(*q.shape[:2], size * groups, q.shape[-1])
    i, j = jnp.arange(size)[:, None], jnp.arange(size)[None, :]
    sees = (j < i if strictly else j <= i)[None]
    reads, keys, last, kept = q, k, before, total
    if chunk.segment is not None and before is not None:
        here = chunk.segment
        last = here[:, -1]
        sees = sees & (here[:, :, None] == here[:, None, :])
        own = jnp.repeat(here == before[:, None], groups, axis=1)
        reads = jnp.where(own[:, None, :, None], q, 0)
        keys = jnp.where((here == last[:, None])[:, None, :, None], k, 0)
        kept = jnp.where((last == before)[:, None, None, None], total, 0)
    sees = jnp.repeat(sees, groups, axis=1)[:, None]
    weights = jnp.where(sees, q @ k.swapaxes(2, 3), 0)
    sums = weights @ v + reads @ total
    sums = sums.reshape(*sums.shape[:2], size, groups, sums.shape[-1])
    return sums, (kept + keys.swapaxes(2, 3) @ v, last)


def _kernel_sums(
    mapped: Callable[[Tokens], Tokens],
    tokens: Tokens,
    state: State,
    *,
    interpret: bool = False,
) -> tuple[Float[Array, "B T K G V"], State]:
    """The same as `_causal_sums`, by a kernel; what came before is added to it."""
    from jaxml.attention.flash.gpu_linear import causal_sums
    from jaxml.kernels.devices import gpu_interpreter

    wide = mapped(tokens)
    q, k, v = (x.astype(tokens.query.dtype) for x in wide[:3])
    batch, length, heads, groups, features = q.shape
    how = gpu_interpreter() if interpret else None
    flat = q.reshape(batch, length, heads * groups, features)
    sums = causal_sums(flat, k, v, False, how).reshape(*q.shape[:4], -1)
    before = jnp.einsum("btkgf,bkfv->btkgv", wide.query, state[0])
    after = state[0] + jnp.einsum("btkf,btkv->bkfv", wide.key, wide.value)
    return sums + before, (after, state[1])


def _check_kernel(
    name: str | None,
    interpret: bool,
    query: Array,
    segment_ids: Array | None,
    tokens: Tokens,
    mapped: Callable[[Tokens], Tokens],
) -> None:
    from jaxml.attention.flash.gpu_linear import MOST

    like = jax.eval_shape(mapped, tokens)
    sizes = like.key.shape[-1], like.value.shape[-1]
    fits = query.dtype in (jnp.bfloat16, jnp.float16) and max(sizes) <= MOST
    if segment_ids is not None or not fits:
        raise ValueError(
            f"{name} takes bfloat16 or float16 without segments, up to {MOST} features "
            f"and {MOST - 1} of a value, got {query.dtype}, {sizes[0]} and "
            f"{sizes[1] - 1}{'' if segment_ids is None else ', and segments'}"
        )
    if name == "mosaic_gpu" and not interpret and jax.default_backend() != "gpu":
        raise ValueError(f"{name} runs on gpu, got {jax.default_backend()}")


def _full_sums(
    tokens: Tokens, state: Float[Array, "B K F V"]
) -> tuple[Float[Array, "B T K G V"], Float[Array, "B K F V"]]:
    """Sum over all j of (q_i . k_j) v_j, and the state."""
    q, k, v = tokens[:3]
    batch, length, heads, groups, features = q.shape
    q = q.transpose(0, 2, 1, 3, 4).reshape(batch, heads, -1, features)
    k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)

    def head(x: tuple[Array, ...]) -> tuple[Array, Array]:
        q, k, v, state = x
        state = state + k.T @ v
        return q @ state, state

    # One head at a time where they are large: products of two axes are the fastest.
    at_once = heads if q.size <= 2**18 else 1
    sums, state = map_axis(
        lambda x: map_axis(head, heads, at_once, x), batch, 1, (q, k, v, state)
    )
    sums = sums.reshape(batch, heads, length, groups, -1)
    return sums.transpose(0, 2, 1, 3, 4), state


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
