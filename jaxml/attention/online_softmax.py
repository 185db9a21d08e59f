"""The online softmax: a weighted mean in one pass over its logits, in pieces of any size.

Three steps lead from the definition to attention without its matrix of weights:

    safe softmax     w_j = exp(s_j - m) / l,  m = max_j s_j,  l = sum_j exp(s_j - m)
    online softmax   m' = max(m, max_j s_j),  l' = l exp(m - m') + sum_j exp(s_j - m')
    in one pass      a' = a exp(m - m') + sum_j exp(s_j - m') v_j,  out = a / l

The first reads the logits three times: for m, for l, for w. The second keeps m and l for
the part seen so far, since a sum relative to m becomes one relative to m' by one factor.
The third sees that the weighted sum a obeys the same rule, so that logits and values are
read once and forgotten. (m, l, a) is a state, `merge` joins the states of any two
disjoint parts, and it is associative and commutative up to rounding: any split of the
keys, in any order and on any device, gives the same result.

The trap is a part in which nothing is visible: its m is -inf, and exp(-inf - -inf) is
not a number. Here such a part leaves the state as it was, and a row that saw nothing at
all ends as out = 0 and lse = -inf, which is again what `merge` takes.

Reference: Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018,
https://arxiv.org/abs/1805.02867 (algorithm 3, section 3.1 for the merge); Rabe and
Staats, "Self-attention Does Not Need O(n^2) Memory", 2021,
https://arxiv.org/abs/2112.05682 (the weighted sum).
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from jaxml.export import export
from jaxml.typing import Array, Float


class SoftmaxState(NamedTuple):
    """What the pass knows of the keys it has seen, per row.

    Attributes:
        maximum: of the logits; -inf before the first visible key.
        total: sum of exp(logit - maximum).
        weighted: sum of exp(logit - maximum) value.
    """

    maximum: Float[Array, "*rows"]
    total: Float[Array, "*rows"]
    weighted: Float[Array, "*rows dim"]


def empty_state(rows: tuple[int, ...], dim: int, dtype: Any) -> SoftmaxState:
    """The state that has seen nothing: the identity of `merge`."""
    zeros = jnp.zeros(rows, dtype)
    return SoftmaxState(zeros - jnp.inf, zeros, jnp.zeros((*rows, dim), dtype))


def absorb(
    state: SoftmaxState,
    logits: Float[Array, "*rows keys"],
    values: Float[Array, "*batch keys dim"],
    weights: Float[Array, "*rows keys"] | None = None,
) -> SoftmaxState:
    """The state after some more keys; -inf hides a key.

    Args:
        state: of the keys seen so far.
        logits: of the new keys.
        values: of the new keys.
        weights: factors on the values alone, as dropout has them.
    """
    maximum = jnp.maximum(state.maximum, jnp.max(logits, axis=-1, initial=-jnp.inf))
    base = _finite(maximum)
    shrink = jnp.exp(state.maximum - base)
    p = jnp.exp(logits - base[..., None])
    total = state.total * shrink + jnp.sum(p, axis=-1)
    p = p if weights is None else p * weights
    weighted = state.weighted * shrink[..., None] + p @ values
    return SoftmaxState(maximum, total, weighted)


def merge(a: SoftmaxState, b: SoftmaxState) -> SoftmaxState:
    """The state of two disjoint sets of keys."""
    maximum = jnp.maximum(a.maximum, b.maximum)
    base = _finite(maximum)
    by_a, by_b = jnp.exp(a.maximum - base), jnp.exp(b.maximum - base)
    return SoftmaxState(
        maximum,
        a.total * by_a + b.total * by_b,
        a.weighted * by_a[..., None] + b.weighted * by_b[..., None],
    )


def finish(
    state: SoftmaxState,
) -> tuple[Float[Array, "*rows dim"], Float[Array, "*rows"]]:
    """The softmax-weighted mean, and the logarithm of the sum of exponentials."""
    return mean(state), log_total(state.maximum, state.total)


def mean(state: SoftmaxState) -> Float[Array, "*rows dim"]:
    """The softmax-weighted mean of the values; 0 where nothing was seen."""
    return state.weighted / jnp.where(state.total == 0, 1, state.total)[..., None]


def log_total(
    maximum: Float[Array, "*rows"], total: Float[Array, "*rows"]
) -> Float[Array, "*rows"]:
    """The logarithm of the sum of exponentials; -inf where nothing was seen."""
    none = total == 0
    return jnp.where(
        none, -jnp.inf, _finite(maximum) + jnp.log(jnp.where(none, 1, total))
    )


def finished_state(
    out: Float[Array, "*rows dim"], lse: Float[Array, "*rows"]
) -> SoftmaxState:
    """The state that `finish` would turn into this result; `merge` takes it."""
    seen = (lse > -jnp.inf).astype(lse.dtype)
    return SoftmaxState(lse, seen, out * seen[..., None])


@export("attention.online_softmax", since="0.1")
def online_softmax(
    logits: Float[Array, "*rows keys"],
    values: Float[Array, "keys dim"],
    *,
    block_size: int = 128,
) -> tuple[Float[Array, "*rows dim"], Float[Array, "*rows"]]:
    """softmax(logits) @ values in one pass over blocks of keys, without the softmax.

    Args:
        logits: any scale; -inf hides a key.
        values: what is averaged.
        block_size: keys at a time; the result depends on it by rounding alone.

    Returns:
        The weighted mean and the logarithm of the sum of exponentials, in the wider of
        float32 and the inputs. A row whose keys are all hidden gives 0 and -inf.

    Raises:
        ValueError: if `logits` and `values` differ in their number of keys, or the block
            is empty.

    >>> out, lse = online_softmax(jnp.array([0.0, 1e4]), jnp.array([[1.0], [3.0]]))
    >>> out.tolist(), lse.tolist()
    ([3.0], 10000.0)
    """
    if logits.shape[-1] != values.shape[0]:
        raise ValueError(
            f"logits and values must have one number of keys, got {logits.shape[-1]} "
            f"and {values.shape[0]}"
        )
    if block_size < 1:
        raise ValueError(f"block_size must be positive, got {block_size}")
    dtype = jnp.promote_types(jnp.result_type(logits, values), jnp.float32)
    logits, values = jnp.asarray(logits, dtype), jnp.asarray(values, dtype)
    *rows, keys = logits.shape
    state = empty_state(tuple(rows), values.shape[1], dtype)
    full = keys // block_size * block_size
    head = logits[..., :full].reshape(*rows, -1, block_size)
    blocks = (
        jnp.moveaxis(head, -2, 0),
        values[:full].reshape(-1, block_size, values.shape[1]),
    )
    state, _ = lax.scan(lambda s, block: (absorb(s, *block), None), state, blocks)
    return finish(absorb(state, logits[..., full:], values[full:]))


def _finite(maximum: Float[Array, "*rows"]) -> Float[Array, "*rows"]:
    # Any finite base will do where every logit is -inf: all exponentials are zero.
    return jnp.where(maximum == -jnp.inf, 0, maximum)
