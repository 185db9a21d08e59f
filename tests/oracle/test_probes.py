"""Probes and accuracies against scikit-learn and lightly."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    jaccard_score,
    top_k_accuracy_score,
)
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from jaxml.metrics import (
    confusion,
    fit_linear_probe,
    knn_predict,
    linear_probe_logits,
    top_k_accuracy,
)

pytestmark = pytest.mark.oracle


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    x = x.astype(np.float32)
    return x[:1400], y[:1400], x[1400:], y[1400:]


@pytest.mark.parametrize("temperature", [0.07, 0.5, None])
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_knn_predicts_what_scikit_learn_does(digits, temperature, distance):
    x, y, test_x, _ = digits
    if distance == "euclidean":
        x, test_x = x / 16, test_x / 16

    def weigh(d):
        """From scikit-learn's distances: 1 - cos, or the Euclidean one."""
        exponent = -d if distance == "cosine" else -(d**2) / 2
        return np.exp(exponent / temperature)

    theirs = KNeighborsClassifier(
        n_neighbors=30,
        metric=distance,
        algorithm="brute",
        weights="uniform" if temperature is None else weigh,
    ).fit(x.astype(np.float64), y)
    expected = theirs.predict(test_x.astype(np.float64))
    actual = knn_predict(x, y, test_x, k=30, temperature=temperature, distance=distance)
    # Pixels are integers, so that neighbours at one distance are many.
    assert np.mean(actual == expected) >= (0.99 if temperature is None else 0.997)


def test_knn_predicts_what_lightly_does(rng):
    torch = pytest.importorskip("torch", reason="needs torch")
    knn = pytest.importorskip("lightly.utils.benchmarking.knn", reason="needs lightly")
    y = rng.integers(0, 7, 500)
    centres = 0.5 * rng.normal(size=(7, 16))
    x, test_x = (
        (centres[labels] + rng.normal(size=(len(labels), 16))).astype(np.float32)
        for labels in (y, rng.integers(0, 7, 200))
    )
    unit = lambda a: torch.nn.functional.normalize(torch.tensor(a), dim=1)
    theirs = knn.knn_predict(
        unit(test_x), unit(x).T, torch.tensor(y), num_classes=7, knn_k=200, knn_t=0.1
    )
    actual = knn_predict(x, y, test_x, k=200, temperature=0.1)
    np.testing.assert_array_equal(actual, theirs[:, 0].numpy())


def loss_numpy(logits, labels):
    top = logits.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0]
    return np.mean(log_sum - logits[np.arange(len(labels)), labels])


@pytest.mark.parametrize("C", [0.01, 1.0, 10.0])
def test_the_linear_probe_is_scikit_learns_regression(digits, C):
    x, y, test_x, _ = digits
    scaler = StandardScaler().fit(x.astype(np.float64))
    z, test_z = (scaler.transform(a.astype(np.float64)) for a in (x, test_x))
    theirs = LogisticRegression(C=C, tol=1e-8, max_iter=5000).fit(z, y)
    l2 = 1 / (C * len(x))
    ours = fit_linear_probe(x, y, l2=l2)
    weight = np.asarray(ours.weight, np.float64)
    value = loss_numpy(z @ weight + np.asarray(ours.bias), y) + l2 / 2 * np.sum(
        weight**2
    )
    best = loss_numpy(theirs.decision_function(z), y) + l2 / 2 * np.sum(theirs.coef_**2)
    assert value == pytest.approx(best, rel=1e-4)
    guesses = np.argmax(linear_probe_logits(ours, test_x), axis=1)
    assert np.sum(guesses != theirs.predict(test_z)) <= 1


def test_two_classes_share_the_penalty(digits):
    x, y, _, _ = digits
    x, y = x[y < 2][:150], y[y < 2][:150]
    scaler = StandardScaler().fit(x.astype(np.float64))
    theirs = LogisticRegression(C=0.05, tol=1e-10, max_iter=5000)
    theirs.fit(scaler.transform(x.astype(np.float64)), y)
    ours = fit_linear_probe(x, y, l2=2 / (0.05 * len(x)))
    difference = ours.weight[:, 1] - ours.weight[:, 0]
    np.testing.assert_allclose(difference, theirs.coef_[0], atol=1e-4)


def test_accuracies_are_scikit_learns(rng):
    logits = rng.normal(size=(300, 6)).astype(np.float32)
    labels = rng.integers(0, 6, 300)
    logits[np.arange(300), labels] += 1
    for k in (1, 3):
        metric = top_k_accuracy(k)
        total = metric.update(metric.init(), logits, {"label": labels})
        (actual,) = metric.compute(total).values()
        assert actual == pytest.approx(top_k_accuracy_score(labels, logits, k=k))
    metric, guesses = confusion(6), logits.argmax(axis=1)
    matrix = metric.update(metric.init(), logits, {"label": labels})
    np.testing.assert_array_equal(matrix[:6, :6], confusion_matrix(labels, guesses))
    assert metric.compute(matrix) == pytest.approx(
        {
            "accuracy": np.mean(guesses == labels),
            "balanced_accuracy": balanced_accuracy_score(labels, guesses),
            "macro_f1": f1_score(labels, guesses, average="macro"),
            "mean_iou": jaccard_score(labels, guesses, average="macro"),
        }
    )
