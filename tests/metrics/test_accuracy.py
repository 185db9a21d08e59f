"""Accuracy and the confusion matrix against plain counting."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.metrics import confusion, top_k_accuracy, top_k_correct


def correct_numpy(logits, labels, k):
    """Sorts each row, ties by class number, and looks among the first k."""
    right = []
    for row, label in zip(logits, labels, strict=True):
        order = sorted(range(len(row)), key=lambda c: (-row[c], c))
        right.append(label in order[:k] and not np.isnan(row).any())
    return np.array(right)


@pytest.mark.parametrize("batch, classes", [(1, 1), (9, 3), (40, 10)])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_top_k_matches_sorting(rng, batch, classes, k):
    k = min(k, classes)
    logits = rng.integers(-2, 3, size=(batch, classes)).astype(np.float32)  # many ties
    labels = rng.integers(0, classes, batch)
    actual = jax.jit(top_k_correct, static_argnames="k")(logits, labels, k=k)
    chex.assert_trees_all_equal(np.asarray(actual), correct_numpy(logits, labels, k))


def test_a_constant_answer_scores_chance():
    labels = jnp.arange(10)
    for value in (0.0, -jnp.inf, jnp.inf):
        right = top_k_correct(jnp.full((10, 10), value), labels)
        chex.assert_trees_all_equal(right, labels == 0)


def test_nan_anywhere_in_a_row_is_wrong():
    logits = jnp.array([[9.0, 0.0], [9.0, jnp.nan], [jnp.nan, 0.0], [jnp.nan] * 2])
    labels = jnp.zeros(4, int)
    assert top_k_correct(logits, labels).tolist() == [True, False, False, False]
    assert top_k_correct(logits, labels, k=2).tolist() == [True, False, False, False]


@pytest.mark.parametrize("label", [-1, 3, 255])
def test_a_label_that_is_no_class_is_wrong(label):
    assert not top_k_correct(jnp.zeros((1, 3)), jnp.array([label]), k=3)[0]


def test_any_monotone_map_keeps_the_ranking(rng):
    logits = jnp.asarray(rng.normal(size=(30, 7)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 7, 30))
    for k in (1, 3):
        expected = top_k_correct(logits, labels, k)
        chex.assert_trees_all_equal(top_k_correct(jnp.exp(logits), labels, k), expected)


def test_renaming_the_classes_changes_nothing(rng):
    logits = rng.normal(size=(30, 7)).astype(np.float32)
    labels, order = rng.integers(0, 7, 30), rng.permutation(7)
    renamed = np.argsort(order)[labels]
    chex.assert_trees_all_equal(
        top_k_correct(logits[:, order], renamed, 2), top_k_correct(logits, labels, 2)
    )


@pytest.mark.parametrize("k", [0, 4])
def test_k_must_be_a_number_of_classes(k):
    with pytest.raises(ValueError, match=rf"k must be in \[1, 3 classes\], got {k}"):
        top_k_correct(jnp.zeros((2, 3)), jnp.zeros(2, int), k)


def test_labels_of_another_shape_are_an_error():
    with pytest.raises((ValueError, TypeError)):
        top_k_correct(jnp.zeros((4, 3)), jnp.zeros(3, int))


def test_the_metric_must_guess_at_least_once():
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        top_k_accuracy(0)


def test_accuracy_leaves_padding_out(rng):
    logits = rng.normal(size=(12, 5)).astype(np.float32)
    labels, mask = rng.integers(0, 5, 12), np.arange(12) < 9
    logits[9:], labels[9:] = np.nan, -7
    for k, name in ((1, "accuracy"), (2, "top_2_accuracy")):
        metric = top_k_accuracy(k, label="y", logits=lambda outputs: outputs["scores"])
        batch = {"y": labels, "mask": mask}
        total = jax.jit(metric.update)(metric.init(), {"scores": logits}, batch)
        expected = correct_numpy(logits[:9], labels[:9], k).mean()
        assert metric.compute(total) == {name: pytest.approx(expected)}


def test_pixels_count_alike(rng):
    logits = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    labels = rng.integers(0, 5, (2, 3, 4))
    mask = rng.random((2, 3, 4)) < 0.5
    metric = top_k_accuracy()
    total = metric.update(metric.init(), logits, {"label": labels, "mask": mask})
    expected = (logits.argmax(-1) == labels)[mask].mean()
    assert metric.compute(total)["accuracy"] == pytest.approx(expected)


def matrix_numpy(logits, labels, keep, classes):
    counts = np.zeros((classes + 1, classes + 1), np.uint32)
    for row, label, k in zip(logits, labels, keep, strict=True):
        guess = classes if np.isnan(row).any() else int(row.argmax())
        true = label if 0 <= label < classes else classes
        counts[true, guess] += k
    return counts


def test_the_matrix_matches_counting(rng):
    logits = rng.normal(size=(60, 4)).astype(np.float32)
    logits[::7] = np.nan
    labels, keep = rng.integers(-1, 6, 60), rng.random(60) < 0.8
    metric = confusion(4)
    update, total = jax.jit(metric.update), metric.init()
    for part in np.split(np.arange(60), [10, 30]):
        batch = {"label": labels[part], "mask": keep[part]}
        total = update(total, logits[part], batch)
    expected = matrix_numpy(logits, labels, keep, 4)
    chex.assert_trees_all_equal(np.asarray(total), expected)
    share = np.trace(expected[:4, :4]) / expected.sum()
    assert metric.compute(total)["accuracy"] == pytest.approx(share)


def test_what_is_read_off_the_matrix():
    """True classes a, a, a, b; guesses a, a, b, b; c occurs nowhere."""
    metric = confusion(3, class_names=["a", "b", "c"])
    logits = jax.nn.one_hot(jnp.array([0, 0, 1, 1]), 3)
    total = metric.update(metric.init(), logits, {"label": jnp.array([0, 0, 0, 1])})
    values = metric.compute(total)
    assert np.isnan(values.pop("recall/c"))
    assert values == pytest.approx(
        {
            "accuracy": 3 / 4,
            "balanced_accuracy": (2 / 3 + 1) / 2,
            "macro_f1": (4 / 5 + 2 / 3) / 2,
            "mean_iou": (2 / 3 + 1 / 2) / 2,
            "recall/a": 2 / 3,
            "recall/b": 1.0,
        }
    )


def test_confusion_rejects_what_does_not_fit():
    with pytest.raises(ValueError, match="class_names must name 3 classes, got 1"):
        confusion(3, class_names=["a"])
    metric = confusion(3)
    with pytest.raises(ValueError, match=r"logits must have shape \(2, 3\)"):
        metric.update(metric.init(), jnp.zeros((2, 4)), {"label": jnp.zeros(2, int)})
    with pytest.raises(ValueError, match="must count a sample"):
        metric.compute(metric.init())
