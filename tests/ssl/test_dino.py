"""DINO against NumPy: loss, centre, schedules, head; what keeps it from collapse."""

import math
from functools import partial
from importlib import import_module
from types import SimpleNamespace

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxml.nn import Dropout, VisionTransformer
from jaxml.nn.functional import apply_module
from jaxml.precision import mixed_precision, policy
from jaxml.ssl import (
    DINO,
    class_attention,
    cosine_momentum,
    dino,
    dino_loss,
    dino_optimizer,
)
from jaxml.train import gradient_step, init_state
from tests.numerical import close, gradients
from tests.ssl.trials import (
    TinyBackbone,
    check_all_moved,
    check_devices,
    train,
)


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def dino_numpy(student, teacher, centre, student_t, teacher_t):
    """Algorithm 1 for any number of crops, pair by pair."""
    terms = []
    for g, targets in enumerate(teacher):
        for v, scores in enumerate(student):
            if v != g:
                for t, s in zip(targets, scores, strict=True):
                    p = softmax((t - centre) / teacher_t)
                    terms.append(-p @ np.log(softmax(s / student_t)))
    return np.mean(terms)


@pytest.mark.parametrize("views, seen, batch, outputs", [(2, 2, 3, 4), (5, 2, 1, 7)])
def test_loss_and_gradient_match_numpy(rng, views, seen, batch, outputs):
    student = rng.uniform(-1, 1, size=(views, batch, outputs))
    teacher = rng.uniform(-1, 1, size=(seen, batch, outputs))
    centre = 0.3 * rng.normal(size=outputs)

    @jax.jit
    def loss(student, teacher, temperature):
        run = partial(dino_loss, student_temperature=0.3)
        run = partial(run, teacher_temperature=temperature)
        arguments = (student, teacher, np.float32(centre))
        return jax.value_and_grad(run, (0, 1))(*arguments)

    for temperature in (0.04, 0.5):
        value, grads = loss(np.float32(student), np.float32(teacher), temperature)
        fixed = (teacher, centre, 0.3, temperature)
        close(value, dino_numpy(student, *fixed), scale=3)
        (wanted,) = gradients(lambda s: dino_numpy(s, *fixed), student)
        close(grads[0], wanted, rtol=1e-5, atol=1e-5)
        assert not np.any(grads[1])


def make_batch(rng, size=8, local=2):
    image = rng.uniform(size=(size, 1, 6, 6, 1))
    crops = {
        "global": np.float32(image + 0.1 * rng.normal(size=(size, 2, 6, 6, 1))),
        "local": np.float32(
            image[:, :, 1:4, 2:5] + 0.1 * rng.normal(size=(size, local, 3, 3, 1))
        ),
    }
    return {"image": np.float32(image[:, 0]), **crops}


class Pooled(nn.Module):
    """Two layers and the mean between, for images of any size, with noise."""

    dropout: float = 0.0
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, *, train):
        x = jnp.mean(nn.gelu(nn.Dense(8)(images)), axis=(1, 2))
        x = Dropout(self.dropout, axis_name=self.axis_name)(x, train=train)
        return nn.Dense(8)(x)


def tiny(backbone=None, axis_name=None, **options):
    backbone = Pooled() if backbone is None else backbone
    return DINO(backbone, 5, (8, 8, 4), axis_name=axis_name, **options)


def vit(**options):
    sizes = {"image_size": 6, "patch_size": 3, "width": 8, "depth": 1, "heads": 2}
    return VisionTransformer(**sizes, **options)


@pytest.fixture(scope="module")
def step():
    """Loss and gradients of a student whose teacher differs and is off centre."""
    method, batch = dino(tiny()), make_batch(np.random.default_rng(0))
    params, state = method.init(jax.random.key(0), batch)
    state["centre"] = jnp.linspace(-0.2, 0.3, 5)
    state["teacher"]["params"] = jax.tree.map(
        lambda p: 1.3 * p + 0.02, state["teacher"]["params"]
    )

    def loss(params, teacher):
        changed = {**state, "teacher": {**state["teacher"], "params": teacher}}
        return method.loss(params, changed, batch, jax.random.key(1))

    run = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (value, (after, metrics)), grads = run(params, state["teacher"]["params"])
    scores = jax.jit(partial(apply_module, tiny(), model_state={}, train=True))

    def each(params, name):
        crops = np.moveaxis(batch[name], 1, 0)
        return [np.float64(scores(params=params, images=x)[0][1]) for x in crops]

    student = np.stack(each(params, "global") + each(params, "local"))
    teacher = np.stack(each(state["teacher"]["params"], "global"))
    return SimpleNamespace(**locals())


def test_the_teacher_sees_large_crops_and_no_view_itself(step):
    expected = dino_numpy(step.student, step.teacher, step.state["centre"], 0.1, 0.04)
    close(step.value, expected, scale=10)


