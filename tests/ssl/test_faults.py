"""Known ways to break a method, each injected, and named by the monitors.

Beside every fault stands the same method whole, of which the monitors find nothing wrong.
What they read are the metrics that the methods report in any run, and for faults that leave
no trace there, a step compared with the same step on one device and in one piece.
"""

from functools import partial
from importlib import import_module

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from jaxml.compose import accumulated, average, newest_first
from jaxml.losses import nt_xent_logits
from jaxml.losses.blockwise_similarity import Contrast
from jaxml.metrics import diagnose, step_disagreement
from jaxml.nn import BatchNorm, Mlp
from jaxml.parallel import data_mesh, data_parallel
from jaxml.ssl import (
    BYOL,
    DINO,
    Projected,
    SimCLR,
    SimSiam,
    byol,
    dino,
    moco,
    simclr,
    simsiam,
    swav,
)
from jaxml.train import gradient_step, init_state
from tests.ssl.trials import TinyBackbone, train, two_views

SGD = optax.sgd(0.1, 0.9)


def names(metrics) -> set[str]:
    return {finding.name for finding in diagnose(metrics)}


def last(method, batches, num_steps, optimizer=None) -> dict[str, float]:
    """The metrics of the last step."""
    return train(method, batches, num_steps, optimizer)[2][-1]


def views(step: int, size: int = 64, noise: float = 0.3):
    """Two noisy looks at new images of four directions."""
    rng = np.random.default_rng(step)
    basis = np.random.default_rng(100).normal(size=(4, 36))
    image, *extra = rng.normal(size=(3, size, 36))
    image = rng.normal(size=(size, 4)) @ basis + 0.3 * image
    pair = [image + noise * e for e in extra]
    shaped = [np.float32(x).reshape(size, 6, 6, 1) for x in (image, *pair)]
    return dict(zip(("image", "view1", "view2"), shaped, strict=True))


# SimSiam without its stop-gradient, or without its predictor.


def no_predictor(*args, name=None, **options):
    """In the place of `Mlp`."""
    if name == "predictor":
        return lambda z, train: z
    return Mlp(*args, name=name, **options)


@pytest.mark.parametrize("missing", [None, "stop-gradient", "predictor"])
def test_what_keeps_simsiam_from_collapse(monkeypatch, missing):
    if missing == "stop-gradient":
        monkeypatch.setattr(lax, "stop_gradient", lambda x: x)
    if missing == "predictor":
        monkeypatch.setattr(import_module("jaxml.ssl.simsiam"), "Mlp", no_predictor)
    model = SimSiam(TinyBackbone(16), dim=16, bottleneck=8, num_projector_layers=2)
    optimizer = optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(0.5, 0.9))
    row = last(simsiam(model), partial(views, noise=5.0), 400, optimizer)
    # Batch norm behind z may hold it off a single point: then it collapses to a line.
    found = names(row)
    collapse = found & {"complete collapse", "dimensional collapse"}
    assert collapse if missing else not found


# BYOL without its predictor.


@pytest.mark.parametrize(
    "widths, found", [((8, 16), set()), ((), {"complete collapse"})]
)
def test_byol_without_predictor(widths, found):
    method = byol(BYOL(TinyBackbone(16), (16, 16), widths), momentum=0.9)
    optimizer = optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(0.2, 0.9))
    assert names(last(method, partial(views, noise=5.0), 120, optimizer)) == found


# SimCLR whose gradient stops at what the other devices have.


def test_gather_without_gradient(monkeypatch):
    def method(axis_name):
        return simclr(SimCLR(TinyBackbone(), (8, 4), axis_name), temperature=0.5)

    batch = two_views(np.random.default_rng(0), 16)
    assert not compared(method, batch)
    whole = import_module("jaxml.losses.contrastive").all_gather

    def cut(x, axis_name):
        return whole(lax.stop_gradient(x) if axis_name else x, axis_name)

    def rows(z1, z2, temperature, axis_name):
        logits, partners = nt_xent_logits(z1, z2, temperature, axis_name)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, partners)
        return Contrast(
            losses, jnp.argmax(logits, 1) == partners, jnp.zeros(len(losses))
        )

    monkeypatch.setattr(import_module("jaxml.ssl.simclr"), "nt_xent_rows", rows)
    assert not compared(method, batch)
    monkeypatch.setattr("jaxml.losses.contrastive.all_gather", cut)
    assert compared(method, batch) == {"gradient differs"}


def compared(method, batch) -> set[str]:
    """What is found in a step on eight devices."""
    state = init_state(method(None), SGD, jax.random.key(0), batch)
    many = gradient_step(method("data"), SGD, jax.random.key(1), "data")
    many = data_parallel(many, data_mesh())
    one = jax.jit(gradient_step(method(None), SGD, jax.random.key(1)))
    return names(step_disagreement(many, one, state, batch))


