"""The oracle itself, against loops in NumPy and against `jax.nn`."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.attention import attention
from jaxml.attention.masks import kept
from jaxml.attention.reference import reference


def attention_numpy(spec, operands, context):
    """Query by query in float64, from the definitions of `Spec` and `Context`."""
    q, k, v, bias = (None if x is None else np.float64(x) for x in operands)
    batch, queries, heads, _ = q.shape
    keys, kv_heads = k.shape[1:3]
    full = (batch, heads, queries, keys)
    bias = np.zeros(full) if bias is None else np.broadcast_to(bias, full)
    mask = np.broadcast_to(True if context.mask is None else context.mask, full)
    offset = np.broadcast_to(context.offset, batch)
    out = np.zeros((batch, queries, heads, v.shape[-1]))
    lse = np.full((batch, queries, heads), -np.inf)
    for b, n, i in np.ndindex(batch, heads, queries):
        if context.query_lengths is not None and i >= context.query_lengths[b]:
            continue
        logits, seen = [], []
        for j in range(keys):
            distance = j - (i + offset[b])
            if not mask[b, n, i, j]:
                continue
            if spec.left is not None and distance < -spec.left:
                continue
            if spec.right is not None and distance > spec.right:
                continue
            if context.key_lengths is not None and j >= context.key_lengths[b]:
                continue
            segments = context.query_segments, context.key_segments
            if segments[0] is not None and segments[0][b, i] != segments[1][b, j]:
                continue
            s = spec.scale * (q[b, i, n] @ k[b, j, n * kv_heads // heads])
            if spec.soft_cap is not None:
                s = spec.soft_cap * np.tanh(s / spec.soft_cap)
            logits.append(s + bias[b, n, i, j])
            seen.append(j)
        if not seen:
            continue
        top = max(logits)
        p = np.exp(np.array(logits) - top)
        lse[b, i, n] = top + np.log(p.sum())
        out[b, i, n] = p / p.sum() @ v[b, seen, n * kv_heads // heads]
    return out, lse


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_causal": True},
        {"is_causal": True, "causal_offset": "bottom_right", "scale": 0.3},
        {"is_causal": True, "causal_offset": np.array([-2, 3])},
        {"local_window_size": (2, 1), "causal_offset": 1},
        {"local_window_size": (None, 2)},
        {"local_window_size": (3, None), "is_causal": True},
        {"bias": (1, 4, 6, 1), "logits_soft_cap": 0.5},
        {"bias": (2, 1, 1, 9), "mask": (2, 4, 6, 9)},
        {
            "query_seq_lengths": np.array([6, 2]),
            "key_value_seq_lengths": np.array([0, 5]),
        },
        {
            "segment_ids": (
                np.array([[0, 0, 1, 1, 2, 2], [5, 5, 5, 0, 0, 1]]),
                np.array([[0, 0, 0, 1, 1, 1, 1, 3, 3], [0, 0, 0, 0, 0, 0, 5, 5, 5]]),
            )
        },
    ],
    ids=lambda options: "-".join(options),
)
def test_reference_is_the_definition(call, options):
    made = call(queries=6, keys=9, **options)
    chex.assert_trees_all_close(
        reference(*made), attention_numpy(*made), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("implementation", ["reference", "chunked"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_causal": True},
        {"local_window_size": 3, "scale": 0.2},
        {"local_window_size": (1, 4), "is_causal": True},
        {
            "key_value_seq_lengths": np.array([7, 9]),
            "query_seq_lengths": np.array([7, 3]),
        },
        {"bias": True, "mask": True},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_the_same_call_gives_the_same_numbers_as_jax(rng, implementation, options):
    q = np.float32(rng.normal(size=(2, 7, 4, 8)))
    k, v = np.float32(rng.normal(size=(2, 2, 9, 2, 8)))
    if "mask" in options:
        options = {
            "bias": np.float32(rng.normal(size=(1, 4, 1, 9))),
            "mask": (rng.random((2, 1, 7, 9)) < 0.8) | (np.arange(9) == 0),
        }
    actual = attention(q, k, v, **options, implementation=implementation)
    expected = jax.nn.dot_product_attention(q, k, v, **options)
    chex.assert_trees_all_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_a_query_that_sees_nothing_gives_zero_and_no_gradient(call):
    made = call(queries=3, keys=4, key_value_seq_lengths=np.array([0, 4]))
    out, lse = reference(*made)
    assert not out[0].any()
    assert (lse[0] == -jnp.inf).all()
    assert jnp.isfinite(lse[1]).all()
    spec, operands, context = made
    grads = jax.grad(lambda o: jnp.sum(reference(spec, o, context)[0]))(operands)
    chex.assert_tree_all_finite(grads)
    assert not any(x[0].any() for x in jax.tree.leaves(grads))


def test_dropout_is_that_of_the_factors(call):
    spec, operands, context = call(
        kv_heads=4, dropout_rate=0.4, dropout_key=jax.random.key(0)
    )
    values = jnp.broadcast_to(jnp.eye(53)[None, :, None], (2, 53, 4, 53))
    weights, _ = reference(spec, operands._replace(value=values), context)
    plain = reference(
        spec, operands._replace(value=values), context._replace(dropout_seeds=None)
    )[0]
    factors = kept(
        0.4, context.dropout_seeds[1], jnp.int32(3), jnp.arange(37), jnp.arange(53)
    )
    chex.assert_trees_all_close(weights[1, :, 3], plain[1, :, 3] * factors, atol=1e-6)
