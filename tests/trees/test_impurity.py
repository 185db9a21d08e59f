"""Impurities against their definitions, in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.trees.impurity import impurity
from jaxml.trees.search import Least, admits


def risk(name, y, w):
    """Weight times impurity of one node."""
    if name in ("gini", "entropy"):
        p = np.bincount(y, w, minlength=3) / w.sum()
        p = p[p > 0]
        each = 1 - (p**2).sum() if name == "gini" else -(p * np.log2(p)).sum()
        return w.sum() * each
    mean = (w @ y) / w.sum()
    if name == "poisson":
        return (w * (y * np.log(y / mean))).sum()
    return (w * (y - mean) ** 2).sum()


def sums(name, y, w):
    if name in ("gini", "entropy"):
        return np.bincount(y, w, minlength=3)
    return np.array([w @ y, w.sum()])


@pytest.mark.parametrize("name", ["gini", "entropy", "squared_error", "poisson"])
def test_gains_are_risks_taken_away(name, rng):
    y = rng.integers(0, 3, 20)
    y = y if name in ("gini", "entropy") else y + 0.5
    w = rng.uniform(0.5, 2, 20)
    rule, weight, pure, _ = impurity(name, num_classes=3)
    parts = slice(8), slice(8, None), slice(None)
    with jax.enable_x64(True):
        totals = [jnp.asarray(sums(name, y[p], w[p])) for p in parts]
        left, right, whole = (float(rule.score(t)) for t in totals)
        best = float(rule.score_at(totals[2], rule.value(totals[2])))
        worse = float(rule.score_at(totals[2], rule.value(totals[0])))
        assert float(weight(totals[2])) == pytest.approx(w.sum())
    if pure is not None:
        assert not pure(totals[2])
        assert pure(jnp.array([0.0, 3.0, 0.0]))
    risks = [risk(name, y[p], w[p]) for p in parts]
    assert left + right - whole == pytest.approx(risks[2] - risks[0] - risks[1])
    assert best == pytest.approx(whole, rel=1e-6)  # the value is the best there is
    assert worse < best


def test_outputs_are_averaged(rng):
    first, second = rng.uniform(1, 5, (2, 3))
    one = impurity("gini", num_classes=3).rule
    both = impurity("gini", outputs=2, num_classes=3).rule
    second *= first.sum() / second.sum()
    mean = (one.score(jnp.asarray(first)) + one.score(jnp.asarray(second))) / 2
    joined = jnp.concatenate([first, second])
    assert both.score(joined) == pytest.approx(float(mean), rel=1e-6)
    assert both.value(joined).reshape(2, 3).sum(axis=1) == pytest.approx(1, rel=1e-6)


def test_children_must_have_weight():
    least = Least(jnp.int32(1), jnp.float32(2))
    numbers, classes = impurity("squared_error"), impurity("gini", num_classes=2)
    totals = jnp.array([[1.0, 1.0, 1.0], [0.0, 1.9, 2.0]])
    assert admits(numbers, totals, least).tolist() == [False, False, True]
    assert numbers.rule.admits(totals).tolist() == [False, True, True]
    totals = jnp.array([[0.0, 1.0, 1.0], [0.0, 0.9, 1.0]])
    assert admits(classes, totals, least).tolist() == [False, False, True]
    assert classes.rule.admits(totals).tolist() == [False, True, True]
    rule = impurity("poisson").rule
    totals = jnp.array([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [3.0, 3.0, 3.0]])
    assert rule.admits(totals[1:]).tolist() == [True, False, True]
    assert rule.admits(totals).tolist() == [False, False, True]


def test_a_node_is_pure_where_all_targets_are():
    pure = impurity("gini", outputs=2, num_classes=2).pure
    assert pure is not None
    totals = jnp.array([[3.0, 3.0], [0.0, 0.0], [1.0, 0.0], [2.0, 3.0]])
    assert pure(totals).tolist() == [False, True]
