"""The online softmax: any split of the keys, in any order, merges to one result."""

import functools

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.attention.online_softmax import (
    absorb,
    empty_state,
    finish,
    finished_state,
    merge,
    online_softmax,
)


def softmax_numpy(logits, values):
    """The definition in float64, a row at a time."""
    out, lse = [], []
    for row in np.float64(logits):
        top = row.max(initial=-np.inf)
        if top == -np.inf:
            out.append(np.zeros(values.shape[1]))
            lse.append(-np.inf)
            continue
        p = np.exp(row - top)
        out.append(p @ np.float64(values) / p.sum())
        lse.append(top + np.log(p.sum()))
    return np.stack(out), np.stack(lse)


@pytest.mark.parametrize("keys", [0, 1, 7, 128, 129, 300])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_it_is_the_softmax(rng, keys, scale):
    logits, values = scale * rng.normal(size=(3, keys)), rng.normal(size=(keys, 4))
    logits, values = logits.astype(np.float32), values.astype(np.float32)
    actual = online_softmax(logits, values, block_size=64)
    expected = softmax_numpy(logits, values)
    chex.assert_trees_all_close(actual, expected, rtol=2e-5, atol=2e-6)


def state_of(logits, values):
    state = empty_state(logits.shape[:-1], values.shape[-1], jnp.float32)
    return absorb(state, logits, values)


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(data=st.data())
def test_any_split_in_any_order_gives_the_same(data):
    """The proof of the docstring: `merge` is associative and commutative."""
    seed = data.draw(st.integers(0, 2**16))
    rng = np.random.default_rng(seed)
    keys = data.draw(st.integers(1, 24))
    logits = np.float32(
        data.draw(st.sampled_from([1.0, 50.0])) * rng.normal(size=(2, keys))
    )
    hidden = rng.random((2, keys)) < data.draw(st.sampled_from([0.0, 0.5, 1.0]))
    logits = np.where(hidden, -np.inf, logits)
    values = np.float32(rng.normal(size=(keys, 3)))
    owner = np.array(
        data.draw(st.lists(st.integers(0, 3), min_size=keys, max_size=keys))
    )
    parts = [state_of(logits[:, owner == n], values[owner == n]) for n in range(4)]
    expected = softmax_numpy(logits, values)
    orders = [parts, parts[::-1], data.draw(st.permutations(parts))]
    for order in orders:
        chex.assert_trees_all_close(
            finish(functools.reduce(merge, order)), expected, rtol=1e-5, atol=1e-5
        )
    a, b, c, d = parts
    tree = finish(merge(merge(a, b), merge(c, d)))
    chex.assert_trees_all_close(tree, expected, rtol=1e-5, atol=1e-5)


def test_finished_parts_merge_too(rng):
    logits, values = rng.normal(size=(5, 20)), rng.normal(size=(20, 3))
    logits[0] = -np.inf
    logits[1, :10] = -np.inf
    logits, values = np.float32(logits), np.float32(values)
    parts = (
        online_softmax(logits[:, s], values[s]) for s in (slice(10), slice(10, 20))
    )
    merged = finish(merge(*(finished_state(*part) for part in parts)))
    chex.assert_trees_all_close(
        merged, softmax_numpy(logits, values), rtol=1e-5, atol=1e-5
    )


def test_gradients_are_those_of_the_softmax(rng):
    logits, values = (
        np.float32(rng.normal(size=(3, 11))),
        np.float32(rng.normal(size=(11, 2))),
    )
    logits[0] = -np.inf  # and nothing becomes NaN
    logits[1, 4] = -np.inf

    def read(f):
        def value(logits, values):
            out, lse = f(logits, values)
            return jnp.sum(jnp.sin(out)) + jnp.sum(jnp.where(lse > -jnp.inf, lse, 0))

        return jax.grad(value, argnums=(0, 1))

    def plain(logits, values):
        safe = logits[1:]
        out = jax.nn.softmax(safe) @ values
        return out, jax.nn.logsumexp(safe, axis=-1)

    actual = read(lambda x, v: online_softmax(x, v, block_size=4))(logits, values)
    chex.assert_trees_all_close(
        actual, read(plain)(logits, values), rtol=1e-4, atol=1e-5
    )


def test_half_precision_is_summed_in_float32():
    ones = jnp.ones((1, 4096), jnp.bfloat16)
    out, lse = online_softmax(ones, jnp.ones((4096, 1), jnp.bfloat16), block_size=1)
    assert out.dtype == lse.dtype == jnp.float32
    chex.assert_trees_all_close((out[0, 0], lse[0]), (1.0, 1 + np.log(4096)), rtol=1e-4)


def test_bad_input_is_refused():
    with pytest.raises((ValueError, TypeError), match=r"one number of keys|keys=3"):
        online_softmax(jnp.ones((2, 3)), jnp.ones((4, 1)))
    with pytest.raises(ValueError, match="block_size must be positive, got 0"):
        online_softmax(jnp.ones((2, 3)), jnp.ones((3, 1)), block_size=0)
