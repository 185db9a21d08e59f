"""BYOL against NumPy: its loss, target network and schedule; what its paper rests on."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxml.compose import accumulated
from jaxml.nn import ConvNet
from jaxml.nn.functional import apply_module
from jaxml.ssl import BYOL, byol, byol_loss, cosine_momentum, lars
from tests.numerical import close, gradients
from tests.ssl.trials import (
    TinyBackbone,
    check_all_moved,
    check_bfloat16,
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


@pytest.mark.parametrize("batch, dim", [(1, 2), (5, 7), (16, 3)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_loss_and_gradient_match_numpy(rng, batch, dim, scale):
    arrays = scale * rng.normal(size=(4, batch, dim))
    loss = jax.value_and_grad(byol_loss, (0, 1, 2, 3))
    value, grads = loss(*np.float32(arrays))
    close(value, byol_numpy(*arrays))
    if scale == 1:
        expected = gradients(lambda p1, p2: byol_numpy(p1, p2, *arrays[2:]), *arrays[:2])
        for actual, wanted in zip(grads, expected, strict=False):
            close(actual, wanted, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_equal(grads[2:], tuple(jnp.zeros((2, batch, dim))))


def tiny(axis_name=None, **options):
    """Heads with batch norm on a linear backbone."""
    widths = {"projector_widths": (8, 4), "predictor_widths": (6, 4)}
    return BYOL(TinyBackbone(), **{**widths, **options}, axis_name=axis_name)


@pytest.fixture
def start(rng):
    """A network whose teacher differs from it."""
    method, batch = byol(tiny(), momentum=0.9), two_views(rng)
    params, state = method.init(jax.random.key(0), batch)
    state["teacher"]["params"] = jax.tree.map(
        lambda p: 1.3 * p + 0.1, state["teacher"]["params"]
    )
    return method, batch, params, state


def test_loss_crosses_views_and_networks(start):
    method, batch, params, state = start
    model, p, z = tiny(), [], []
    for name in ("view1", "view2"):
        run = partial(apply_module, model, train=True)
        (_, _, prediction), _ = run(params, state["encoder"], batch[name])
        teacher = state["teacher"]
        (_, target), _ = run(
            teacher["params"], teacher["stats"], batch[name], method="project"
        )
        p.append(np.float64(prediction))
        z.append(np.float64(target))
    actual, (_, metrics) = method.loss(params, state, batch, jax.random.key(1))
    close(actual, byol_numpy(*p, *z), scale=4)
    assert metrics["loss"] == actual


def test_only_the_online_network_learns(start):
    method, batch, params, state = start

    def loss(params, teacher):
        changed = {**state, "teacher": {**state["teacher"], "params": teacher}}
        return method.loss(params, changed, batch, jax.random.key(1))[0]

    grads = jax.grad(loss, (0, 1))(params, state["teacher"]["params"])
    assert all(jnp.any(g != 0) for g in jax.tree.leaves(grads[0]["predictor"]))
    assert not any(jnp.any(g != 0) for g in jax.tree.leaves(grads[1]))


def test_target_has_no_predictor_and_keeps_its_own_statistics(start):
    method, batch, params, state = start
    teacher = state["teacher"]
    assert params.keys() == {"backbone", "projector", "predictor"}
    assert teacher["params"].keys() == {"backbone", "projector"}
    _, (after, _) = method.loss(params, state, batch, jax.random.key(1))
    stats = [
        part["batch_stats"]["projector"]["BatchNorm_0"]["mean"]
        for part in (after["encoder"], after["teacher"]["stats"])
    ]
    assert jnp.any(stats[0] != stats[1])
    # Two passes each: both views moved them.
    (_, _), once = apply_module(
        tiny(),
        teacher["params"],
        teacher["stats"],
        batch["view1"],
        train=True,
        method="project",
    )
    first = once["batch_stats"]["projector"]["BatchNorm_0"]["mean"]
    assert jnp.any(stats[1] != first)


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
    start, *_ = train(method, batch, 0, optimizer)
    expected = jax.tree.map(np.float64, start.model_state["teacher"]["params"])
    for k in range(3):
        _, state, _ = train(method, batch, k + 1, optimizer)
        m = 1 - (1 - 0.5) * (np.cos(np.pi * k / 4) + 1) / 2
        shared = {name: state.params[name] for name in expected}
        expected = jax.tree.map(lambda t, p, m=m: m * t + (1 - m) * p, expected, shared)
    expected = jax.tree.map(np.float32, expected)
    actual = state.model_state["teacher"]["params"]
    chex.assert_trees_all_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_accumulation_moves_the_target_once(rng):
    """Without batch norm a step in two micro-batches is that of the whole batch."""
    model, batch = tiny(projector_widths=(4,), predictor_widths=(4,)), two_views(rng)
    method = byol(model, momentum=0.9)
    _, whole, _ = train(method, batch, 2, optax.sgd(0.1))
    _, halves, _ = train(accumulated(method, 2), batch, 2, optax.sgd(0.1))
    chex.assert_trees_all_close(halves, whole, rtol=1e-4, atol=1e-6)


def test_predict_is_the_online_backbone(start):
    method, batch, params, state = start
    h = method.predict(params, state, {"image": batch["image"][:3]})
    expected = TinyBackbone().apply(
        {"params": params["backbone"]}, batch["image"][:3], train=False
    )
    chex.assert_trees_all_close(h, expected)


def test_it_learns_and_touches_every_parameter(rng):
    """As in the paper, but for its size: LARS and a rising momentum."""
    model = BYOL(ConvNet((4, 8)), (16, 8), (16, 8))
    method = byol(model, momentum=cosine_momentum(0.9, 60))
    start, state, history = train(method, two_views(rng, 16), 60, lars(2.0))
    check_all_moved(start, state)
    assert history[-1]["loss"] < 0.6 * history[0]["loss"]


def test_many_devices_take_the_same_steps_as_one(rng):
    check_devices(
        lambda axis_name: byol(tiny(axis_name), momentum=0.9), two_views(rng, 16), 8
    )


def test_bfloat16(rng):
    check_bfloat16(byol(tiny()), two_views(rng))


def test_bad_input_is_refused():
    x, y = jnp.ones((4, 6)), jnp.ones((1, 6))
    with pytest.raises((ValueError, TypeError), match=r"shape|dim"):
        byol_loss(x, x, y, y)
