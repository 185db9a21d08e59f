"""The queue: order, odd sizes, devices, and one enqueue per optimizer step."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxml.parallel import data_mesh
from jaxml.ssl import enqueue, init_queue


@pytest.mark.parametrize("size", [1, 5, 6, 13])
def test_batches_of_any_size_lose_only_the_oldest(size):
    """Against a list: newest first, cut at the end."""
    queue, expected = jnp.full((size, 1), -1.0), [-1.0] * size
    made = 0
    for batch in (4, 1, 7, 3):
        rows = np.arange(made, made + batch, dtype=np.float32)
        made += batch
        queue = enqueue(queue, rows[:, None])
        expected = ([*rows, *expected])[:size]
        assert queue[:, 0].tolist() == expected


def test_all_devices_enqueue_the_global_batch_in_order(rng):
    queue, rows = jnp.zeros((11, 2)), np.float32(rng.normal(size=(8, 2)))
    sharded = jax.shard_map(
        lambda queue, rows: enqueue(queue, rows, "data"),
        mesh=data_mesh(jax.devices()[:4]),
        in_specs=(P(), P("data")),
        out_specs=P(),
    )
    actual = jax.device_get(sharded(queue, rows))
    chex.assert_trees_all_equal(actual, jax.device_get(enqueue(queue, rows)))


def test_starts_with_unit_rows_and_gives_no_gradient():
    queue = init_queue(jax.random.key(0), 7, 3)
    chex.assert_shape(queue, (7, 3))
    chex.assert_trees_all_close(jnp.linalg.norm(queue, axis=1), jnp.ones(7), rtol=1e-6)
    grad = jax.grad(lambda rows: jnp.sum(enqueue(queue, rows)))(jnp.ones((2, 3)))
    chex.assert_trees_all_equal(grad, jnp.zeros_like(grad))


def test_rows_of_several_vectors_and_of_less_precision():
    queue = jnp.zeros((3, 2, 4))
    after = enqueue(queue, jnp.ones((2, 2, 4), jnp.bfloat16))
    assert after.dtype == queue.dtype
    assert after[:, 0, 0].tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: init_queue(jax.random.key(0), 0, 3), "must be positive"),
        (lambda: enqueue(jnp.zeros((3, 2)), jnp.zeros((1, 3))), "shape of the|rest"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
