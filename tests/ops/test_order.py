"""Orders against NumPy's stable sort."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxml.ops.order import descending_order, masked_top_k, stable_order

descend = jax.jit(descending_order)


def descending_numpy(scores):
    key = np.where(np.isnan(scores), np.inf, -np.float64(scores))
    # NaN after -inf.
    return np.lexsort((np.arange(len(scores)), np.isnan(scores), key))


@settings(deadline=None)
@given(hnp.arrays(np.float32, 40, elements=st.floats(width=32, allow_subnormal=False)))
def test_any_floats(scores):
    np.testing.assert_array_equal(descend(scores), descending_numpy(scores))


def test_ties_keep_their_order_at_every_size(rng):
    for n in (0, 1, 1000, 65536, 65537):
        scores = np.float32(rng.integers(-3, 3, n)) / 2
        scores[: n // 3] *= -1  # with -0
        np.testing.assert_array_equal(descend(scores), descending_numpy(scores))


def test_both_halves_of_a_key_count(rng):
    keys = rng.integers(0, 2**32, 5000, dtype=np.uint32)
    keys[::3] = keys[::3] & 0xFFFF0003 | 7
    expected = np.argsort(keys, kind="stable")
    np.testing.assert_array_equal(stable_order(jnp.asarray(keys)), expected)


def test_batches_and_half_precision(rng):
    scores = jnp.asarray(rng.normal(size=(3, 50)), jnp.bfloat16)
    expected = [descending_numpy(np.float32(row)) for row in scores]
    np.testing.assert_array_equal(descend(scores), expected)
    np.testing.assert_array_equal(jax.vmap(descending_order)(scores), expected)


@pytest.mark.parametrize("k", [0, 3, 7, 12])
def test_masked_top_k(rng, k):
    scores = np.float32(rng.integers(0, 4, (20, 7)))
    scores[3, 2], scores[4, :3] = np.nan, -np.inf
    mask = rng.random((20, 7)) < rng.random((20, 1))
    indices, valid = jax.jit(masked_top_k, static_argnums=2)(scores, mask, k)
    for row in range(20):
        order = descending_numpy(scores[row])
        kept = [i for i in order if mask[row, i] and not np.isnan(scores[row, i])][:k]
        assert indices[row].tolist() == kept + [7] * (k - len(kept))
        assert valid[row].tolist() == [True] * len(kept) + [False] * (k - len(kept))


def test_the_index_of_nothing_is_dropped_and_does_not_wrap():
    mask = jnp.array([True, False, False])
    indices, valid = masked_top_k(jnp.arange(3.0), mask, 2)
    assert valid.tolist() == [True, False]
    hit = jnp.zeros(3).at[indices].set(1)
    assert hit.tolist() == [1, 0, 0]
    read = jnp.arange(5.0, 8.0).at[indices].get(mode="fill", fill_value=-1)
    assert read.tolist() == [5, -1]


def test_bad_k():
    with pytest.raises(ValueError, match="k must not be negative, got -1"):
        masked_top_k(jnp.zeros(3), jnp.ones(3, bool), -1)


def test_it_has_no_gradient():
    f = lambda x: jnp.sum(x[descending_order(x)] * jnp.arange(3.0))
    chex.assert_trees_all_equal(
        jax.grad(f)(jnp.array([1.0, 3, 2])), jnp.array([2.0, 0, 1])
    )
