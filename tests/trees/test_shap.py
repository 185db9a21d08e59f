"""TreeSHAP against the definition: all 2^F sets of features, in float64."""

from dataclasses import replace
from itertools import combinations
from math import factorial

import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.trees.model import Model
from jaxml.trees.model_files import no_trees
from jaxml.trees.objectives import objective
from jaxml.trees.shap import shap_values
from jaxml.trees.tree import stack
from jaxml.trees.xgboost import predict
from tests.trees.test_tree import random_tree

COLUMNS = 4


def covered(tree, rng):
    """The same tree with covers that add up."""
    cover = np.zeros(len(tree.left))
    for node in reversed(range(len(tree.left))):
        first = tree.left[node]
        cover[node] = cover[first : first + 2].sum() if first else rng.uniform(0.5, 5)
    return tree._replace(cover=cover.astype(np.float32))


def expectation(tree, row, known, node=0):
    """The value of the tree where only `known` features are known."""
    first = int(tree.left[node])
    if not first:
        return float(tree.value[node, 0])
    if tree.feature[node] not in known:
        parts = tree.cover[first : first + 2].astype(np.float64)
        told = [expectation(tree, row, known, first + i) for i in (0, 1)]
        return float(parts @ told / parts.sum())
    value, chosen = row[tree.feature[node]], tree.categories[node]
    if np.isnan(value):
        left = tree.default_left[node]
    elif chosen.any():
        inside = 0 <= value < 32 * len(chosen)
        code = int(value) if inside else 0
        left = not (inside and chosen[code // 32] >> (code % 32) & 1)
    else:
        left = value < tree.threshold[node]
    return expectation(tree, row, known, first + (0 if left else 1))


def brute_force(tree, row):
    phi = np.zeros(COLUMNS + 1)
    for i in range(COLUMNS):
        others = [j for j in range(COLUMNS) if j != i]
        for size in range(COLUMNS):
            share = factorial(size) * factorial(COLUMNS - size - 1) / factorial(COLUMNS)
            for known in combinations(others, size):
                with_i = expectation(tree, row, {*known, i})
                phi[i] += share * (with_i - expectation(tree, row, set(known)))
    phi[-1] = expectation(tree, row, set())
    return phi


def forest(trees, outputs=1, weight=None):
    goal = (
        objective("multi:softprob", num_class=outputs)
        if outputs > 1
        else (objective("reg:squarederror"))
    )
    return Model(
        trees=stack(trees),
        group=jnp.arange(len(trees), dtype=jnp.int32) % outputs,
        weight=jnp.ones(len(trees)) if weight is None else jnp.asarray(weight),
        start=jnp.arange(1.0, outputs + 1),
        base_score=jnp.zeros(outputs),
        eta=jnp.float32(1),
        losses=jnp.full(len(trees) // outputs, jnp.nan),
        objective=goal,
        num_features=COLUMNS,
        trees_per_round=outputs,
    )


def rows(rng, n=6, words=0):
    x = rng.normal(size=(n, COLUMNS)).astype(np.float32)
    x = np.round(np.abs(x) * 30) - 2 if words else x
    x[rng.random(x.shape) < 0.2] = np.nan
    return x


@pytest.mark.parametrize(("words", "columns"), [(0, 4), (2, 4), (0, 3)])
def test_values_are_shapley_values(rng, words, columns):
    for _ in range(3):  # of 15 nodes and few features: paths meet a feature again
        tree = covered(random_tree(rng, 15, columns, words), rng)
        x = rows(rng, words=words)
        for row, node in zip(x, range(3), strict=False):  # on thresholds themselves
            row[tree.feature[node]] = tree.threshold[node]
        actual = np.asarray(shap_values(forest([tree]), x))[:, 0]
        expected = np.array([brute_force(tree, row) for row in x])
        expected[:, -1] += 1  # the start
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=2e-6)


def test_deep_trees_stay_exact(rng):
    """A chain of 24 splits: every feature is met six times."""
    nodes = 49
    tree = random_tree(rng, nodes, COLUMNS)
    left = np.zeros(nodes, np.int32)
    left[0], left[2:-1:2] = 1, np.arange(3, nodes, 2)
    tree = covered(tree._replace(left=left), rng)
    x = rows(rng)
    actual = np.asarray(shap_values(forest([tree]), x))[:, 0, :-1]
    expected = np.array([brute_force(tree, row) for row in x])[:, :-1]
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=2e-6)


def test_contributions_add_up_to_the_margins(rng):
    trees = [covered(random_tree(rng, n, COLUMNS), rng) for n in (15, 1, 7, 31, 3, 15)]
    model = forest(trees, outputs=3, weight=rng.random(6).astype(np.float32))
    x = rows(rng, 300)  # more than a block
    phi = np.asarray(shap_values(model, x))
    assert phi.shape == (300, 3, COLUMNS + 1)
    margin = np.asarray(predict(model, x, output_margin=True))
    np.testing.assert_allclose(phi.sum(axis=2), margin, rtol=1e-4, atol=1e-5)
    assert np.ptp(phi[:, :, -1], axis=0).max() < 1e-5


def test_a_feature_that_no_tree_reads_has_no_part(rng):
    tree = covered(random_tree(rng, 15, 2), rng)
    phi = shap_values(forest([tree]), rows(rng))
    assert not np.asarray(phi)[:, 0, 2:4].any()


def test_linear_models_add_up_too(rng):
    weights = rng.normal(size=(COLUMNS + 1, 2)).astype(np.float32)
    model = no_trees(
        linear=jnp.asarray(weights),
        losses=jnp.zeros(0),
        start=jnp.array([0.5, -1.0]),
        base_score=jnp.zeros(2),
        eta=jnp.float32(1),
        objective=objective("multi:softprob", num_class=2),
        num_features=COLUMNS,
        booster="gblinear",
    )
    x = rows(rng)
    phi = np.asarray(shap_values(model, x))
    expected = np.nan_to_num(x)[:, None, :] * weights[:-1].T
    np.testing.assert_allclose(phi[:, :, :-1], expected, rtol=1e-6)
    margin = predict(model, x, output_margin=True)
    np.testing.assert_allclose(phi.sum(axis=2), margin, rtol=1e-5, atol=1e-6)


def test_rounds_behind_the_best_are_left_out(rng):
    trees = [covered(random_tree(rng), rng) for _ in range(3)]
    model = replace(forest(trees), best_iteration=1)
    x = rows(rng)
    expected = shap_values(forest(trees[:2]), x)
    np.testing.assert_allclose(shap_values(model, x), expected, rtol=1e-6)


def test_without_covers_both_sides_count_alike(rng):
    tree = random_tree(rng, 3)
    x = rows(rng)
    found = [
        shap_values(forest([tree._replace(cover=np.full(3, c, np.float32))]), x)
        for c in (0, 1)
    ]
    assert np.asarray(found[0])[:, 0, -1].std() == 0
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)


def test_leaves_of_vectors_are_refused(rng):
    model = forest([random_tree(rng)])
    value = jnp.repeat(model.trees.value, 2, axis=-1)
    model = replace(model, trees=model.trees._replace(value=value))
    with pytest.raises(ValueError, match="one output each"):
        shap_values(model, rows(rng))


def test_a_wrong_width_is_told(rng):
    model = forest([covered(random_tree(rng), rng)])
    with pytest.raises(ValueError, match=r"\[rows, 4\], got \(3, 5\)"):
        shap_values(model, np.zeros((3, 5), np.float32))
