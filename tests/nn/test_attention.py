"""Multi-head attention: its maps, heads, contexts, and any attention function."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.attention import linear_attention
from jaxml.nn import MultiHeadAttention


def init(module, *args):
    return module.init(jax.random.key(0), *args, train=False)


def heads_numpy(q, k, v):
    """Softmax attention of [batch, tokens, heads, dim], keys repeated for groups."""
    groups = q.shape[2] // k.shape[2]
    k, v = (np.repeat(x, groups, axis=2) for x in (k, v))
    s = np.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(q.shape[-1])
    p = np.exp(s - s.max(-1, keepdims=True))
    return np.einsum("bnts,bsnh->btnh", p / p.sum(-1, keepdims=True), v)


@pytest.mark.parametrize("kv_heads", [None, 2])
@pytest.mark.parametrize("has_context", [False, True])
def test_it_is_four_maps_around_attention(rng, kv_heads, has_context):
    x = np.float32(rng.normal(size=(2, 5, 12)))
    context = np.float32(rng.normal(size=(2, 7, 10))) if has_context else None
    module = MultiHeadAttention(4, kv_heads)
    variables = init(module, x, context)
    params = jax.tree.map(
        lambda p: np.float64(p) + rng.normal(size=p.shape), variables["params"]
    )
    dense = lambda name, y: y @ params[name]["kernel"] + params[name]["bias"]
    split = lambda y, heads: y.reshape(2, y.shape[1], heads, 3)
    y = x if context is None else context
    if kv_heads is None and not has_context:
        q, k, v = (split(z, 4) for z in np.split(dense("qkv", x), 3, axis=-1))
    else:
        q = split(dense("q", x), 4)
        k, v = (split(z, kv_heads or 4) for z in np.split(dense("kv", y), 2, axis=-1))
    expected = dense("out", heads_numpy(q, k, v).reshape(2, 5, 12))
    actual = module.apply(
        {"params": jax.tree.map(jnp.float32, params)}, x, context, train=False
    )
    chex.assert_trees_all_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_any_attention_function(rng):
    x = np.float32(rng.normal(size=(2, 6, 8)))
    variables = init(MultiHeadAttention(2), x)
    run = lambda f, **options: MultiHeadAttention(2, attention=f).apply(
        variables, x, train=False, **options
    )
    given = []

    def spy(q, k, v, **options):
        given.append((q.shape, options))
        return v

    run(spy, is_causal=True)
    assert given == [((2, 6, 2, 4), {"is_causal": True})]
    causal = run(linear_attention, is_causal=True)
    later = jnp.asarray(x).at[:, 3:].set(0)
    module = MultiHeadAttention(2, attention=linear_attention)
    cut = module.apply(variables, later, train=False, is_causal=True)
    chex.assert_trees_all_close(cut[:, :3], causal[:, :3], rtol=1e-5, atol=1e-6)
    assert jnp.abs(cut[:, 3:] - causal[:, 3:]).max() > 1e-3


def test_matrices_are_drawn_as_square_ones():
    x = np.zeros((1, 1, 96), np.float32)
    kernel = init(MultiHeadAttention(4), x)["params"]["qkv"]["kernel"]
    assert abs(float(jnp.abs(kernel).max()) - np.sqrt(3 / 96)) < 1e-2


def test_heads_must_divide():
    x = np.zeros((1, 1, 12), np.float32)
    for module in (MultiHeadAttention(5), MultiHeadAttention(4, 3)):
        with pytest.raises(ValueError, match="heads must divide width"):
            init(module, x)
