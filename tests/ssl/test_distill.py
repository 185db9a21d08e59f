"""Distillation against loops, what the teacher sees, labels that are rare, devices."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.ssl import FineTuned, distill, distillation_loss, fine_tune
from tests.numerical import close, gradients
from tests.ssl.trials import TinyBackbone, check_all_moved, check_devices, train


def distillation_numpy(student, teacher, t):
    """Equation 2, class by class."""
    losses = []
    for s, told in zip(student / t, teacher / t, strict=True):
        p_t, p_s = (np.exp(x) / np.exp(x).sum() for x in (told, s))
        losses.append(-sum(a * np.log(b) for a, b in zip(p_t, p_s, strict=True)))
    return np.mean(losses)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_loss_matches_loops(rng, temperature):
    student, teacher = rng.normal(size=(2, 5, 3))
    value, grads = jax.value_and_grad(distillation_loss, (0, 1))(
        np.float32(student), np.float32(teacher), temperature
    )
    close(value, distillation_numpy(student, teacher, temperature))
    (expected,) = gradients(
        lambda s: distillation_numpy(s, teacher, temperature), student
    )
    close(grads[0], expected, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_equal(grads[1], jnp.zeros_like(grads[1]))


MODEL = FineTuned(TinyBackbone(), 3, head=(8,))


def make_batch(rng, size=16):
    image, noise = np.float32(rng.uniform(size=(2, size, 6, 6, 1)))
    label = np.int32(rng.integers(-1, 3, size))
    return {"image": image, "view": np.float32(image + 0.1 * noise), "label": label}


def build(rng, alpha=1.0, axis_name=None, temperature=2.0):
    pretrained = fine_tune(MODEL).init(jax.random.key(3), make_batch(rng))
    pretrained[0]["classifier"]["kernel"] *= 100  # a teacher that has an opinion
    student = FineTuned(TinyBackbone(), 3, (4,), axis_name)
    return distill(
        student,
        MODEL,
        pretrained,
        temperature=temperature,
        alpha=alpha,
        axis_name=axis_name,
    )


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_labels_and_teacher_share_the_loss(rng, alpha):
    """Equation 3; the mean of the labelled is over those that have a label."""
    method, batch = build(rng, alpha), make_batch(rng)
    params, state = method.init(jax.random.key(0), batch)
    student = FineTuned(TinyBackbone(), 3, (4,))
    logits, _ = student.apply(
        {"params": params, **state["student"]},
        batch["view"],
        train=True,
        mutable=["batch_stats"],
    )
    known = state["teacher"]
    told = MODEL.apply(
        {"params": known["params"], **known["stats"]}, batch["view"], train=False
    )
    logits, told = np.float64(logits), np.float64(told)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labelled = batch["label"] >= 0
    right = p[np.arange(16), np.maximum(batch["label"], 0)]
    expected = alpha * distillation_numpy(logits, told, 2.0)
    expected -= (1 - alpha) * np.mean(np.log(right[labelled]))
    actual, (after, _) = method.loss(params, state, batch, jax.random.key(0))
    close(actual, expected, scale=5)
    chex.assert_trees_all_equal(after["teacher"], state["teacher"])


def test_without_any_label_only_the_teacher_counts(rng):
    method, batch = build(rng, 0.5), make_batch(rng)
    params, state = method.init(jax.random.key(0), batch)
    batch["label"] = np.full(16, -1, np.int32)
    value, _ = method.loss(params, state, batch, jax.random.key(0))
    alone, _ = build(rng, 1.0).loss(params, state, batch, jax.random.key(0))
    chex.assert_trees_all_close(value, alone / 2, rtol=1e-6)


def test_the_student_comes_to_agree_and_touches_every_parameter(rng):
    start, state, history = train(build(rng, temperature=1.0), make_batch(rng), 80)
    check_all_moved(start, state)
    assert history[-1]["agreement"] > 0.9
    chex.assert_trees_all_equal(
        state.model_state["teacher"], start.model_state["teacher"]
    )


def test_many_devices_take_the_same_steps_as_one(rng):
    """With labels that are not spread evenly over the devices."""
    batch = make_batch(rng)
    batch["label"][:6] = -1
    check_devices(lambda axis_name: build(rng, 0.5, axis_name), batch, 4)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda rng: distillation_loss(jnp.ones((2, 3)), jnp.ones((1, 3))), "shape|b"),
        (lambda rng: distillation_loss(jnp.ones((2, 3)), jnp.ones((2, 3)), 0.0), "pos"),
        (lambda rng: build(rng, 1.5), r"alpha must be in \[0, 1\]"),
        (lambda rng: build(rng, temperature=-1.0), "temperature must be positive"),
    ],
)
def test_bad_input_is_refused(rng, call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(rng)