def test_batch_norm_of_each_device_alone():
    """In the head of SimCLR: positives share statistics that the negatives do not."""

    def method(axis_name, shared=True):
        model = SimCLR(TinyBackbone(), (8, 4), axis_name)
        whole = simclr(model, temperature=0.5)
        if axis_name is None or shared:
            return whole
        alone = simclr(model.clone(axis_name=None), temperature=0.5)

        def loss(*args):
            value, (state, metrics) = alone.loss(*args)
            return value, (
                jax.tree.map(lambda x: lax.pmean(x, axis_name), state),
                metrics,
            )

        return whole._replace(loss=loss)

    batch = two_views(np.random.default_rng(0), 16)
    assert not compared(method, batch)
    assert compared(partial(method, shared=False), batch) == {
        "gradient differs",
        "state differs",
    }


# MoCo that reads the mark of batch norm.


class Residue(nn.Module):
    """What batch norm takes away: a network with residual branches can learn this."""

    num_groups: int

    @nn.compact
    def __call__(self, images, *, train):
        x = images.reshape(len(images), -1)
        return x - BatchNorm(num_groups=self.num_groups)(x, train=train)


@pytest.mark.parametrize(
    "num_groups, shuffle, leaks",
    [(1, False, True), (8, False, True), (8, True, False)],
    ids=["plain", "split", "split and shuffled"],
)
def test_batch_norm_leak(num_groups, shuffle, leaks):
    """There is nothing to learn: view2 is of another image, from the same group."""

    def batches(step):
        view1 = np.random.default_rng(step).normal(size=(64, 1, 16, 1))
        groups = view1.reshape(8, 8, 1, 16, 1)
        view2 = np.roll(groups, 1, axis=1).reshape(view1.shape)
        return {"view1": np.float32(view1), "view2": np.float32(view2)}

    method = moco(
        Projected(Residue(num_groups), (16,)),
        queue_size=256,
        momentum=0.9,
        shuffle=shuffle,
    )
    row = last(method, batches, 80)
    assert ("batch statistics leak" in names(row)) == leaks


def test_moco_that_learns_does_not_leak():
    method = moco(Projected(TinyBackbone(16), (16,)), queue_size=256, momentum=0.9)
    row = last(method, views, 150)
    assert row["accuracy"] > 0.3
    assert not names(row)


# DINO without centring, and without sharpening.


@pytest.mark.parametrize(
    "fault, found",
    [
        ({}, set()),
        ({"centre_momentum": 1.0}, {"constant output"}),
        ({"teacher_temperature": 0.3}, {"uniform output"}),
    ],
    ids=["whole", "no centre", "teacher too warm"],
)
def test_what_keeps_dino_from_collapse(fault, found):
    model = DINO(TinyBackbone(16), 16, (32, 32, 8))
    method = dino(model, momentum=0.9, **fault)
    row = last(method, swav_batch, 120, optax.sgd(0.3, 0.9))
    assert names(row) == found
    assert (row["teacher_kl"] < 0.05) == bool(found)


# A teacher, a centre or a queue that moves with every micro-batch.


def micro_batched(method, k, *, teacher_too_often=False, queue_too_often=False):
    """Accumulation as one would write it first: the state goes from part to part."""

    def loss(params, model_state, batch, key):
        total = 0.0
        for j in range(k):
            part = jax.tree.map(lambda x, j=j: x[j::k], batch)
            before = model_state
            value, (model_state, metrics) = method.loss(params, model_state, part, key)
            if not queue_too_often:  # all parts meet the queue of before the step
                rows = model_state["queue"][: len(part["image"])]
                new = [*new, rows] if j else [rows]
                model_state = {**model_state, "queue": before["queue"]}
            if teacher_too_often:
                _, model_state = method.after_update(params, model_state, jnp.array(0))
            total += value / k
        if not queue_too_often:
            rows = jnp.stack(new, axis=1).reshape(-1, new[0].shape[-1])
            queue = jnp.concatenate([rows, before["queue"]])
            model_state = {**model_state, "queue": queue[: len(before["queue"])]}
        return total, (model_state, metrics)

    return method._replace(loss=loss)


