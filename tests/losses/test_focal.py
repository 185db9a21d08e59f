"""Focal loss against loops in float64, its limits and its normalisers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.losses import sigmoid_focal
from tests.losses.label_maps import check_devices, check_half_precision, check_padding
from tests.numerical import close, gradients


def focal_numpy(logits, targets, mask, alpha, gamma, average):
    total, entries, positives = 0.0, 0, 0.0
    for place in np.ndindex(logits.shape):
        if not mask[place]:
            continue
        y, p = targets[place], 1 / (1 + np.exp(-logits[place]))
        wrong = y * (1 - p) + (1 - y) * p  # 1 - p_t
        entropy = -y * np.log(p) - (1 - y) * np.log(1 - p)
        weight = 1.0 if alpha is None else alpha * y + (1 - alpha) * (1 - y)
        total += weight * wrong**gamma * entropy
        entries, positives = entries + 1, positives + y
    return total / (entries if average == "entries" else max(positives, 1.0))


@pytest.mark.parametrize("alpha", [0.25, None])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("average", ["entries", "positives"])
def test_it_matches_loops(rng, alpha, gamma, average):
    logits, mask = 3 * rng.normal(size=(3, 4, 5)), rng.random((3, 4, 5)) < 0.7
    for targets in (rng.integers(0, 2, logits.shape), rng.random(logits.shape)):
        options = {"alpha": alpha, "gamma": gamma, "average": average}

        def expected(logits, targets=targets, options=options):
            return focal_numpy(logits, targets, mask, **options)

        def loss(logits, targets=targets, options=options):
            return sigmoid_focal(logits, jnp.asarray(targets), mask=mask, **options)

        value, grads = jax.jit(jax.value_and_grad(loss))(np.float32(logits))
        close(value, expected(logits), rtol=1e-5)
        close(grads, *gradients(expected, logits), rtol=1e-4)


def test_gamma_zero_is_half_of_cross_entropy(rng):
    import optax

    logits, targets = np.float32(rng.normal(size=(2, 7))), rng.integers(0, 2, (2, 7))
    plain = np.mean(optax.sigmoid_binary_cross_entropy(logits, targets))
    close(sigmoid_focal(logits, targets, alpha=0.5, gamma=0.0), plain / 2)
    close(sigmoid_focal(logits, targets, alpha=None, gamma=0.0), plain)


def test_what_is_right_hardly_counts():
    """p_t = 0.9 costs a hundredth of its cross-entropy at gamma 2 (section 3.2)."""
    logit = jnp.log(jnp.array([9.0]))
    focal = sigmoid_focal(logit, jnp.ones(1), alpha=None)
    close(focal, 0.01 * -np.log(0.9), rtol=1e-5)


def test_detectors_divide_by_the_positives(rng):
    logits = np.float32(rng.normal(size=(2, 50)))
    targets = np.zeros((2, 50), int)
    targets[0, :3] = 1
    every = sigmoid_focal(logits, targets)
    close(sigmoid_focal(logits, targets, average="positives"), every * 100 / 3)
    none = sigmoid_focal(logits, 0 * targets, average="positives")
    close(none, 100 * sigmoid_focal(logits, 0 * targets), rtol=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_extreme_logits_are_finite(gamma):
    logits = jnp.array([[-1e4, -200.0, 0.0, 200.0, 1e4]])
    for target in (0, 1):
        value, grads = jax.value_and_grad(sigmoid_focal)(
            logits, jnp.full((1, 5), target), gamma=gamma
        )
        assert jnp.isfinite(value)
        assert jnp.all(jnp.isfinite(grads))


def test_what_does_not_count_changes_nothing(rng):
    logits, targets = rng.normal(size=(3, 3, 5)), rng.integers(0, 2, (3, 3, 5))
    for average in ("entries", "positives"):
        check_padding(
            lambda x, y, m, a=average: sigmoid_focal(x, y, mask=m, average=a),
            logits,
            targets,
        )


def test_half_precision_is_measured_in_float32(rng):
    logits, targets = rng.normal(size=(3, 3, 5)), rng.integers(0, 2, (3, 3, 5))
    check_half_precision(sigmoid_focal, logits, targets)


@pytest.mark.parametrize("average", ["entries", "positives"])
@pytest.mark.parametrize("positives", [0.0, 0.01, 0.5])
def test_eight_devices_are_one(rng, average, positives):
    logits = np.float32(rng.normal(size=(16, 6)))
    targets = (rng.random((16, 6)) < positives).astype(int)
    mask = rng.random((16, 6)) < 0.7
    mask[:3] = False

    def loss(axis_name, logits, targets, mask):
        return sigmoid_focal(
            logits, targets, mask=mask, average=average, axis_name=axis_name
        )

    check_devices(loss, logits, targets, mask)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x: sigmoid_focal(x, x[:1]), "one shape|batch"),
        (lambda x: sigmoid_focal(x, x, gamma=-1.0), "gamma must be at least 0"),
        (lambda x: sigmoid_focal(x, x, alpha=1.5), r"alpha in \[0, 1\]"),
        (lambda x: sigmoid_focal(x, x, average="all"), "average must be one of"),
        (lambda x: sigmoid_focal(x, x, mask=x[:, :1] > 0), "mask's axes"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(jnp.ones((2, 4)))