def test_the_centre_moves_after_the_loss_by_the_teacher_alone(step):
    moved = 0.9 * step.state["centre"] + 0.1 * step.teacher.mean((0, 1))
    close(step.after["centre"], moved)


def test_the_loss_is_entropy_and_divergence(step):
    centre = np.float64(step.state["centre"])
    p = np.stack([[softmax((t - centre) / 0.04) for t in row] for row in step.teacher])
    entropy = -np.mean(np.sum(p * np.log(p), axis=-1))
    close(step.metrics["teacher_entropy"], entropy, scale=10)
    total = step.metrics["teacher_entropy"] + step.metrics["teacher_kl"]
    close(total, float(step.value), scale=10)
    mean = p.mean((0, 1))
    used = -np.sum(mean * np.log(mean)) / math.log(5)
    close(step.metrics["mean_entropy"], used, scale=10)


def test_only_the_student_learns(step):
    student, teacher = step.grads
    assert all(np.any(g) for g in jax.tree.leaves(student))
    assert not any(np.any(g) for g in jax.tree.leaves(teacher))


def test_predict_is_the_teacher(step):
    images = step.batch["image"][:3]
    h = step.method.predict(step.params, step.state, {"image": images})
    weights = {"params": step.state["teacher"]["params"]["backbone"]}
    chex.assert_trees_all_close(h, Pooled().apply(weights, images, train=False))


def test_head_is_that_of_the_paper(rng):
    """Section 3.1: three layers, a bottleneck, unit columns."""
    default = DINO(TinyBackbone())
    assert (default.num_outputs, default.widths) == (65536, (2048, 2048, 256))
    model = tiny(TinyBackbone(8))
    params, _ = dino(model).init(jax.random.key(0), make_batch(rng))
    shapes = jax.tree.map(jnp.shape, params)
    assert shapes["last"] == {"kernel": (4, 5)}
    assert shapes["head"] == {
        f"Dense_{i}": {"kernel": pair, "bias": pair[1:]}
        for i, pair in enumerate([(8, 8), (8, 8), (8, 4)])
    }
    images = np.float32(rng.normal(size=(3, 6, 6, 1)))
    _, scores = model.apply({"params": params}, images, train=True)
    longer = {**params, "last": {"kernel": 7 * params["last"]["kernel"]}}
    _, same = model.apply({"params": longer}, images, train=True)
    chex.assert_trees_all_close(scores, same, rtol=1e-5, atol=1e-6)
    assert np.abs(scores).max() <= 1 + 1e-6
    free = model.clone(fixed_length=False)
    lengths = np.arange(5, dtype=np.float32)
    learned = {**params, "last": {**params["last"], "length": lengths}}
    _, scaled = free.apply({"params": learned}, images, train=True)
    chex.assert_trees_all_close(scaled, scores * lengths[None], rtol=1e-5, atol=1e-6)


def test_schedules_are_asked_for_the_step(rng):
    """Teacher temperature and momentum of three steps; the last layer frozen for two."""
    method = dino(
        tiny(),
        momentum=cosine_momentum(0.5, 4),
        teacher_temperature=optax.linear_schedule(0.04, 0.4, 2),
        freeze_steps=2,
    )
    batch, optimizer = {"global": make_batch(rng)["global"]}, optax.sgd(0.1)
    state = init_state(method, optimizer, jax.random.key(0), batch)
    step = jax.jit(gradient_step(method, optimizer, jax.random.key(1)))
    model = tiny()
    expected = jax.tree.map(np.float64, state.model_state["teacher"]["params"])
    for k, temperature in enumerate((0.04, 0.22, 0.4)):
        before = state
        state, metrics = step(state, batch)

        def scores(params):
            crops = np.moveaxis(batch["global"], 1, 0)
            run = partial(model.apply, {"params": params}, train=True)
            return np.stack([np.float64(run(x)[1]) for x in crops])

        centre = np.float64(before.model_state["centre"])
        teacher = before.model_state["teacher"]["params"]
        wanted = (scores(before.params), scores(teacher), centre, 0.1, temperature)
        close(metrics["loss"], dino_numpy(*wanted), scale=10)
        m = 1 - 0.5 * (np.cos(np.pi * k / 4) + 1) / 2
        expected = jax.tree.map(
            lambda t, p, m=m: m * t + (1 - m) * p, expected, state.params
        )
        is_still = np.array_equal(
            state.params["last"]["kernel"], before.params["last"]["kernel"]
        )
        assert is_still == (k < 2)
    actual = state.model_state["teacher"]["params"]
    chex.assert_trees_all_close(
        actual, jax.tree.map(np.float32, expected), rtol=1e-5, atol=1e-6
    )


