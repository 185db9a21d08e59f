"""Dropout: its rate, its mean, and masks that follow the sample."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxml.nn.dropout import SELU_LIMIT, AlphaDropout, Dropout
from jaxml.parallel.mesh import data_mesh


def drop(x, rate, *, key=0, train=True, **options):
    rngs = {"dropout": jax.random.key(key)}
    return Dropout(rate, **options).apply({}, x, train=train, rngs=rngs)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("per_sample", [False, True])
def test_keeps_the_share_and_the_mean(rate, per_sample):
    y = drop(jnp.ones((4000, 3, 2)), rate, per_sample=per_sample)
    kept = np.asarray(y) != 0
    chex.assert_trees_all_close(y, kept / np.float32(1 - rate), rtol=1e-6)
    share = kept[:, 0, 0] if per_sample else kept
    assert abs(share.mean() - (1 - rate)) < 4 * np.sqrt(rate * (1 - rate) / share.size)
    if per_sample:
        chex.assert_trees_all_equal(kept, np.broadcast_to(kept[:, :1, :1], kept.shape))
    else:
        assert (kept[:, 0, 0] != kept[:, 0, 1]).any()
        assert (kept[:, 0, 0] != kept[:, 1, 0]).any()


def test_does_nothing_in_evaluation_and_at_rate_zero():
    x = jnp.arange(6.0).reshape(3, 2)
    chex.assert_trees_all_equal(drop(x, 0.5, train=False), x)
    chex.assert_trees_all_equal(Dropout(0.0).apply({}, x, train=True), x)


def test_each_call_and_key_draws_anew():
    x = jnp.ones((8, 16))
    assert jnp.any(drop(x, 0.5) != drop(x, 0.5, key=1))
    chex.assert_trees_all_equal(drop(x, 0.5), drop(x, 0.5))


@pytest.mark.parametrize("per_sample", [False, True])
def test_masks_follow_the_sample_over_eight_devices(per_sample):
    x = jnp.ones((32, 5))
    many = jax.shard_map(
        lambda x: drop(x, 0.5, per_sample=per_sample, axis_name="data"),
        mesh=data_mesh(),
        in_specs=P("data"),
        out_specs=P("data"),
    )
    expected = drop(x, 0.5, per_sample=per_sample)
    chex.assert_trees_all_equal(jax.jit(many)(x), expected)
    assert jnp.any(expected[:4] != expected[4:8])  # two devices' masks differ


def test_keeps_bfloat16():
    assert drop(jnp.ones((4, 4), jnp.bfloat16), 0.5).dtype == jnp.bfloat16


def test_gradient_is_the_mask():
    x = jnp.ones((6, 7))
    grad = jax.grad(lambda x: jnp.sum(drop(x, 0.3)))(x)
    chex.assert_trees_all_close(grad, drop(x, 0.3), rtol=1e-6)


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_rejects_a_rate_outside(rate):
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        drop(jnp.ones((2, 2)), rate)


@pytest.mark.parametrize("rate", [0.05, 0.3])
def test_alpha_dropout_keeps_mean_and_variance(rate, rng):
    x = jnp.asarray(rng.normal(size=(4000, 20)), jnp.float32)
    rngs = {"dropout": jax.random.key(1)}
    y = AlphaDropout(rate).apply({}, x, train=True, rngs=rngs)
    np.testing.assert_allclose(y.mean(), x.mean(), atol=0.02)
    np.testing.assert_allclose(y.var(), 1, atol=0.03)
    values, counts = np.unique(np.asarray(y), return_counts=True)
    lost = counts.max() / y.size  # all that are lost have one value
    assert abs(lost - rate) < 4 * np.sqrt(rate * (1 - rate) / y.size)
    scale = (1 - rate + SELU_LIMIT**2 * rate * (1 - rate)) ** -0.5
    limit = scale * SELU_LIMIT * (1 - rate)
    np.testing.assert_allclose(values[counts.argmax()], limit, rtol=1e-5)
    np.testing.assert_allclose(jax.nn.selu(jnp.float32(-50)), SELU_LIMIT, rtol=1e-6)
    assert AlphaDropout(rate).apply({}, x, train=False) is x
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\), got 1"):
        AlphaDropout(1.0).apply({}, x, train=True, rngs=rngs)


def test_a_deep_network_of_selu_stays_normal(rng):
    """Fifty layers with LeCun's initialisation and alpha dropout: mean 0, variance 1."""
    x = jnp.asarray(rng.normal(size=(256, 256)), jnp.float32)
    for i in range(50):
        keys = jax.random.split(jax.random.key(i), 2)
        x = jax.nn.selu(x @ jax.nn.initializers.lecun_normal()(keys[0], (256, 256)))
        rngs = {"dropout": keys[1]}
        x = AlphaDropout(0.05).apply({}, x, train=True, rngs=rngs)
    assert abs(x.mean()) < 0.2
    assert 0.7 < x.var() < 1.4
