"""SimCLR: the step from views to NT-Xent, and eight devices against one."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxml.compose import augmented
from jaxml.losses import nt_xent
from jaxml.nn.convnet import ConvNet
from jaxml.nn.functional import apply_module
from jaxml.parallel import data_mesh, data_parallel
from jaxml.ssl import SimCLR, simclr
from jaxml.train import gradient_step, init_state


class TinyBackbone(nn.Module):
    @nn.compact
    def __call__(self, images, *, train):
        return nn.Dense(8)(images.reshape(images.shape[0], -1))


def noisy_views(key, image):
    noise1, noise2 = 0.1 * jax.random.normal(key, (2, *image.shape))
    return {"view1": image + noise1, "view2": image + noise2}


def make_batch(rng, size=16):
    return {"image": rng.uniform(size=(size, 6, 6, 1)).astype(np.float32)}


def make_views(rng, size=8):
    view1, view2 = rng.uniform(size=(2, size, 6, 6, 1)).astype(np.float32)
    return {"view1": view1, "view2": view2}


def test_loss_is_nt_xent_of_the_projections(rng):
    model = SimCLR(TinyBackbone(), widths=(8, 4))
    method, batch = simclr(model, temperature=0.3), make_views(rng)
    params, state = method.init(jax.random.key(0), batch)
    views = np.concatenate([batch["view1"], batch["view2"]])
    (_, z), _ = apply_module(model, params, state, views, train=True)
    actual, (_, metrics) = method.loss(params, state, batch, jax.random.key(1))
    chex.assert_trees_all_close(actual, nt_xent(z[:8], z[8:], 0.3), rtol=1e-6)
    chex.assert_trees_all_close(actual, metrics["loss"])


def test_accuracy_counts_the_partners_found(rng):
    model = SimCLR(TinyBackbone(), widths=(8, 4))
    method, batch = simclr(model), make_views(rng)
    batch["view2"] = batch["view1"]  # partners are equal: each finds its own
    params, state = method.init(jax.random.key(0), batch)
    _, (_, metrics) = method.loss(params, state, batch, jax.random.key(1))
    assert metrics["accuracy"] == 1


def test_head_is_that_of_the_authors(rng):
    """Two layers without bias; batch norm after both, the last with scale only."""
    model = SimCLR(TinyBackbone(), widths=(16, 4))
    params, _ = simclr(model).init(jax.random.key(0), make_views(rng))
    shapes = jax.tree.map(jnp.shape, params["Mlp_0"])
    assert shapes == {
        "Dense_0": {"kernel": (8, 16)},
        "BatchNorm_0": {"scale": (16,), "bias": (16,)},
        "Dense_1": {"kernel": (16, 4)},
        "BatchNorm_1": {"scale": (4,)},
    }


def test_predict_gives_the_features_under_the_head(rng):
    model = SimCLR(TinyBackbone(), widths=(16, 4))
    method = simclr(model)
    params, state = method.init(jax.random.key(0), make_views(rng))
    image = make_batch(rng, 3)["image"]
    h = method.predict(params, state, {"image": image})
    expected = TinyBackbone().apply({"params": params["backbone"]}, image, train=False)
    chex.assert_trees_all_close(h, expected)


def build(axis_name=None):
    backbone = ConvNet((4, 8), axis_name=axis_name)
    model = SimCLR(backbone, widths=(16, 8), axis_name=axis_name)
    return augmented(simclr(model, temperature=0.2), noisy_views, axis_name)


def test_training_tells_images_apart_and_touches_every_parameter(rng):
    method, optimizer, batch = build(), optax.adam(1e-2), make_batch(rng)
    state = init_state(method, optimizer, jax.random.key(0), batch)
    start = state.params
    step = jax.jit(gradient_step(method, optimizer, jax.random.key(1)))
    state, first = step(state, batch)
    for _ in range(40):
        state, metrics = step(state, batch)
    chex.assert_tree_all_finite(state)
    assert metrics["loss"] < 0.5 * first["loss"]
    assert metrics["accuracy"] > 0.9
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
