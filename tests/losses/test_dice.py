"""Soft Dice against loops in float64, and what a region is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.losses import soft_dice
from tests.losses.label_maps import (
    case,
    check_devices,
    check_half_precision,
    check_padding,
)
from tests.numerical import close, gradients


def dice_numpy(logits, labels, mask, per_image, squared, smooth, background):
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    keep = mask & (labels != 255)
    regions = [[i] for i in range(len(p))] if per_image else [range(len(p))]
    losses = []
    for region in regions:
        pixels = [(i, *x) for i in region for x in np.ndindex(labels.shape[1:])]
        pixels = [place for place in pixels if keep[place]]
        if not pixels:
            continue
        each = []
        for c in range(0 if background else 1, p.shape[-1]):
            over = sum(p[x][c] for x in pixels if labels[x] == c)
            power = 2 if squared else 1
            size = sum(p[x][c] ** power + (labels[x] == c) for x in pixels)
            each.append(1 - (2 * over + smooth) / (size + smooth))
        losses.append(np.mean(each))
    return np.mean(losses)


@pytest.mark.parametrize("per_image", [True, False])
@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("smooth, background", [(0.0, True), (1.0, False), (0.5, True)])
def test_it_matches_loops(rng, per_image, squared, smooth, background):
    logits, labels, mask = case(rng)
    labels[1] = 255
    options = {
        "per_image": per_image,
        "squared": squared,
        "smooth": smooth,
        "background": background,
    }

    def expected(logits):
        return dice_numpy(logits, labels, mask, **options)

    def loss(logits):
        return soft_dice(logits, labels, mask=mask, **options)

    value, grads = jax.jit(jax.value_and_grad(loss))(np.float32(logits))
    close(value, expected(logits), rtol=1e-5)
    close(grads, *gradients(expected, logits), rtol=1e-4)


def test_with_sums_it_is_optaxs(rng):
    import optax

    logits, labels, _ = case(rng)
    labels[labels == 255] = 0
    ours = soft_dice(np.float32(logits), labels, squared=False, smooth=2.0)
    hot = jax.nn.one_hot(labels, 4)
    close(ours, np.mean(optax.losses.dice_loss(jnp.float32(logits), hot, smooth=1.0)))


def test_right_is_zero_and_wrong_is_one():
    labels = jnp.array([[0, 1, 1, 0]])
    logits = 50.0 * jax.nn.one_hot(labels, 2)
    for squared in (True, False):
        assert soft_dice(logits, labels, squared=squared, smooth=0.0) < 1e-6
        wrong = soft_dice(logits, 1 - labels, squared=squared, smooth=0.0)
        assert wrong > 1 - 1e-6


def test_size_does_not_matter():
    """An object of ten pixels, half of it found, costs what one of a thousand does."""
    losses = []
    for n in (10, 1000):
        labels = jnp.repeat(jnp.array([1, 0]), jnp.array([n, 4000 - n]))[None]
        guess = jnp.where(jnp.arange(4000) < n // 2, 1, 0)[None]
        logits = 60.0 * jax.nn.one_hot(guess, 2)
        losses.append(soft_dice(logits, labels, smooth=0.0, background=False))
    close(losses[0], losses[1])


def test_an_absent_class_without_smoothing_is_finite():
    logits = jnp.array([[[200.0, -200.0]]])
    loss, grads = jax.value_and_grad(soft_dice)(
        logits, jnp.array([[0]]), smooth=0.0, background=True
    )
    assert loss == 0
    assert jnp.all(jnp.isfinite(grads))


def test_what_does_not_count_changes_nothing(rng):
    logits, labels, _ = case(rng)
    for per_image in (True, False):
        check_padding(
            lambda x, y, m, p=per_image: soft_dice(x, y, mask=m, per_image=p),
            logits,
            labels,
        )


def test_a_label_that_is_no_class_is_seen(rng):
    logits, labels, _ = case(rng)
    labels[0, 0, 0] = 4
    assert jnp.isnan(soft_dice(np.float32(logits), labels))


def test_half_precision_is_measured_in_float32(rng):
    logits, labels, _ = case(rng)
    check_half_precision(soft_dice, logits, labels)


@pytest.mark.parametrize("per_image", [True, False])
def test_eight_devices_are_one(rng, per_image):
    logits, labels, mask = case(rng, 16)
    labels[:3] = 255

    def loss(axis_name, logits, labels, mask):
        return soft_dice(
            logits, labels, mask=mask, per_image=per_image, axis_name=axis_name
        )

    check_devices(loss, np.float32(logits), labels, mask)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x, y: soft_dice(x, y[:1]), "shape of the logits|batch"),
        (lambda x, y: soft_dice(x, y, smooth=-1.0), "smooth must not be negative"),
        (
            lambda x, y: soft_dice(x[..., :1], y, background=False),
            "a class must be left, got 1",
        ),
        (lambda x, y: soft_dice(x, y, mask=y[:, :1] > 0), "mask's axes"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(jnp.ones((2, 4, 3)), jnp.zeros((2, 4), int))
