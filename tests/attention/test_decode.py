"""Decoding with a cache is attention over the whole sequence, token by token."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.attention import KVCache, attention, decode_attention

TOKENS, CAPACITY = 11, 16


@pytest.fixture
def qkv(rng):
    shapes = (TOKENS, 4, 6), (TOKENS, 2, 6), (TOKENS, 2, 3)
    return [np.float32(rng.normal(size=(2, *shape))) for shape in shapes]


def decode(qkv, cache, sizes, **options):
    """The sequence in pieces of the given sizes."""
    step = jax.jit(partial(decode_attention, **options))
    outs, start = [], 0
    for size in sizes:
        new = [x[:, start : start + size] for x in qkv]
        out, cache = step(*new, cache)
        outs.append(out)
        start += size
    return jnp.concatenate(outs, axis=1), cache


def whole(qkv, **options):
    return attention(*qkv, is_causal=True, implementation="reference", **options)


@pytest.mark.parametrize("sizes", [[1] * TOKENS, [7, 1, 1, 1, 1], [4, 4, 3], [TOKENS]])
def test_any_pieces_give_the_whole(qkv, sizes):
    cache = KVCache.empty(2, CAPACITY, 2, 6, 3)
    out, cache = decode(qkv, cache, sizes)
    chex.assert_trees_all_close(out, whole(qkv), rtol=1e-5, atol=1e-5)
    assert cache.length.tolist() == [TOKENS] * 2


@pytest.mark.parametrize("window", [0, 3, 40])
def test_a_window_and_other_options_pass(qkv, window, rng):
    options = {"sinks": np.float32(rng.normal(size=4)), "logits_soft_cap": 2.0}
    cache = KVCache.empty(2, CAPACITY, 2, 6, 3)
    out, _ = decode(qkv, cache, [5] + [1] * 6, window=window, **options)
    expected = whole(qkv, local_window_size=(window, 0), **options)
    chex.assert_trees_all_close(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("capacity", [1, 4, TOKENS])
def test_a_ring_is_a_window_of_its_capacity(qkv, capacity):
    cache = KVCache.empty(2, capacity, 2, 6, 3)
    out, cache = decode(qkv, cache, [1] * TOKENS, is_ring=True)
    expected = whole(qkv, local_window_size=(capacity - 1, 0))
    chex.assert_trees_all_close(out, expected, rtol=1e-5, atol=1e-5)
    assert cache.key.shape[1] == capacity
    assert cache.length.tolist() == [TOKENS] * 2


@pytest.mark.parametrize("is_ring", [False, True])
def test_samples_of_different_lengths(qkv, is_ring):
    """Padded prompts, then single tokens; a sample that has ended stands still."""
    lengths = np.array([7, 3])
    if is_ring:  # one token at a time: the shorter sample waits
        cache, expected = KVCache.empty(2, 16, 2, 6, 3), whole(qkv)
        for t in range(7):
            new = jnp.asarray(t < lengths, jnp.int32)
            out, cache = decode_attention(
                *(x[:, t : t + 1] for x in qkv), cache, is_ring=True, new_lengths=new
            )
            real = np.where((t < lengths)[:, None, None], expected[:, t], 0)
            chex.assert_trees_all_close(out[:, 0], real, rtol=1e-5, atol=1e-5)
        assert cache.length.tolist() == lengths.tolist()
        return
    cache = KVCache.empty(2, CAPACITY, 2, 6, 3)
    prompt = [x[:, :7] for x in qkv]
    out, cache = decode_attention(*prompt, cache, new_lengths=jnp.asarray(lengths))
    assert cache.length.tolist() == lengths.tolist()
    assert not out[1, 3:].any()
    after = [np.stack([x[0, 7:9], x[1, 3:5]]) for x in qkv]
    rest, cache = decode(after, cache, [1, 1])
    expected = whole(qkv)
    chex.assert_trees_all_close(rest[0], expected[0, 7:9], rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close(rest[1], expected[1, 3:5], rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close(out[1, :3], expected[1, :3], rtol=1e-5, atol=1e-5)


def test_old_slots_are_not_read(qkv):
    """What lies in a cache beyond its length does not matter, be it as loud as NaN is not."""
    clean = KVCache.empty(2, CAPACITY, 2, 6, 3)
    loud = clean._replace(key=clean.key + 1e4, value=clean.value + 1e4)
    sizes = [5, 1]
    chex.assert_trees_all_equal(
        decode(qkv, clean, sizes)[0], decode(qkv, loud, sizes)[0]
    )


def test_overflow_is_loud(qkv):
    cache = KVCache.empty(2, 4, 2, 6, 3)
    cache = cache._replace(length=jnp.array([0, 3]))
    out, after = decode_attention(*(x[:, :2] for x in qkv), cache)
    assert jnp.isfinite(out[0]).all()
    assert jnp.isnan(out[1]).all()
    chex.assert_trees_all_equal(
        after.key[1, 3], qkv[1][1, 0]
    )  # and nothing is overwritten


def test_a_donated_cache_is_written_in_place():
    x = jax.ShapeDtypeStruct((1, 1, 2, 64), jnp.float32)
    cache = jax.eval_shape(lambda: KVCache.empty(1, 2**14, 2, 64))
    step = jax.jit(decode_attention, donate_argnums=3)
    memory = step.lower(x, x, x, cache).compile().memory_analysis()
    whole_cache = 2 * 2**14 * 2 * 64 * 4
    assert memory.alias_size_in_bytes >= whole_cache
    assert memory.temp_size_in_bytes <= 1.2 * whole_cache  # tiles of keys, heads first


def test_bad_input_is_refused(qkv):
    q, k, v = (x[:, :2] for x in qkv)
    with pytest.raises(ValueError, match="one token at a time"):
        decode_attention(q, k, v, KVCache.empty(2, 4, 2, 6, 3), is_ring=True)
    with pytest.raises(ValueError, match="value must fit the cache"):
        decode_attention(q, k, v, KVCache.empty(2, 4, 2, 6))
