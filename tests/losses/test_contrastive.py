"""NT-Xent against NumPy, its properties, and eight devices against one."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from jaxml.losses import nt_xent, nt_xent_logits, nt_xent_rows
from jaxml.parallel import data_mesh, pmean
from tests.numerical import close, gradients


def nt_xent_numpy(z1, z2, temperature):
    """Equation 1 of SimCLR, pair by pair in float64."""
    z = np.concatenate([z1, z2])
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    count = len(z)
    losses = []
    for i in range(count):
        j = (i + count // 2) % count
        others = [np.exp(z[i] @ z[k] / temperature) for k in range(count) if k != i]
        losses.append(-np.log(np.exp(z[i] @ z[j] / temperature) / np.sum(others)))
    return np.mean(losses)


@pytest.mark.parametrize("batch, dim", [(1, 3), (5, 1), (7, 16), (33, 8)])
@pytest.mark.parametrize("temperature", [0.05, 0.5, 2.0])
def test_matches_numpy(rng, batch, dim, temperature):
    z1, z2 = rng.normal(size=(2, batch, dim))
    actual = nt_xent(z1.astype(np.float32), z2.astype(np.float32), temperature)
    close(actual, nt_xent_numpy(z1, z2, temperature), scale=1 / temperature)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_ignores_the_length_and_the_order_of_the_views(rng, scale):
    z1, z2 = rng.normal(size=(2, 6, 5)).astype(np.float32)
    expected = nt_xent(z1, z2, 0.2)
    chex.assert_trees_all_close(nt_xent(scale * z1, z2, 0.2), expected, rtol=1e-5)
    chex.assert_trees_all_close(nt_xent(z2, z1, 0.2), expected, rtol=1e-5)


def test_a_collapsed_batch_costs_the_log_of_the_others():
    z = jnp.ones((8, 4))
    chex.assert_trees_all_close(nt_xent(z, z, 0.1), jnp.log(15.0), rtol=1e-6)


def test_a_view_never_meets_itself_and_is_paired_with_its_partner(rng):
    z1, z2 = rng.normal(size=(2, 3, 4)).astype(np.float32)
    logits, partners = nt_xent_logits(z1, z2, 1.0)
    assert np.isneginf(np.diag(logits)).all()
    assert np.isneginf(logits).sum() == 6
    assert partners.tolist() == [3, 4, 5, 0, 1, 2]


def test_rows_are_those_of_the_stored_logits(rng):
    z1, noise = rng.normal(size=(2, 9, 4)).astype(np.float32)
    z2 = z1 + noise
    losses, found, hardest = nt_xent_rows(z1, z2, 0.2, chunk=4)
    logits, partners = nt_xent_logits(z1, z2, 0.2)
    stored = optax.softmax_cross_entropy_with_integer_labels(logits, partners)
    chex.assert_trees_all_close(losses, stored, rtol=1e-5, atol=1e-5)
    assert (found == (jnp.argmax(logits, axis=1) == partners)).all()
    assert found.any()
    assert not found.all()
    negatives = logits.at[jnp.arange(18), partners].set(-jnp.inf)
    share = jnp.max(jax.nn.softmax(negatives, axis=1), axis=1)
    chex.assert_trees_all_close(hardest, share, rtol=1e-5)
    same = jnp.ones((8, 4))
    assert not nt_xent_rows(same, same, 0.2).found.any()
    chex.assert_trees_all_close(
        nt_xent_rows(same, same, 0.2).hardest, jnp.full(16, 1 / 14), rtol=1e-5
    )
    assert (nt_xent_rows(same[:1], same[:1], 0.2).hardest == 0).all()  # no negative


def test_thirty_thousand_pairs_fit_into_a_third_of_a_gibibyte():
    """Where the similarities alone would take 16."""
    shape = jax.ShapeDtypeStruct((32768, 512), jnp.float32)
    loss = jax.value_and_grad(partial(nt_xent, temperature=0.1), (0, 1))
    memory = jax.jit(loss).lower(shape, shape).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.35 * 2**30


def test_gradients_are_numerical_and_finite_at_zero(rng):
    views = rng.normal(size=(2, 4, 3))
    expected = gradients(lambda a, b: nt_xent_numpy(a, b, 0.5), *views)
    z1, z2 = views.astype(np.float32)
    for chunk in (3, 1024):
        grads = jax.grad(partial(nt_xent, chunk=chunk), (0, 1))(z1, z2, 0.5)
        for got, wanted in zip(grads, expected, strict=True):
            close(got, wanted, rtol=1e-5, atol=1e-5)
    zero = jnp.zeros((4, 3))
    chex.assert_tree_all_finite(jax.grad(nt_xent)(zero, z2, 0.5))


def test_half_precision_inputs_are_scored_in_float32(rng):
    z1, z2 = rng.normal(size=(2, 16, 32)).astype(np.float32)
    halves = [jnp.asarray(z, jnp.bfloat16) for z in (z1, z2)]
    loss = nt_xent(*halves, 0.1)
    assert loss.dtype == jnp.float32
    chex.assert_trees_all_close(loss, nt_xent(z1, z2, 0.1), rtol=2e-2)


@pytest.mark.parametrize("devices", [2, 8])
def test_many_devices_equal_one_in_value_and_gradient(rng, devices):
    z1, z2 = rng.normal(size=(2, 16, 8)).astype(np.float32)
    mesh = data_mesh(jax.devices()[:devices])

    def global_loss(z1, z2):
        return jax.shard_map(
            lambda a, b: pmean(nt_xent(a, b, 0.2, "data"), "data"),
            mesh=mesh,
            in_specs=(P("data"), P("data")),
            out_specs=P(),
        )(z1, z2)

    one = jax.value_and_grad(nt_xent, argnums=(0, 1))(z1, z2, 0.2)
    many = jax.jit(jax.value_and_grad(global_loss, argnums=(0, 1)))(z1, z2)
    chex.assert_trees_all_close(
        jax.device_get(many), jax.device_get(one), rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize(
    "z1, z2, temperature, message",
    [
        (np.ones((4, 6)), np.ones((1, 6)), 0.1, "shape|dim"),
        (np.ones((0, 6)), np.ones((0, 6)), 0.1, "at least one pair"),
        (np.ones((4, 6)), np.ones((4, 6)), 0.0, "temperature must be positive"),
        (np.ones((4, 6)), np.ones((4, 6)), float("nan"), "must be positive"),
    ],
)
def test_bad_input_is_refused(z1, z2, temperature, message):
    with pytest.raises((ValueError, TypeError), match=message):
        nt_xent(z1.astype(np.float32), z2.astype(np.float32), temperature)
