"""Efficient attention against its quadratic form."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.attention import efficient_attention


def softmax(x, axis):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def make(rng, queries=6, keys=9, heads=4, kv_heads=2):
    shapes = (2, queries, heads, 5), (2, keys, kv_heads, 5), (2, keys, kv_heads, 3)
    return [np.float32(3 * rng.normal(size=shape)) for shape in shapes]


@pytest.mark.parametrize("lengths", [None, (4, 9)])
def test_it_is_two_softmaxes(rng, lengths):
    q, k, v = make(rng)
    out = np.zeros((2, 6, 4, 3))
    for b, n in np.ndindex(2, 4):
        m = n // 2
        real = slice(None if lengths is None else lengths[b])
        keys = softmax(np.float64(k[b, real, m]), 0)
        weights = softmax(np.float64(q[b, :, n]), 1) @ keys.T
        chex.assert_trees_all_close(weights.sum(1), np.ones(6))
        out[b, :, n] = weights @ v[b, real, m]
    options = {} if lengths is None else {"key_value_seq_lengths": jnp.array(lengths)}
    actual = efficient_attention(q, k, v, **options)
    chex.assert_trees_all_close(actual, out, rtol=1e-4, atol=1e-5)


def test_a_sample_without_keys_gives_zero_and_finite_gradients(rng):
    q, k, v = make(rng)
    lengths = jnp.array([0, 3])
    f = lambda *x: efficient_attention(*x, key_value_seq_lengths=lengths)
    assert not f(q, k, v)[0].any()
    grads = jax.grad(lambda *x: jnp.sum(f(*x) ** 2), (0, 1, 2))(q, k, v)
    chex.assert_tree_all_finite(grads)
    assert not grads[1][1, 3:].any()


def test_bad_input_is_refused(rng):
    q, k, v = make(rng)
    with pytest.raises(ValueError, match="multiple of the key heads, got 3 and 2"):
        efficient_attention(q[:, :, :3], k, v)
