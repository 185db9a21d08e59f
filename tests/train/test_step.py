"""The gradient step against the same arithmetic in NumPy."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxml.parallel import data_mesh, data_parallel, pmean
from jaxml.train import gradient_step, init_state


def test_one_step_of_sgd_matches_numpy(method, batches):
    batch = next(iter(batches))
    state = init_state(method, optax.sgd(0.1), jax.random.key(0), batch)
    step = gradient_step(method, optax.sgd(0.1), jax.random.key(1))
    after, metrics = jax.jit(step)(state, batch)
    x, y = batch["x"].astype(np.float64), batch["y"].astype(np.float64)
    error = -y
    grad_w, grad_b = 2 * x.T @ error / len(y), 2 * error.mean()
    expected = {"w": np.float32(-0.1 * grad_w), "b": np.float32(-0.1 * grad_b)}
    chex.assert_trees_all_close(after.params, expected, rtol=1e-5)
    norm = np.sqrt((grad_w**2).sum() + grad_b**2)
    chex.assert_trees_all_close(metrics["grad_norm"], np.float32(norm), rtol=1e-5)
    chex.assert_trees_all_close(metrics["loss"], np.float32((y**2).mean()), rtol=1e-5)
    chex.assert_trees_all_close(
        after.model_state["mean"], np.float32(0.1 * x.mean(0)), rtol=1e-5
    )
    assert after.step == 1


def test_after_update_sees_the_new_params_and_the_step(method, batches):
    batch = next(iter(batches))

    def teach(params, model_state, step):
        return params, {**model_state, "teacher": params, "seen": step}

    taught = method._replace(after_update=teach)
    state = init_state(method, optax.sgd(0.1), jax.random.key(0), batch)
    step = jax.jit(gradient_step(taught, optax.sgd(0.1), jax.random.key(1)))
    after, _ = step(state, batch)
    chex.assert_trees_all_equal(after.model_state["teacher"], after.params)
    assert after.model_state["seen"] == 0
    assert jnp.any(after.params["w"] != state.params["w"])


def test_every_step_draws_another_key_and_the_same_one_again(method, batches):
    batch = next(iter(batches))

    def noisy(params, model_state, batch, key):
        value, (model_state, _) = method.loss(params, model_state, batch, key)
        return value, (model_state, {"draw": jax.random.uniform(key)})

    def draws():
        state = init_state(method, optax.sgd(0.1), jax.random.key(0), batch)
        step = gradient_step(method._replace(loss=noisy), optax.sgd(0.1), key)
        for _ in range(3):
            state, metrics = jax.jit(step)(state, batch)
            yield float(metrics["draw"])

    key = jax.random.key(1)
    first, second = list(draws()), list(draws())
    assert first == second
    assert len(set(first)) == 3


@pytest.mark.parametrize("devices", [2, 8])
def test_many_devices_take_the_same_step_as_one(method, batches, devices):
    """Sums for means would be off by the number of devices."""
    optimizer, key = optax.adam(0.1), jax.random.key(1)
    stream = iter(batches)
    one = init_state(method, optimizer, jax.random.key(0), next(stream))
    many = jax.tree.map(jnp.copy, one)
    step_one = jax.jit(gradient_step(method, optimizer, key))
    shared = method._replace(loss=lambda *a: mean_state(method, *a, axis_name="data"))
    step_many = data_parallel(
        gradient_step(shared, optimizer, key, "data"),
        data_mesh(jax.devices()[:devices]),
    )
    for _ in range(3):
        batch = next(stream)
        one, metrics_one = step_one(one, batch)
        many, metrics_many = step_many(many, batch)
    chex.assert_trees_all_close(
        jax.device_get((many, metrics_many)),
        jax.device_get((one, metrics_one)),
        rtol=1e-5,
        atol=1e-6,
    )


def mean_state(method, params, model_state, batch, key, axis_name=None):
    value, (model_state, metrics) = method.loss(params, model_state, batch, key)
    return value, (pmean(model_state, axis_name), metrics)


def test_a_step_is_compiled_once(method, batches):
    stream = iter(batches)
    state = init_state(method, optax.sgd(0.1), jax.random.key(0), next(stream))
    step = gradient_step(method, optax.sgd(0.1), jax.random.key(1))
    step = jax.jit(chex.assert_max_traces(step, n=1))
    for _ in range(3):
        state, _ = step(state, next(stream))