def test_noise_is_the_student_s(rng):
    """The loss draws it, the teacher's part of it does not."""
    method, batch = dino(tiny(Pooled(0.5))), make_batch(rng)
    params, state = method.init(jax.random.key(0), batch)
    loss = jax.jit(method.loss)
    one, two = (loss(params, state, batch, jax.random.key(i)) for i in (1, 2))
    assert one[0] != two[0]
    chex.assert_trees_all_equal(one[1][0]["centre"], two[1][0]["centre"])


def test_it_learns_and_touches_every_parameter(rng):
    """With dropout, columns of free length, and the paper's optimizer."""
    model = tiny(Pooled(0.1), fixed_length=False)
    method = dino(model, momentum=0.9, teacher_temperature=0.04)
    optimizer = dino_optimizer(1e-2, 40)
    start, state, history = train(method, make_batch(rng, 16), 40, optimizer)
    check_all_moved(start, state)
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]


def test_the_optimizer_follows_its_schedule():
    """No gradient: what moves is decayed, at lr (0.4 - 0.36 (cos(pi k / n) + 1) / 2)."""
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    optimizer = dino_optimizer(0.1, 4)
    state, zeros = optimizer.init(params), jax.tree.map(jnp.zeros_like, params)
    for k in range(6):
        updates, state = optimizer.update(zeros, state, params)
        decay = 0.4 - 0.36 * (math.cos(math.pi * min(k, 4) / 4) + 1) / 2
        close(updates["kernel"], np.full((2, 2), -0.1 * decay))
        assert not np.any(updates["bias"])


def test_many_devices_take_the_same_steps_as_one(rng):
    """Centre, small crops, batch norm in the head, dropout, a layer frozen at first."""

    def build(axis_name):
        model = tiny(Pooled(0.5, axis_name), axis_name, normalize=True)
        return dino(model, momentum=0.9, teacher_temperature=0.3, freeze_steps=1)

    check_devices(build, make_batch(rng, 16), 8)


def test_bfloat16(step):
    half = mixed_precision(step.method, policy("mixed_bfloat16"))
    loss = jax.jit(jax.value_and_grad(half.loss, has_aux=True))
    (value, (_, metrics)), grads = loss(
        step.params, step.state, step.batch, jax.random.key(1)
    )
    chex.assert_tree_all_finite((grads, metrics))
    chex.assert_trees_all_close(value, step.value, rtol=0.05)
    assert value.dtype == jnp.float32


def test_the_class_token_s_attention(rng, monkeypatch):
    """The last block's first row, without the class token and two registers."""
    weights = rng.dirichlet(np.ones(9), size=(3, 2, 2, 9))  # [depth, batch, heads, ...]
    module = import_module("jaxml.ssl.dino")
    maps = lambda model, params, images: jnp.asarray(weights, jnp.float32)
    monkeypatch.setattr(module, "attention_maps", maps)
    images, row = np.zeros((2, 6, 9, 1), np.float32), weights[-1, :, :, 0, 3:]
    row = row / row.sum(-1, keepdims=True)
    looks = partial(class_attention, vit(registers=2), {}, images)
    assert looks().shape == (2, 2, 2, 3)
    close(looks().reshape(2, 2, 6), row)
    kept = np.asarray(looks(mass=0.6)).reshape(4, 6)
    for all_of_it, part in zip(row.reshape(4, 6), kept, strict=True):
        ranked = np.sort(all_of_it)[::-1]
        count = np.searchsorted(np.cumsum(ranked), 0.6) + 1
        assert np.count_nonzero(part) == count
        close(np.sort(part)[::-1][:count], ranked[:count])


S = np.ones((2, 3, 4), np.float32)
C = np.zeros(4, np.float32)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: dino_loss(S[:1], S[:1], C), "at least two views"),
        (lambda: dino_loss(S, np.ones((3, 3, 4), np.float32), C), "at least two views"),
        (lambda: dino_loss(S, S, C, student_temperature=0.0), "must be positive"),
        (lambda: dino_loss(S, S, C, teacher_temperature=-1.0), "must be positive"),
        (lambda: dino(DINO(TinyBackbone(), 1)), "num_outputs must be at least 2"),
        (lambda: dino(tiny(), student_temperature=0.0), "must be positive"),
        (lambda: dino(tiny(), teacher_temperature=0.0), "must be positive"),
        (lambda: dino(tiny(), centre_momentum=1.5), "centre_momentum must be in"),
        (lambda: dino(tiny(), freeze_steps=-1), "freeze_steps must not be negative"),
        (lambda: class_attention(vit(), {}, S[:, None], mass=0.0), "mass must be in"),
        (
            lambda: class_attention(
                vit(class_token=False, pool="mean"), {}, S[:, None]
            ),
            "must have a class token",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
