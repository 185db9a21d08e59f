"""Trials that every loss of label maps must stand."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from jaxml.parallel import data_mesh


def case(rng, batch=3, space=(3, 5), classes=4):
    """Logits in float64, labels some of which are to be ignored, and a mask."""
    logits = 2 * rng.normal(size=(batch, *space, classes))
    labels = rng.integers(0, classes, (batch, *space))
    labels[rng.random(labels.shape) < 0.2] = 255
    return logits, labels, rng.random(labels.shape) < 0.8


def check_devices(loss, *arrays, devices=8):
    """Value and gradient of `loss(axis_name, *arrays)` over devices are those of one.

    The gradient is that of the mean over the devices, as in a training step.
    """

    def mean(*arrays):
        return jax.lax.pmean(loss("data", *arrays), "data")

    parts = (P("data"),) * len(arrays)
    sharded = jax.shard_map(
        mean, mesh=data_mesh(jax.devices()[:devices]), in_specs=parts, out_specs=P()
    )
    arrays = tuple(map(jnp.asarray, arrays))
    one = jax.jit(jax.value_and_grad(lambda *a: loss(None, *a)))
    many = jax.jit(jax.value_and_grad(sharded))
    chex.assert_trees_all_close(many(*arrays), one(*arrays), rtol=1e-5, atol=1e-7)


def check_padding(loss, logits, labels):
    """What is ignored or masked may hold anything, and changes nothing.

    `loss(logits, labels, mask)`; the last image is masked as a whole.
    """
    loss = jax.jit(loss)
    mask = np.ones(labels.shape, bool)
    mask[-1] = False
    few = loss(np.float32(logits[:-1]), labels[:-1], mask[:-1])
    wild, wrong = np.float32(logits), labels.copy()
    wild[-1], wrong[-1] = np.nan, 77
    value, grads = jax.jit(jax.value_and_grad(loss))(wild, wrong, mask)
    np.testing.assert_allclose(value, few, rtol=1e-6)
    chex.assert_tree_all_finite(grads)
    np.testing.assert_array_equal(grads[-1], 0)
    np.testing.assert_array_equal(
        loss(np.float32(logits), labels, mask[:, 0, 0]),
        loss(np.float32(logits), labels, mask),
    )
    # Nothing counts at all.
    none = np.zeros_like(mask)
    value, grads = jax.jit(jax.value_and_grad(loss))(wild, wrong, none)
    assert value == 0
    np.testing.assert_array_equal(grads, 0)


def check_half_precision(loss, logits, labels):
    """bfloat16 logits are measured in float32."""
    loss, half = jax.jit(loss), jnp.asarray(logits, jnp.bfloat16)
    value = loss(half, labels)
    assert value.dtype == jnp.float32
    chex.assert_trees_all_equal(value, loss(half.astype(jnp.float32), labels))
    assert jax.eval_shape(jax.grad(loss), half, labels).dtype == jnp.bfloat16
