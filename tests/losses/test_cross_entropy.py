"""Cross-entropy of label maps against loops in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.losses import pixel_cross_entropy
from tests.losses.label_maps import (
    case,
    check_devices,
    check_half_precision,
    check_padding,
)
from tests.numerical import close, gradients


def cross_entropy_numpy(logits, labels, mask, weights, class_weights, average):
    total, below = 0.0, 0.0
    for image in range(len(logits)):
        counted = False
        for place in np.ndindex(labels.shape[1:]):
            label = labels[(image, *place)]
            if label == 255 or not mask[(image, *place)]:
                continue
            row = logits[(image, *place)]
            weight = weights[(image, *place)] * class_weights[label]
            total += weight * (np.log(np.exp(row).sum()) - row[label])
            below += {"pixels": 1, "weights": weight, "images": not counted}[average]
            counted = True
    return total / below


@pytest.mark.parametrize("average", ["pixels", "weights", "images"])
@pytest.mark.parametrize("space", [(), (7,), (3, 5)])
def test_it_matches_loops(rng, average, space):
    logits, labels, mask = case(rng, 4, space)
    weights = rng.uniform(0.2, 3, labels.shape)
    class_weights = rng.uniform(0.2, 3, 4)

    def loss(logits):
        return pixel_cross_entropy(
            logits,
            labels,
            weights=np.float32(weights),
            class_weights=np.float32(class_weights),
            mask=mask,
            average=average,
        )

    def expected(logits):
        return cross_entropy_numpy(
            logits, labels, mask, weights, class_weights, average
        )

    value, grads = jax.jit(jax.value_and_grad(loss))(np.float32(logits))
    close(value, expected(logits), rtol=1e-5)
    close(grads, *gradients(expected, logits), rtol=1e-4)


def test_it_is_torchs():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    logits, labels, _ = case(rng)
    weights = rng.uniform(0.2, 3, 4)
    theirs = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits).permute(0, 3, 1, 2),
        torch.from_numpy(labels),
        torch.from_numpy(weights),
        ignore_index=255,
    )
    ours = pixel_cross_entropy(
        np.float32(logits),
        labels,
        class_weights=np.float32(weights),
        average="weights",
    )
    close(ours, theirs.numpy())


def test_what_does_not_count_changes_nothing(rng):
    logits, labels, _ = case(rng)
    for average in ("pixels", "weights", "images"):
        check_padding(
            lambda x, y, m, a=average: pixel_cross_entropy(x, y, mask=m, average=a),
            logits,
            labels,
        )


def test_a_label_that_is_no_class_is_seen(rng):
    logits, labels, _ = case(rng)
    loss = jax.jit(pixel_cross_entropy, static_argnames="ignore_label")
    assert jnp.isfinite(loss(np.float32(logits), labels))
    for wrong in (4, -1, 254):
        labels[0, 0, 0] = wrong
        assert jnp.isnan(loss(np.float32(logits), labels))
        assert jnp.isfinite(
            loss(np.float32(logits), np.where(labels == wrong, 255, labels))
        )
    labels[labels == 254] = 0
    assert jnp.isnan(loss(np.float32(logits), labels, ignore_label=None))


def test_extreme_logits_are_finite():
    logits = jnp.array([[1e4, -1e4], [-1e4, 1e4]])
    value, grads = jax.value_and_grad(pixel_cross_entropy)(logits, jnp.array([0, 0]))
    assert value == 1e4
    assert jnp.all(jnp.isfinite(grads))


def test_half_precision_is_measured_in_float32(rng):
    logits, labels, _ = case(rng)
    check_half_precision(pixel_cross_entropy, logits, labels)


@pytest.mark.parametrize("average", ["pixels", "weights", "images"])
def test_eight_devices_are_one(rng, average):
    logits, labels, mask = case(rng, 16)
    labels[:3] = 255  # a device has nothing to tell

    def loss(axis_name, logits, labels, mask, weights):
        return pixel_cross_entropy(
            logits,
            labels,
            mask=mask,
            weights=weights,
            average=average,
            axis_name=axis_name,
        )

    weights = rng.uniform(0.1, 2, labels.shape)
    check_devices(loss, np.float32(logits), labels, mask, np.float32(weights))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x, y: pixel_cross_entropy(x, y[:1]), "shape of the logits|batch"),
        (lambda x, y: pixel_cross_entropy(x, y, mask=y[:1] > 0), "mask's axes|batch"),
        (
            lambda x, y: pixel_cross_entropy(x, y, weights=jnp.ones((2, 1))),
            "shape of the labels|space",
        ),
        (
            lambda x, y: pixel_cross_entropy(x, y, class_weights=jnp.ones(2)),
            "one for each of 3 classes|classes",
        ),
        (lambda x, y: pixel_cross_entropy(x, y, average="all"), "average must be one"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(jnp.ones((2, 4, 3)), jnp.zeros((2, 4), int))
