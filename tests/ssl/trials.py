"""Trials that every method of this family must stand."""

from collections.abc import Callable

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxml.method import Batch, Method
from jaxml.parallel import data_mesh, data_parallel
from jaxml.precision import mixed_precision, policy
from jaxml.train import TrainState, gradient_step, init_state


class TinyBackbone(nn.Module):
    """One dense layer."""

    width: int = 8

    @nn.compact
    def __call__(self, images, *, train):
        return nn.Dense(self.width)(images.reshape(len(images), -1))


def two_views(rng, size=8, shape=(6, 6, 1)) -> Batch:
    """Images, and two noisy views of each."""
    image, *noise = rng.uniform(size=(3, size, *shape)).astype(np.float32)
    view1, view2 = (np.float32(0.8 * image + 0.2 * extra) for extra in noise)
    return {"image": image, "view1": view1, "view2": view2}


def check_devices(
    build: Callable[[str | None], Method],
    batch: Batch,
    devices: int,
    num_steps: int = 3,
    rtol: float = 1e-4,
    atol: float = 1e-5,
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
        rtol=rtol,
        atol=atol,
    )


def train(
    method: Method,
    batches: Callable[[int], Batch] | Batch,
    num_steps: int,
    optimizer: optax.GradientTransformation | None = None,
) -> tuple[TrainState, TrainState, list[dict[str, float]]]:
    """The states before and after, and the metrics of every step."""
    optimizer = optimizer or optax.adam(1e-2)
    draw = batches if callable(batches) else lambda _: batches
    start = state = init_state(method, optimizer, jax.random.key(0), draw(0))
    step = jax.jit(gradient_step(method, optimizer, jax.random.key(1)))
    history = []
    for i in range(num_steps):
        state, metrics = step(state, draw(i))
        history.append({k: float(v) for k, v in metrics.items() if v.ndim == 0})
    chex.assert_tree_all_finite(state)
    return start, state, history


def check_all_moved(before: TrainState, after: TrainState) -> None:
    """Asserts that training touched every parameter."""
    moved = jax.tree.map(
        lambda a, b: bool(jnp.any(a != b)), before.params, after.params
    )
    assert all(jax.tree.leaves(moved)), moved


def check_bfloat16(method: Method, batch: Batch, rtol: float = 0.05) -> None:
    """Asserts that a step in bfloat16 has about the loss of one in float32."""
    params, state = jax.jit(method.init)(jax.random.key(0), batch)
    key, half = jax.random.key(1), mixed_precision(method, policy("mixed_bfloat16"))
    wide, _ = jax.jit(method.loss)(params, state, batch, key)
    loss = jax.jit(jax.value_and_grad(half.loss, has_aux=True))
    (value, (_, metrics)), grads = loss(params, state, batch, key)
    chex.assert_tree_all_finite((grads, metrics))
    chex.assert_trees_all_close(value, wide, rtol=rtol)
