"""The confusion matrix of label maps against plain counting, also over devices."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxml.metrics import confusion_matrix, mean_iou
from jaxml.parallel import data_mesh, psum


def draw(rng, batch=6, classes=4):
    predicted = rng.integers(0, classes, (batch, 5, 3))
    labels = rng.integers(0, classes, (batch, 5, 3))
    labels[rng.random(labels.shape) < 0.2] = 255
    return predicted, labels, rng.random(labels.shape) < 0.8


def measures_numpy(predicted, labels, keep, classes):
    """Section 5 of the paper, class by class."""
    predicted, labels = predicted[keep], labels[keep]
    ious, recalls, weighted = [], [], 0.0
    for c in range(classes):
        hit = np.sum((predicted == c) & (labels == c))
        union = np.sum((predicted == c) | (labels == c))
        if union:
            ious.append(hit / union)
            weighted += np.sum(labels == c) * hit / union
        if np.any(labels == c):
            recalls.append(hit / np.sum(labels == c))
    return {
        "mean_iou": np.mean(ious),
        "pixel_accuracy": np.mean(predicted == labels),
        "mean_accuracy": np.mean(recalls),
        "weighted_iou": weighted / len(labels),
    }


@pytest.mark.parametrize("dtype", [np.int32, np.uint8])
def test_the_matrix_is_a_count(rng, dtype):
    predicted, labels, mask = draw(rng)
    predicted[0, 0] = 9
    expected = np.zeros((5, 5), int)
    for p, l, m in zip(predicted.flat, labels.flat, mask.flat, strict=True):
        expected[min(l, 4), min(p, 4)] += m
    matrix = jax.jit(confusion_matrix, static_argnums=2)
    actual = matrix(predicted.astype(dtype), labels.astype(dtype), 4, mask)
    assert actual.dtype == jnp.uint32
    chex.assert_trees_all_equal(np.asarray(actual, int), expected)


def test_measures_match_the_paper(rng):
    predicted, labels, mask = draw(rng)
    labels[labels == 2] = 0
    predicted[predicted == 2] = 0  # class 2 is nowhere
    metric = mean_iou(4, class_names=["a", "b", "c", "d"])
    update, total = jax.jit(metric.update), metric.init()
    for part in (slice(0, 2), slice(2, 6)):
        batch = {"label": labels[part], "mask": mask[part]}
        total = update(total, predicted[part], batch)
    values = metric.compute(total)
    assert np.isnan(values["iou/c"])
    keep = mask & (labels != 255)
    for name, expected in measures_numpy(predicted, labels, keep, 4).items():
        assert values[name] == pytest.approx(expected), name
    hit = np.sum((predicted == 3) & (labels == 3) & keep)
    assert values["iou/d"] == pytest.approx(
        hit / np.sum(((predicted == 3) | (labels == 3)) & keep)
    )


def test_samples_can_be_masked(rng):
    predicted, labels, _ = draw(rng)
    metric = mean_iou(4)
    mask = np.arange(6) < 4
    labels[4:] = 77
    whole = metric.update(metric.init(), predicted, {"label": labels, "mask": mask})
    few = metric.update(metric.init(), predicted[:4], {"label": labels[:4]})
    chex.assert_trees_all_equal(whole, few)


def test_devices_add_up(rng):
    predicted, labels, mask = draw(rng, 16)
    metric = mean_iou(4)

    def part(predicted, labels, mask):
        batch = {"label": labels, "mask": mask}
        return psum(metric.update(metric.init(), predicted, batch), "data")

    sharded = jax.shard_map(
        part, mesh=data_mesh(), in_specs=(P("data"),) * 3, out_specs=P()
    )
    whole = metric.update(metric.init(), predicted, {"label": labels, "mask": mask})
    chex.assert_trees_all_equal(jax.jit(sharded)(predicted, labels, mask), whole)


def test_right_is_one_and_nothing_ignored_counts():
    metric = mean_iou(2)
    labels = jnp.array([[0, 1, 255, 255]])
    total = metric.update(metric.init(), jnp.array([[0, 1, 0, 1]]), {"label": labels})
    assert set(metric.compute(total).values()) == {1.0}


def test_outputs_may_be_more_than_labels():
    metric = mean_iou(2, label="y", predicted=lambda outputs: outputs["classes"])
    outputs = {"classes": jnp.array([[0, 1]])}
    total = metric.update(metric.init(), outputs, {"y": jnp.array([[0, 0]])})
    assert metric.compute(total)["pixel_accuracy"] == 0.5


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="must name 3 classes, got 1"):
        mean_iou(3, class_names=["a"])
    with pytest.raises(ValueError, match="must have one shape"):
        confusion_matrix(jnp.zeros((2, 3), int), jnp.zeros((2, 4), int), 2)
    metric = mean_iou(3)
    with pytest.raises(ValueError, match="must count a pixel"):
        metric.compute(metric.init())
    wrong = {"label": jnp.array([[0, 3, 254]])}
    with pytest.raises(
        ValueError, match="must be 0 to 2 or 255, got 2 that are neither"
    ):
        metric.compute(metric.update(metric.init(), jnp.zeros((1, 3), int), wrong))
