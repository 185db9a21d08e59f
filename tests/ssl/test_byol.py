"""BYOL against NumPy: its loss, target network and schedule; what its paper rests on."""

from functools import partial
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxml.nn import ConvNet
from jaxml.nn.functional import apply_module
from jaxml.precision import mixed_precision, policy
from jaxml.ssl import BYOL, byol, byol_loss, cosine_momentum, lars
from jaxml.train import gradient_step, init_state
from tests.numerical import close, gradients
from tests.ssl.trials import (
    TinyBackbone,
    check_all_moved,
    check_devices,
    train,
    two_views,
)


def byol_numpy(p1, p2, z1, z2):
    """Equation 2 in both directions, image by image."""
    terms = []
    for p, z in ((p1, z2), (p2, z1)):
        for a, b in zip(p, z, strict=True):
            apart = a / np.linalg.norm(a) - b / np.linalg.norm(b)
            terms.append(apart @ apart)
    return np.sum(terms) / len(p1)


@pytest.mark.parametrize("batch, dim", [(1, 2), (5, 7)])
def test_loss_and_gradient_match_numpy(rng, batch, dim):
    loss = jax.jit(jax.value_and_grad(byol_loss, (0, 1, 2, 3)))
    for scale in (1e-3, 1.0, 1e3):
        arrays = scale * rng.normal(size=(4, batch, dim))
        value, grads = loss(*np.float32(arrays))
        close(value, byol_numpy(*arrays))
        assert not np.any(grads[2:])
        if scale == 1:
            targets = arrays[2:]
            wanted = gradients(lambda *p: byol_numpy(*p, *targets), *arrays[:2])
            close(grads[:2], wanted, rtol=1e-5, atol=1e-5)


def tiny(axis_name=None, **options):
    """Heads with batch norm on a linear backbone."""
    widths = {"projector_widths": (8, 4), "predictor_widths": (6, 4)}
    return BYOL(TinyBackbone(), **{**widths, **options}, axis_name=axis_name)


@pytest.fixture(scope="module")
def step():
    """Loss and gradients of a network whose teacher differs from it, made once."""
    method, batch = byol(tiny(), momentum=0.9), two_views(np.random.default_rng(0))
    params, state = method.init(jax.random.key(0), batch)
    state["teacher"]["params"] = jax.tree.map(
        lambda p: 1.3 * p + 0.1, state["teacher"]["params"]
    )

    def loss(params, teacher):
        changed = {**state, "teacher": {**state["teacher"], "params": teacher}}
        return method.loss(params, changed, batch, jax.random.key(1))

    run = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (value, (after, metrics)), grads = run(params, state["teacher"]["params"])
    return SimpleNamespace(**locals())


def test_loss_crosses_views_and_networks(step):
    """Every pass is of one view; each network moves its own statistics twice."""
    run = jax.jit(partial(apply_module, tiny(), train=True))
    project = jax.jit(partial(apply_module, tiny(), train=True, method="project"))
    stats, teacher = step.state["encoder"], step.state["teacher"]
    p, z, kept = [], [], teacher["stats"]
    for name in ("view1", "view2"):
        (_, _, prediction), stats = run(step.params, stats, step.batch[name])
        (_, target), kept = project(teacher["params"], kept, step.batch[name])
        p.append(np.float64(prediction))
        z.append(np.float64(target))
    close(step.value, byol_numpy(*p, *z), scale=4)
    chex.assert_trees_all_close(step.after["encoder"], stats, rtol=1e-5)
    chex.assert_trees_all_close(step.after["teacher"]["stats"], kept, rtol=1e-5)


def test_only_the_online_network_learns(step):
    online, target = step.grads
    assert all(jnp.any(g != 0) for g in jax.tree.leaves(online["predictor"]))
    assert not any(np.any(g) for g in jax.tree.leaves(target))
    assert step.params.keys() == {"backbone", "projector", "predictor"}
    assert target.keys() == {"backbone", "projector"}


def test_heads_are_those_of_the_paper(rng):
    """Section 3.3: linear, batch norm, ReLU, linear; 4096 and 256 by default."""
    model = BYOL(TinyBackbone(8))
    assert model.projector_widths == model.predictor_widths == (4096, 256)
    params, _ = byol(tiny()).init(jax.random.key(0), two_views(rng))
    shapes = jax.tree.map(jnp.shape, params)
    norm = {"scale": (8,), "bias": (8,)}
    last = {"kernel": (8, 4), "bias": (4,)}
    assert shapes["projector"] == {
        "Dense_0": {"kernel": (8, 8)},
        "BatchNorm_0": norm,
        "Dense_1": last,
    }
    assert shapes["predictor"]["Dense_0"] == {"kernel": (4, 6)}


def test_target_follows_the_schedule_whatever_the_optimizer_does(rng):
    """Three steps of a cosine, under a heavy weight decay, against the recursion."""
    method = byol(tiny(), momentum=cosine_momentum(0.5, 4))
    batch = two_views(rng)
    optimizer = optax.adamw(1e-2, weight_decay=10.0)
    state = init_state(method, optimizer, jax.random.key(0), batch)
    step = jax.jit(gradient_step(method, optimizer, jax.random.key(1)))
    expected = jax.tree.map(np.float64, state.model_state["teacher"]["params"])
    for k in range(3):
        state, _ = step(state, batch)
        m = 1 - (1 - 0.5) * (np.cos(np.pi * k / 4) + 1) / 2
        shared = {name: state.params[name] for name in expected}
        expected = jax.tree.map(lambda t, p, m=m: m * t + (1 - m) * p, expected, shared)
    expected = jax.tree.map(np.float32, expected)
    actual = state.model_state["teacher"]["params"]
    chex.assert_trees_all_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_predict_is_the_online_backbone(step):
    images = step.batch["image"][:3]
    h = step.method.predict(step.params, step.state, {"image": images})
    weights = {"params": step.params["backbone"]}
    expected = TinyBackbone().apply(weights, images, train=False)
    chex.assert_trees_all_close(h, expected)


def test_it_learns_and_touches_every_parameter(rng):
    """As in the paper, but for its size: LARS and a rising momentum."""
    model = BYOL(ConvNet((4,)), (16, 8), (16, 8))
    method = byol(model, momentum=cosine_momentum(0.9, 60))
    start, state, history = train(method, two_views(rng, 16), 60, lars(2.0))
    check_all_moved(start, state)
    assert history[-1]["loss"] < 0.6 * history[0]["loss"]


def test_many_devices_take_the_same_steps_as_one(rng):
    check_devices(
        lambda axis_name: byol(tiny(axis_name), momentum=0.9), two_views(rng, 16), 8
    )


def test_bfloat16(step):
    half = mixed_precision(step.method, policy("mixed_bfloat16"))
    loss = jax.jit(jax.value_and_grad(half.loss, has_aux=True))
    (value, (_, metrics)), grads = loss(
        step.params, step.state, step.batch, jax.random.key(1)
    )
    chex.assert_tree_all_finite((grads, metrics))
    chex.assert_trees_all_close(value, step.value, rtol=0.05)
    assert value.dtype == jnp.float32


def test_bad_input_is_refused():
    x, y = jnp.ones((4, 6)), jnp.ones((1, 6))
    with pytest.raises((ValueError, TypeError), match=r"shape|dim"):
        byol_loss(x, x, y, y)
