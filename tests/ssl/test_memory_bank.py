"""The memory bank: what is written, duplicates, devices, micro-batches."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxml.ops import unit
from jaxml.parallel import data_mesh
from jaxml.ssl import changed_rows, init_bank, update_bank


def by_loop(bank, indices, rows, momentum):
    before, bank = bank, bank.copy()
    for i, row in zip(indices, rows, strict=True):
        if 0 <= i < len(bank):  # a duplicate overwrites: the last one stays
            mixed = momentum * before[i] + (1 - momentum) * row
            bank[i] = mixed / np.linalg.norm(mixed)
    return bank


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("devices", [1, 2, 8])
def test_matches_a_loop_on_any_number_of_devices(rng, momentum, devices):
    bank = np.asarray(init_bank(jax.random.key(0), 7, 3))
    indices = np.array([4, 0, 4, 6, 9, 4, 1, 0], np.int32)  # 9 is no sample
    rows = np.asarray(unit(np.float32(rng.normal(size=(8, 3)))))
    write = jax.shard_map(
        lambda *args: update_bank(*args, momentum, "data"),
        mesh=data_mesh(jax.devices()[:devices]),
        in_specs=(P(), P("data"), P("data")),
        out_specs=P(),
    )
    expected = by_loop(bank, indices, rows, momentum)
    actual = jax.device_get(jax.jit(write)(bank, indices, rows))
    chex.assert_trees_all_close(actual, expected, rtol=1e-6, atol=1e-7)
    chex.assert_trees_all_equal(actual[[2, 3, 5]], bank[[2, 3, 5]])


def test_a_negative_index_is_no_sample():
    bank = init_bank(jax.random.key(0), 4, 2)
    after = update_bank(bank, jnp.array([-1]), jnp.ones((1, 2)) / 2**0.5)
    chex.assert_trees_all_equal(after, bank)


def test_starts_with_unit_rows_and_gives_no_gradient():
    bank = init_bank(jax.random.key(0), 5, 3)
    chex.assert_trees_all_close(jnp.linalg.norm(bank, axis=1), jnp.ones(5), rtol=1e-6)
    grad = jax.grad(lambda r: jnp.sum(update_bank(bank, jnp.array([1]), r)))
    chex.assert_trees_all_equal(grad(jnp.ones((1, 3))), jnp.zeros((1, 3)))


def test_micro_batches_write_their_rows_once(rng):
    """Both start from the same bank; what each changes adds up."""
    bank = init_bank(jax.random.key(0), 6, 3)
    rows = unit(np.float32(rng.normal(size=(4, 3))))
    indices = jnp.array([5, 2, 0, 3])
    halves = [update_bank(bank, indices[i::2], rows[i::2]) for i in (0, 1)]
    parts = jnp.stack([changed_rows.take(bank, half, 2) for half in halves])
    chex.assert_trees_all_close(
        changed_rows.give(bank, parts), update_bank(bank, indices, rows), atol=1e-6
    )


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda bank: init_bank(jax.random.key(0), 3, 0), "must be positive"),
        (
            lambda bank: update_bank(bank, jnp.array([0]), bank[:2]),
            "one for each|batch",
        ),
        (
            lambda bank: update_bank(bank, jnp.array([0]), bank[:1], 1.5),
            r"in \[0, 1\]",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(jnp.ones((4, 2)))
