"""Trials that every method of this family must stand."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxml.method import Batch, Method
from jaxml.parallel import data_mesh, data_parallel
from jaxml.precision import mixed_precision, policy
from jaxml.train import TrainState, gradient_step, init_state


def bright_squares(rng, size=8, side=16, channels=1) -> Batch:
    """Images with a bright rectangle in noise, and where it lies."""
    label = np.zeros((size, side, side), np.int32)
    for one in label:
        top, left = rng.integers(1, side // 2, 2)
        one[top : top + side // 2, left : left + side // 2] = 1
    noise = 0.3 * rng.uniform(size=(size, side, side, channels))
    return {"image": np.float32(0.2 + 0.5 * label[..., None] + noise), "label": label}


def check_devices(
    build: Callable[[str | None], Method],
    batch: Batch,
    devices: int = 8,
    num_steps: int = 2,
) -> None:
    """Asserts that several devices take the same steps as one, metrics and all."""
    optimizer, key = optax.sgd(0.1, 0.9), jax.random.key(1)
    one = init_state(build(None), optimizer, jax.random.key(0), batch)
    many = jax.tree.map(jnp.copy, one)
    step_one = jax.jit(gradient_step(build(None), optimizer, key))
    step_many = data_parallel(
        gradient_step(build("data"), optimizer, key, "data"),
        data_mesh(jax.devices()[:devices]),
    )
    for _ in range(num_steps):
        one, metrics_one = step_one(one, batch)
        many, metrics_many = step_many(many, batch)
    chex.assert_trees_all_close(
        jax.device_get((many, metrics_many)),
        jax.device_get((one, metrics_one)),
        rtol=1e-4,
        atol=1e-5,
    )


def check_learns(
    method: Method,
    batch: Batch,
    num_steps: int,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, dict[str, float]]:
    """Trains on one batch; all stays finite and every parameter moves."""
    start = state = init_state(method, optimizer, jax.random.key(0), batch)
    step = jax.jit(gradient_step(method, optimizer, jax.random.key(1)))
    for _ in range(num_steps):
        state, metrics = step(state, batch)
    chex.assert_tree_all_finite((state, metrics))
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), start.params, state.params)
    assert all(jax.tree.leaves(moved)), moved
    return state, {k: float(v) for k, v in metrics.items() if v.ndim == 0}


def check_bfloat16(method: Method, batch: Batch, rtol: float = 0.05) -> None:
    """Asserts that a step in bfloat16 has about the loss of one in float32."""
    params, state = jax.jit(method.init)(jax.random.key(0), batch)
    key, half = jax.random.key(1), mixed_precision(method, policy("mixed_bfloat16"))
    wide, _ = jax.jit(method.loss)(params, state, batch, key)
    loss = jax.jit(jax.value_and_grad(half.loss, has_aux=True))
    (value, (_, metrics)), grads = loss(params, state, batch, key)
    chex.assert_tree_all_finite((grads, metrics))
    chex.assert_trees_all_close(value, wide, rtol=rtol)
