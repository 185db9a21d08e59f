"""Lovasz losses against the definition: Jaccard losses of growing sets of wrong pixels."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.losses import lovasz_hinge, lovasz_softmax
from tests.losses.label_maps import (
    case,
    check_devices,
    check_half_precision,
    check_padding,
)
from tests.numerical import close, gradients

softmax_loss = jax.jit(lovasz_softmax)
hinge_loss = jax.jit(lovasz_hinge)


def jaccard_loss(wrong, own):
    """1 - |own minus wrong| / |own or wrong|, equation 6 of the paper."""
    union = len(own | wrong)
    return 1 - len(own - wrong) / union if union else 0.0


def extension_numpy(errors, own):
    """Equation 8 by sets, in float64."""
    order = sorted(range(len(errors)), key=lambda i: -errors[i])
    own = {i for i, o in enumerate(own) if o}
    total, wrong = 0.0, set()
    for i in order:
        before = jaccard_loss(wrong, own)
        wrong = wrong | {i}
        total += errors[i] * (jaccard_loss(wrong, own) - before)
    return total


def regions(keep, per_image):
    groups = [[i] for i in range(len(keep))] if per_image else [range(len(keep))]
    for group in groups:
        yield [
            (i, *x) for i in group for x in np.ndindex(keep.shape[1:]) if keep[(i, *x)]
        ]


def softmax_numpy(logits, labels, mask, per_image, present):
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    losses = []
    for pixels in regions(mask & (labels != 255), per_image):
        each = []
        for c in range(p.shape[-1]):
            own = [labels[x] == c for x in pixels]
            if any(own) or not present:
                errors = [1 - p[x][c] if labels[x] == c else p[x][c] for x in pixels]
                each.append(extension_numpy(errors, own))
        if pixels:
            losses.append(np.mean(each))
    return np.mean(losses)


def hinge_numpy(logits, labels, mask, per_image):
    losses = []
    for pixels in regions(mask & (labels != 255), per_image):
        errors = [max(0.0, 1 - (2 * labels[x] - 1) * logits[x]) for x in pixels]
        if pixels:
            losses.append(extension_numpy(errors, [labels[x] == 1 for x in pixels]))
    return np.mean(losses)


@pytest.mark.parametrize("per_image", [True, False])
@pytest.mark.parametrize("present", [True, False])
def test_softmax_matches_the_definition(rng, per_image, present):
    logits, labels, mask = case(rng, space=(2, 5))
    labels[1] = 255
    labels[2][labels[2] == 3] = 0

    def expected(logits):
        return softmax_numpy(logits, labels, mask, per_image, present)

    def loss(logits):
        return lovasz_softmax(
            logits, labels, mask=mask, per_image=per_image, present=present
        )

    value, grads = jax.jit(jax.value_and_grad(loss))(np.float32(logits))
    close(value, expected(logits), rtol=1e-5)
    close(grads, *gradients(expected, logits), rtol=1e-4)


@pytest.mark.parametrize("per_image", [True, False])
def test_hinge_matches_the_definition(rng, per_image):
    logits, labels, mask = case(rng, batch=4, space=(3, 4), classes=2)
    logits = logits[..., 0]
    labels[0] = 255
    labels[1][labels[1] == 1] = 0  # the class is absent

    def expected(logits):
        return hinge_numpy(logits, labels, mask, per_image)

    def loss(logits):
        return lovasz_hinge(logits, labels, mask=mask, per_image=per_image)

    value, grads = jax.jit(jax.value_and_grad(loss))(np.float32(logits))
    close(value, expected(logits), rtol=1e-5)
    close(grads, *gradients(expected, logits), rtol=1e-4)


def test_at_hard_answers_it_is_the_jaccard_loss():
    """The extension agrees with the set function on every set of wrong pixels."""
    labels = np.array([1, 1, 0, 0, 1])
    own = {0, 1, 4}
    for wrong in itertools.product([0, 1], repeat=5):
        guess = np.where(wrong, 1 - labels, labels)
        logits = 80.0 * jax.nn.one_hot(guess, 2)[None]
        loss = softmax_loss(logits, jnp.array(labels)[None])
        rest = jaccard_loss({i for i in range(5) if wrong[i]}, {2, 3})
        close(loss, (jaccard_loss({i for i in range(5) if wrong[i]}, own) + rest) / 2)


def test_the_order_of_pixels_does_not_matter(rng):
    logits, labels, _ = case(rng, batch=2, space=(9,))
    order = rng.permutation(9)
    close(
        softmax_loss(np.float32(logits[:, order]), labels[:, order]),
        softmax_loss(np.float32(logits), labels),
    )


def test_steps_of_large_images_keep_their_digits(rng):
    """The differences of J of a hundred thousand pixels, against float64."""
    n = 100_000
    own = rng.random(n) < 0.3
    logits = np.float32(rng.normal(size=n))
    grads = jax.jit(jax.grad(lovasz_hinge))(
        logits[None], jnp.asarray(own)[None].astype(int)
    )
    errors = 1 - np.where(own, 1, -1) * logits.astype(np.float64)
    order = np.argsort(-errors, kind="stable")
    hits = np.cumsum(own[order])
    union = own.sum() + np.arange(1, n + 1) - hits
    jaccard = 1 - (own.sum() - hits) / union
    steps = np.zeros(n)
    steps[order] = np.diff(jaccard, prepend=0)
    expected = np.where(errors > 0, -np.where(own, 1, -1) * steps, 0)
    np.testing.assert_allclose(grads[0], expected, rtol=1e-3, atol=1e-10)


def test_what_does_not_count_changes_nothing(rng):
    logits, labels, _ = case(rng)
    for per_image in (True, False):
        check_padding(
            lambda x, y, m, p=per_image: lovasz_softmax(x, y, mask=m, per_image=p),
            logits,
            labels,
        )
        check_padding(
            lambda x, y, m, p=per_image: lovasz_hinge(x, y, mask=m, per_image=p),
            logits[..., 0],
            np.where(labels < 255, labels % 2, 255),
        )


def test_a_label_that_is_no_class_is_seen(rng):
    logits, labels, _ = case(rng)
    labels[0, 0, 0] = 4
    assert jnp.isnan(softmax_loss(np.float32(logits), labels))
    assert jnp.isnan(hinge_loss(np.float32(logits[..., 0]), labels))


def test_half_precision_is_measured_in_float32(rng):
    logits, labels, _ = case(rng)
    check_half_precision(lovasz_softmax, logits, labels)
    check_half_precision(
        lovasz_hinge, logits[..., 0], np.where(labels < 255, labels % 2, 255)
    )


@pytest.mark.parametrize("per_image", [True, False])
def test_eight_devices_are_one(rng, per_image):
    logits, labels, mask = case(rng, 16)
    labels[:3] = 255

    def softmax(axis_name, logits, labels, mask):
        return lovasz_softmax(
            logits, labels, mask=mask, per_image=per_image, axis_name=axis_name
        )

    def hinge(axis_name, logits, labels, mask):
        return lovasz_hinge(
            logits, labels, mask=mask, per_image=per_image, axis_name=axis_name
        )

    check_devices(softmax, np.float32(logits), labels, mask)
    binary = np.where(labels < 255, labels % 2, 255)
    check_devices(hinge, np.float32(logits[..., 0]), binary, mask)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x, y: lovasz_softmax(x, y[:1]), "shape of the logits|batch"),
        (lambda x, y: lovasz_hinge(x, y), "one shape|space"),
        (lambda x, y: lovasz_hinge(x[..., 0], y, mask=y[:, 1:] > 0), "mask's axes"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(jnp.ones((2, 4, 3)), jnp.zeros((2, 4), int))
