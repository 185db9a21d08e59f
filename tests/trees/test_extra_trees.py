"""Extremely randomized trees: their thresholds, and their accuracy beside scikit-learn."""

import jax
import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import ExtraTreesClassifier

from jaxml.trees import cart
from jaxml.trees.extra_trees import config, fit, predict

KEY = jax.random.key(0)


def test_held_out_accuracy_is_that_of_scikit_learn():
    x, y = load_breast_cancer(return_X_y=True)
    x = x.astype(np.float32)
    order = np.random.default_rng(0).permutation(len(x))
    inside, outside = order[:400], order[400:]
    forest = fit(x[inside], y[inside], config(num_trees=40), KEY)
    score = np.mean(predict(forest, x[outside]) == y[outside])
    peers = [ExtraTreesClassifier(40, random_state=seed) for seed in range(3)]
    theirs = [p.fit(x[inside], y[inside]).score(x[outside], y[outside]) for p in peers]
    assert score == pytest.approx(np.mean(theirs), abs=0.03)
    assert (predict(forest, x[inside]) == y[inside]).all()  # no bootstrap: all seen


def test_thresholds_are_uniform_between_the_extremes():
    x = np.linspace(0, 1, 64, dtype=np.float32)[:, None]
    y = (x[:, 0] > 0.5).astype(int)
    tree = cart.Config(max_depth=1, num_classes=2)
    forest = fit(x, y, config(tree, num_trees=400), KEY)
    cut = np.asarray(forest.tree.threshold[:, 0])
    assert (cut > 0).all()
    assert (cut <= 1).all()
    quarters = np.histogram(cut, bins=4, range=(0, 1))[0] / 400
    assert quarters == pytest.approx(0.25, abs=0.08)


def test_the_splitter_must_be_random():
    best = config()
    best = type(best)(cart.Config(), 2)
    with pytest.raises(ValueError, match="splitter must be 'random'"):
        fit(np.ones((4, 1), np.float32), np.arange(4) % 2, best, KEY)
