"""Linen modules as pure functions."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxml.nn import BatchNorm, apply_module, init_module


class Scaled(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(3)(BatchNorm()(x, train=train))


def test_state_changes_in_training_only(rng):
    x = jnp.asarray(rng.normal(size=(8, 2)), jnp.float32)
    params, state = init_module(Scaled(), jax.random.key(0), x, train=True)
    assert params.keys() == {"Dense_0", "BatchNorm_0"}
    assert state.keys() == {"batch_stats"}
    _, same = apply_module(Scaled(), params, state, x, train=False)
    chex.assert_trees_all_equal(same, state)
    y, after = apply_module(Scaled(), params, state, x, train=True)
    chex.assert_shape(y, (8, 3))
    chex.assert_trees_all_equal_structs(after, state)
    mean = after["batch_stats"]["BatchNorm_0"]["mean"]
    chex.assert_trees_all_close(mean, 0.1 * x.mean(0), rtol=1e-5)


class Plain(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return x + self.param("b", nn.initializers.ones, ())


def test_modules_without_state_have_none():
    params, state = init_module(Plain(), jax.random.key(0), jnp.zeros(2), train=True)
    assert state == {}
    y, state = apply_module(Plain(), params, state, jnp.zeros(2), train=True)
    assert y.tolist() == [1, 1]
    assert state == {}
