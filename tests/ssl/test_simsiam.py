"""SimSiam against NumPy, and the properties its paper rests on."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxml.nn.functional import apply_module
from jaxml.parallel import data_mesh, data_parallel
from jaxml.ssl import (
    SimSiam,
    constant_predictor_rate,
    negative_cosine,
    simsiam,
    simsiam_optimizer,
)
from jaxml.train import gradient_step, init_state
from tests.numerical import close, gradients


class TinyBackbone(nn.Module):
    @nn.compact
    def __call__(self, images, *, train):
        return nn.Dense(8)(images.reshape(images.shape[0], -1))


def negative_cosine_numpy(p, z):
    """Equation 1, row by row in float64."""
    rows = [
        -np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b))
        for a, b in zip(p, z, strict=True)
    ]
    return np.mean(rows)


@pytest.mark.parametrize("batch, dim", [(1, 1), (3, 5), (16, 128)])
def test_negative_cosine_matches_numpy(rng, batch, dim):
    for scale in (1e-3, 1.0, 1e3):
        p, z = scale * rng.normal(size=(2, batch, dim))
        close(
            jax.jit(negative_cosine)(np.float32(p), np.float32(z)),
            negative_cosine_numpy(p, z),
        )


def test_negative_cosine_gives_the_target_no_gradient(rng):
    p, z = jnp.asarray(rng.normal(size=(2, 4, 6)), jnp.float32)
    grad_p, grad_z = jax.grad(negative_cosine, argnums=(0, 1))(p, z)
    chex.assert_trees_all_equal(grad_z, jnp.zeros_like(grad_z))
    z64 = np.float64(z)
    (expected,) = gradients(lambda p: negative_cosine_numpy(p, z64), p)
    close(grad_p, expected, rtol=1e-5, atol=1e-5)


def test_negative_cosine_is_finite_at_zero():
    value, grad = jax.value_and_grad(negative_cosine)(
        jnp.zeros((2, 3)), jnp.ones((2, 3))
    )
    chex.assert_tree_all_finite((value, grad))


def test_negative_cosine_rejects_shapes_that_would_broadcast():
    with pytest.raises((ValueError, TypeError), match=r"shape|dim"):
        negative_cosine(jnp.ones((4, 6)), jnp.ones((1, 6)))


def build(axis_name=None):
    return simsiam(SimSiam(TinyBackbone(), dim=16, bottleneck=16, axis_name=axis_name))


def make_batch(rng, size=16):
    images = rng.normal(size=(size, 4, 4, 3))
    view1, view2 = images + 0.1 * rng.normal(size=(2, *images.shape))
    return {"view1": view1.astype(np.float32), "view2": view2.astype(np.float32)}


def test_loss_crosses_the_views(rng):
    model = SimSiam(TinyBackbone(), dim=16, bottleneck=8)
    method, batch = simsiam(model), make_batch(rng)
    params, state = method.init(jax.random.key(0), batch)
    (_, z1, p1), _ = apply_module(model, params, state, batch["view1"], train=True)
    (_, z2, p2), _ = apply_module(model, params, state, batch["view2"], train=True)
    expected = (negative_cosine_numpy(p1, z2) + negative_cosine_numpy(p2, z1)) / 2
    actual, _ = method.loss(params, state, batch, jax.random.key(1))
    chex.assert_trees_all_close(actual, np.float32(expected), rtol=1e-4, atol=1e-5)


def test_heads_are_those_of_the_paper(rng):
    """Section 3: three projector layers, the last without affine; bottleneck predictor."""
    model = SimSiam(TinyBackbone(), dim=16, bottleneck=4)
    params, _ = simsiam(model).init(jax.random.key(0), make_batch(rng))
    shapes = jax.tree.map(jnp.shape, params)
    dense = {k: v for k, v in shapes["projector"].items() if k.startswith("Dense")}
    assert [v["kernel"] for v in dense.values()] == [(8, 16), (16, 16), (16, 16)]
    assert all("bias" not in v for v in dense.values())
    assert "BatchNorm_2" not in shapes["projector"]  # no scale, no bias: no parameters
    assert shapes["predictor"]["Dense_0"] == {"kernel": (16, 4)}
    assert shapes["predictor"]["Dense_1"] == {"kernel": (4, 16), "bias": (16,)}


def test_step_lowers_the_loss_and_touches_every_parameter(rng):
    method, optimizer = build(), optax.sgd(0.1)
    batch = make_batch(rng)
    state = init_state(method, optimizer, jax.random.key(0), batch)
    start, step = (
        state.params,
        jax.jit(gradient_step(method, optimizer, jax.random.key(1))),
    )
    for _ in range(50):
        state, metrics = step(state, batch)
    chex.assert_tree_all_finite(state)
    assert metrics["loss"] < -0.8
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), start, state.params)
    assert all(jax.tree.leaves(moved)), moved


@pytest.mark.parametrize("devices", [2, 8])
def test_many_devices_take_the_same_steps_as_one(rng, devices):
    batch, optimizer, key = make_batch(rng), optax.sgd(0.1, 0.9), jax.random.key(1)
    one = init_state(build(), optimizer, jax.random.key(0), batch)
    many = jax.tree.map(jnp.copy, one)
    step_one = jax.jit(gradient_step(build(), optimizer, key))
    step_many = data_parallel(
        gradient_step(build("data"), optimizer, key, "data"),
        data_mesh(jax.devices()[:devices]),
    )
    for _ in range(3):
        one, metrics_one = step_one(one, batch)
        many, metrics_many = step_many(many, batch)
    chex.assert_trees_all_close(
        jax.device_get((many, metrics_many)),
        jax.device_get((one, metrics_one)),
        rtol=1e-4,
        atol=1e-5,
    )


def test_the_predictor_can_keep_its_rate(rng):
    """Section 4.2: the predictor's rate stays while the encoder's decays to nothing."""
    method, batch = build(), make_batch(rng)
    optimizer = constant_predictor_rate(optax.sgd(0.0), optax.sgd(0.1))
    state = init_state(method, optimizer, jax.random.key(0), batch)
    after, _ = jax.jit(gradient_step(method, optimizer, jax.random.key(1)))(
        state, batch
    )
    for name, part in state.params.items():
        same = jax.tree.map(lambda a, b: bool((a == b).all()), part, after.params[name])
        assert all(jax.tree.leaves(same)) == (name != "predictor"), name


def test_the_optimizer_has_the_rates_of_the_paper():
    """A constant gradient: steps of 0.05 B / 256, on a cosine but for the predictor."""
    params = {name: jnp.full(2, 3.0) for name in ("backbone", "projector", "predictor")}
    grads = jax.tree.map(jnp.ones_like, params)
    optimizer = simsiam_optimizer(512, 8, momentum=0.0)
    state = optimizer.init(params)
    for k in range(10):
        updates, state = optimizer.update(grads, state, params)
        decayed = 1 + 1e-4 * 3
        fall = (np.cos(np.pi * min(k, 8) / 8) + 1) / 2
        close(updates["predictor"], np.full(2, -0.1 * decayed))
        for name in ("backbone", "projector"):
            close(updates[name], np.full(2, -0.1 * fall * decayed))
    with pytest.raises(ValueError, match="must be at least 1"):
        simsiam_optimizer(0, 8)