@pytest.mark.parametrize(
    "fault, part",
    [
        ({}, None),
        ({"teacher_too_often": True}, "model_state/teacher"),
        ({"queue_too_often": True}, "model_state/queue"),
    ],
    ids=["whole", "teacher", "queue"],
)
def test_state_that_moves_with_every_micro_batch(fault, part):
    method = moco(Projected(TinyBackbone(), (4,)), queue_size=11, momentum=0.9)
    batch = two_views(np.random.default_rng(0), 8)
    state = init_state(method, SGD, jax.random.key(0), batch)
    # Apart from the student, as it is after the first step.
    state.model_state["teacher"]["params"] = jax.tree.map(
        lambda p: 0.9 * p, state.params
    )
    step = partial(gradient_step, optimizer=SGD, key=jax.random.key(1))
    broken = jax.jit(step(micro_batched(method, 2, **fault)))
    found = diagnose(step_disagreement(broken, jax.jit(step(method)), state, batch))
    differs = [finding for finding in found if finding.name == "state differs"]
    assert bool(differs) == bool(part)
    assert all(part in finding.detail for finding in differs)
    right = accumulated(method, 2, merge={"queue": newest_first})
    assert not names(
        step_disagreement(jax.jit(step(right)), jax.jit(step(method)), state, batch)
    )


@pytest.mark.parametrize("name", ["byol", "dino"])
def test_teacher_that_moves_with_every_micro_batch(name):
    """Accumulation that passes the state from part to part; DINO's has a centre too."""
    if name == "byol":
        method = byol(BYOL(TinyBackbone(), (4,), (4,)), momentum=0.9)
        batch = two_views(np.random.default_rng(0), 8)
    else:
        method = dino(DINO(TinyBackbone(), 5, (4,)), momentum=0.9)
        batch = swav_batch(0)
    state = init_state(method, SGD, jax.random.key(0), batch)
    state.model_state["teacher"]["params"] = jax.tree.map(
        lambda p: 0.9 * p, state.model_state["teacher"]["params"]
    )

    def too_often(params, model_state, batch, key):
        values = []
        for j in range(2):
            part = jax.tree.map(lambda x, j=j: x[j::2], batch)
            value, (model_state, metrics) = method.loss(params, model_state, part, key)
            _, model_state = method.after_update(params, model_state, jnp.array(0))
            values.append(value)
        return jnp.mean(jnp.stack(values)), (model_state, metrics)

    right = accumulated(method, 2, merge={"centre": average})
    whole, broken, fixed = (
        jax.jit(gradient_step(m, SGD, jax.random.key(1)))
        for m in (method, method._replace(loss=too_often), right)
    )
    found = dict(diagnose(step_disagreement(broken, whole, state, batch)))
    assert "model_state/teacher" in found["state differs"]
    assert ("model_state/centre" in found["state differs"]) == (name == "dino")
    assert not names(step_disagreement(fixed, whole, state, batch))


# A temperature that is too low, and a loss that says nothing.


@pytest.mark.parametrize(
    "temperature, found", [(0.2, set()), (0.001, {"temperature too low"})]
)
def test_temperature_too_low(temperature, found):
    head = Projected(TinyBackbone(16), (16,))
    for method in (
        simclr(SimCLR(TinyBackbone(16), (16, 16)), temperature=temperature),
        moco(head, queue_size=128, temperature=temperature),
    ):
        assert names(last(method, views, 30, optax.sgd(1e-3))) == found


def swav_batch(step):
    batch = views(step)
    return {"global": np.stack([batch["view1"], batch["view2"]], axis=1)}


def clusters(**options):
    model = Projected(TinyBackbone(), (8, 4), normalize=True)
    return swav(model, num_prototypes=16, **options)


@pytest.mark.parametrize(
    "method, batches",
    [
        (simclr(SimCLR(TinyBackbone(), (8, 4))), views),
        (moco(Projected(TinyBackbone(), (4,)), queue_size=100), views),
        (clusters(), swav_batch),
    ],
    ids=["simclr", "moco", "swav"],
)
def test_loss_is_ln_k(method, batches):
    """Of a network that is dead all candidates are alike."""
    _, state, history = train(method, batches, 30)
    assert not names(history[-1])
    dead = jax.tree.map(jnp.zeros_like, state.params)
    _, (_, metrics) = method.loss(
        dead, state.model_state, batches(0), jax.random.key(0)
    )
    assert names(metrics) == {"uniform output", "complete collapse"}


# Codes that do not share out the prototypes.


@pytest.mark.parametrize("queue_size", [0, 100])
@pytest.mark.parametrize("num_iterations", [0, 3])
def test_marginals_off(num_iterations, queue_size):
    options = {"num_iterations": num_iterations, "queue_size": queue_size}
    row = last(clusters(**options), swav_batch, 60)
    assert ("unequal marginals" in names(row)) == (num_iterations == 0)


def test_marginals_of_each_device_alone(monkeypatch):
    """Sums over one device: its few images share out all prototypes among them."""

    def method(axis_name):
        return swav(
            Projected(TinyBackbone(), (4,), axis_name=axis_name), num_prototypes=16
        )

    batch = swav_batch(0)
    assert not compared(method, batch)
    alone = lambda x, axis_name: x
    monkeypatch.setattr(import_module("jaxml.ssl.swav"), "all_gather", alone)
    assert compared(method, batch) == {"gradient differs"}
