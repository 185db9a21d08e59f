"""What one call of attention asks for: checked once, in the form all backends take.

    logits = cap tanh(scale q k^T / cap) + bias,   out = dropout(softmax(logits)) v

over the keys that a query may see. `Spec` holds what is known before any number: it is
hashable and decides what is compiled. `Operands` are differentiated, `Context` is not.

The trap is the order of soft cap and bias: capped after the bias, a bias of -inf would
become -cap, and hide nothing. Here the cap comes first.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxml.typing import Array, Bool, Float, Int, Key, PRNGKeyArray


@dataclass(frozen=True)
class Spec:
    """The static part of a call.

    Attributes:
        scale: of the products of queries and keys.
        left: how many keys before its own position a query sees; None, all.
        right: how many after it; 0 is causal, None all.
        soft_cap: bound of the scaled products, or None.
        dropout_rate: probability that a weight is zeroed, in [0, 1).
    """

    scale: float
    left: int | None = None
    right: int | None = None
    soft_cap: float | None = None
    dropout_rate: float = 0.0


class Operands(NamedTuple):
    """The arrays that are differentiated; a bias axis of one is shared."""

    query: Float[Array, "B T N H"]
    key: Float[Array, "B S K H"]
    value: Float[Array, "B S K V"]
    bias: Float[Array, "b n t s"] | None = None

    @property
    def groups(self) -> int:
        """Query heads per head of keys."""
        return self.query.shape[2] // self.key.shape[2]

    @property
    def accumulator(self) -> Any:
        """The dtype of logits, sums and lse."""
        return jnp.promote_types(self.query.dtype, jnp.float32)


class Context(NamedTuple):
    """The arrays that say who sees whom.

    Attributes:
        offset: position of the first query among the keys, per sample or for all.
        mask: True where a query may see a key; an axis of one is shared.
        query_lengths: queries from there on are padding.
        key_lengths: keys from there on are padding.
        query_segments: a query sees the keys of its own segment.
        key_segments: of the keys.
        dropout_seeds: two words per sample.
    """

    offset: Int[Array, "b"]
    mask: Bool[Array, "b n t s"] | None = None
    query_lengths: Int[Array, "B"] | None = None
    key_lengths: Int[Array, "B"] | None = None
    query_segments: Int[Array, "B T"] | None = None
    key_segments: Int[Array, "B S"] | None = None
    dropout_seeds: Array | None = None


SegmentIds = Array | tuple[Array, Array]


def prepare(
    query: Array,
    key: Array,
    value: Array,
    bias: Array | None = None,
    mask: Array | None = None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    causal_offset: str | int | Array = "top_left",
    query_seq_lengths: Array | None = None,
    key_value_seq_lengths: Array | None = None,
    segment_ids: SegmentIds | None = None,
    local_window_size: int | tuple[int | None, int | None] | None = None,
    logits_soft_cap: float | None = None,
    dropout_rate: float = 0.0,
    dropout_key: PRNGKeyArray | Key[Array, "batch"] | None = None,
) -> tuple[Spec, Operands, Context]:
    """Checks the arguments of `attention`; all arrays come back with a batch axis.

    Raises:
        ValueError: if shapes or dtypes do not fit, or an option is out of range.
    """
    q, k, v = (_with_batch(x, 4) for x in (query, key, value))
    _check_heads(q, k, v)
    batch, queries, keys = q.shape[0], q.shape[1], k.shape[1]
    logits = (batch, q.shape[2], queries, keys)
    left, right = _window(is_causal, local_window_size)
    if not 0 <= dropout_rate < 1:
        raise ValueError(f"dropout_rate must lie in [0, 1), got {dropout_rate}")
    if dropout_rate > 0 and dropout_key is None:
        raise ValueError("dropout_key must be given where dropout_rate is above zero")
    if logits_soft_cap is not None and not logits_soft_cap > 0:
        raise ValueError(f"logits_soft_cap must be positive, got {logits_soft_cap}")
    query_segments, key_segments = _segments(segment_ids, batch, queries, keys)
    spec = Spec(
        scale=float(q.shape[-1] ** -0.5 if scale is None else scale),
        left=left,
        right=right,
        soft_cap=logits_soft_cap,
        dropout_rate=float(dropout_rate),
    )
    context = Context(
        offset=_offset(causal_offset, batch, queries, keys),
        mask=_shared("mask", mask, logits, jnp.bool_),
        query_lengths=_lengths("query_seq_lengths", query_seq_lengths, batch),
        key_lengths=_lengths("key_value_seq_lengths", key_value_seq_lengths, batch),
        query_segments=query_segments,
        key_segments=key_segments,
        dropout_seeds=_seeds(dropout_key, batch) if dropout_rate else None,
    )
    return spec, Operands(q, k, v, _shared("bias", bias, logits, None)), context


def _with_batch(x: Array, ndim: int) -> Array:
    x = jnp.asarray(x)
    return x.reshape((1,) * (ndim - x.ndim) + x.shape)


def _check_heads(q: Array, k: Array, v: Array) -> None:
    if not (q.ndim == k.ndim == v.ndim == 4):
        raise ValueError(
            "query, key and value must have the axes [batch,] length, heads, dim, "
            f"got {q.shape}, {k.shape} and {v.shape}"
        )
    if k.shape[:3] != v.shape[:3] or q.shape[0] != k.shape[0]:
        raise ValueError(
            "query, key and value must have one batch, and key and value one length "
            f"and one number of heads, got {q.shape}, {k.shape} and {v.shape}"
        )
    if q.shape[3] != k.shape[3]:
        raise ValueError(
            f"query and key must have one dim, got {q.shape[3]} and {k.shape[3]}"
        )
    if k.shape[2] == 0 or q.shape[2] % k.shape[2]:
        raise ValueError(
            "the number of query heads must be a multiple of the key heads, "
            f"got {q.shape[2]} and {k.shape[2]}"
        )
    if not (q.dtype == k.dtype == v.dtype):
        raise ValueError(
            "query, key and value must have one dtype, "
            f"got {q.dtype}, {k.dtype} and {v.dtype}"
        )


def _window(
    is_causal: bool, size: int | tuple[int | None, int | None] | None
) -> tuple[int | None, int | None]:
    left, right = size if isinstance(size, tuple) else (size, size)
    if any(n is not None and n < 0 for n in (left, right)):
        raise ValueError(f"local_window_size must not be negative, got {size}")
    return left, 0 if is_causal else right


def _offset(
    offset: str | int | Array, batch: int, queries: int, keys: int
) -> Int[Array, "b"]:
    if isinstance(offset, str):
        corners = {"top_left": 0, "bottom_right": keys - queries}
        if offset not in corners:
            raise ValueError(
                f"causal_offset must be one of {', '.join(corners)} or integers, "
                f"got {offset!r}"
            )
        offset = corners[offset]
    array = jnp.asarray(offset, jnp.int32)
    if array.shape not in ((), (1,), (batch,)):
        raise ValueError(
            f"causal_offset must be one number or {batch} of them, got {array.shape}"
        )
    return array.reshape(-1)


def _shared(
    name: str, x: Array | None, shape: tuple[int, ...], dtype: Any
) -> Array | None:
    """A bias or mask with four axes, each whole or of one."""
    if x is None:
        return None
    x = _with_batch(x, 4)
    fits = len(x.shape) == 4 and all(
        n in (1, m) for n, m in zip(x.shape, shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{name} must broadcast to {shape}, got {x.shape}")
    if dtype is not None and x.dtype != dtype:
        raise ValueError(f"{name} must be {jnp.dtype(dtype)}, got {x.dtype}")
    if dtype is None and not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{name} must be floating, got {x.dtype}")
    return x


def _lengths(name: str, x: Array | None, batch: int) -> Int[Array, "B"] | None:
    if x is None:
        return None
    x = jnp.atleast_1d(jnp.asarray(x))
    if x.shape != (batch,) or not jnp.issubdtype(x.dtype, jnp.integer):
        raise ValueError(
            f"{name} must be {batch} integers, got shape {x.shape} of {x.dtype}"
        )
    return x.astype(jnp.int32)


def _segments(
    ids: SegmentIds | None, batch: int, queries: int, keys: int
) -> tuple[Array | None, Array | None]:
    if ids is None:
        return None, None
    pair = ids if isinstance(ids, tuple) else (ids, ids)
    shapes = ((batch, queries), (batch, keys))
    arrays = tuple(_with_batch(x, 2) for x in pair)
    if tuple(x.shape for x in arrays) != shapes or not all(
        jnp.issubdtype(x.dtype, jnp.integer) for x in arrays
    ):
        raise ValueError(
            f"segment_ids must be integers of shapes {shapes[0]} and {shapes[1]}, "
            f"got {', '.join(f'{x.shape} of {x.dtype}' for x in arrays)}"
        )
    return arrays[0].astype(jnp.int32), arrays[1].astype(jnp.int32)


def _seeds(key: PRNGKeyArray | Key[Array, "batch"], batch: int) -> Array:
    """Two words for every sample, of one key or of a key per sample."""
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    if key.ndim == 0:
        fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
        key = fold(key, jnp.arange(batch))
    if key.shape != (batch,):
        raise ValueError(
            f"dropout_key must be one key or {batch} of them, got {key.shape}"
        )
    return jax.vmap(lambda k: jax.random.bits(k, (2,), jnp.uint32))(key)
