"""The first state: what it holds, and that it depends on key and shapes alone."""

import chex
import jax
import jax.numpy as jnp
import optax

from jaxml.train import TrainState, init_state


def test_it_holds_arrays_only(method, batches):
    batch = next(iter(batches))
    state = init_state(method, optax.adam(0.1), jax.random.key(0), batch)
    assert isinstance(state, TrainState)
    assert state.step.dtype == jnp.int32
    assert state.step == 0
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    chex.assert_trees_all_equal_shapes(state.opt_state[0].mu, state.params)


def test_values_of_the_batch_do_not_matter(method, batches):
    stream = iter(batches)
    first, second = (
        init_state(method, optax.adam(0.1), jax.random.key(0), next(stream))
        for _ in range(2)
    )
    chex.assert_trees_all_equal(first, second)


def test_no_two_leaves_share_a_buffer(method, batches):
    """A donated state must not hold an array twice."""
    batch = next(iter(batches))
    state = init_state(method, optax.adam(0.1), jax.random.key(0), batch)
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
    assert len(set(pointers)) == len(pointers)
