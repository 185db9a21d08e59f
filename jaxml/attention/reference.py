"""Attention as it is defined, with its matrix of weights: the oracle of all backends.

    out = softmax(logits + where(visible, 0, -inf)) v,    lse = log sum exp

in the dtype of the inputs, float32 at least, float64 where JAX has it. It takes memory of
queries x keys, and is for tests and for reading. The one deviation from a plain softmax
is a query that sees nothing: it gives 0, and lse = -inf.

Reference: Vaswani et al., "Attention Is All You Need", NeurIPS 2017,
https://arxiv.org/abs/1706.03762 (equation 1); query groups of Ainslie et al.,
https://arxiv.org/abs/2305.13245.
"""

from functools import partial

import jax
import jax.numpy as jnp

from jaxml.attention.masks import Columns, Limits, Rows, kept, visible
from jaxml.attention.spec import Context, Operands, Spec
from jaxml.typing import Array, Float


def reference(
    spec: Spec, operands: Operands, context: Context
) -> tuple[Float[Array, "B T N V"], Float[Array, "B T N"]]:
    """The output in the query's dtype, and the log-sum-exp in float32 or wider."""
    q, k, v, bias = operands
    dtype = operands.accumulator
    q, k, v = (x.astype(dtype) for x in (q, k, v))
    k, v = (jnp.repeat(x, operands.groups, axis=2) for x in (k, v))
    logits = spec.scale * jnp.einsum("btnh,bsnh->bnts", q, k)
    if spec.soft_cap is not None:
        logits = spec.soft_cap * jnp.tanh(logits / spec.soft_cap)
    if bias is not None:
        logits += jnp.broadcast_to(bias, logits.shape).astype(dtype)
    sees = visibility(spec, context, logits.shape)
    logits = jnp.where(sees, logits, -jnp.inf)
    top = jnp.max(logits, axis=-1, keepdims=True, initial=-jnp.inf)
    top = jax.lax.stop_gradient(jnp.where(top == -jnp.inf, 0, top))
    p = jnp.exp(logits - top)
    total = jnp.sum(p, axis=-1, keepdims=True)
    some = total > 0
    lse = jnp.where(some, jnp.log(jnp.where(some, total, 1)) + top, -jnp.inf)
    p = p / jnp.where(some, total, 1)
    if context.dropout_seeds is not None:
        p *= _dropout(spec, context, logits.shape)
    out = jnp.einsum("bnts,bsnv->btnv", p, v)
    return out.astype(operands.query.dtype), jnp.moveaxis(lse[..., 0], 1, 2)


def visibility(spec: Spec, context: Context, shape: tuple[int, ...]) -> Array:
    """Who sees whom, [batch, heads, queries, keys]."""
    mask = jnp.ones((1, 1, 1, 1), bool) if context.mask is None else context.mask
    mask = jnp.broadcast_to(mask, shape)

    def of_sample(mask: Array, context: Context) -> Array:
        limits = Limits(context.offset, context.query_lengths, context.key_lengths)
        rows = Rows(jnp.arange(shape[2]), context.query_segments)
        columns = Columns(jnp.arange(shape[3]), context.key_segments)
        return jax.vmap(partial(visible, spec, limits, rows, columns))(mask)

    offset = jnp.broadcast_to(context.offset, shape[:1])
    return jax.vmap(of_sample)(mask, context._replace(offset=offset, mask=None))


def _dropout(spec: Spec, context: Context, shape: tuple[int, ...]) -> Array:
    _, heads, queries, keys = shape
    of_head = partial(
        kept,
        spec.dropout_rate,
        rows=jnp.arange(queries),
        columns=jnp.arange(keys),
    )
    of_heads = jax.vmap(lambda seeds, head: of_head(seeds, head), in_axes=(None, 0))
    of_samples = jax.vmap(of_heads, in_axes=(0, None))
    return of_samples(context.dropout_seeds, jnp.arange(heads))
