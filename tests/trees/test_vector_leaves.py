"""Vector leaves against Newton's step in NumPy, and what they learn."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.trees.objectives import Objective, non_crossing, objective
from jaxml.trees.rule import newton
from jaxml.trees.tree import leaf_index
from jaxml.trees.vector_leaves import channels_of, newton_diagonal, newton_whole
from jaxml.trees.xgboost import Config, fit, predict

KEY = jax.random.key(0)
CLASSES = Config(
    objective="multi:softprob",
    num_class=3,
    multi_strategy="multi_output_tree",
    max_depth=2,
    num_boost_round=1,
    max_bin=16,
    eta=1.0,
)


def problem(rng, n=120):
    x = rng.normal(size=(n, 3)).astype(np.float32)
    return x, ((x[:, 0] > 0).astype(int) + (x[:, 1] > 0)).astype(np.float32)


def sums_of(rng, outputs):
    g = rng.normal(size=(9, outputs)).astype(np.float32)
    root = rng.normal(size=(9, outputs, outputs)).astype(np.float32)
    return g, np.einsum("nij,nkj->nik", root, root).astype(np.float32)


@pytest.mark.parametrize("outputs", [1, 2, 4])
def test_the_rules_are_newtons_step(rng, outputs):
    g, H = sums_of(rng, outputs)
    G, whole = g.sum(axis=0), H.sum(axis=0)
    step = -np.linalg.solve(whole + 0.5 * np.eye(outputs), G)
    sums = channels_of(jnp.asarray(g), jnp.asarray(H)).sum(axis=1)
    rule = newton_whole(outputs, 0.5)
    np.testing.assert_allclose(rule.value(sums), step, rtol=1e-4, atol=1e-5)
    assert float(rule.score(sums)) == pytest.approx(-G @ step, rel=1e-4)
    at = float(rule.score_at(sums, jnp.asarray(step, jnp.float32)))
    assert at == pytest.approx(-G @ step, rel=1e-3)
    h = np.diagonal(H, axis1=1, axis2=2)
    sums = channels_of(jnp.asarray(g), jnp.asarray(h)).sum(axis=1)
    rule, lone = newton_diagonal(outputs, 0.5), -G / (h.sum(axis=0) + 0.5)
    np.testing.assert_allclose(rule.value(sums), lone, rtol=1e-5)
    assert float(rule.score(sums)) == pytest.approx(-G @ lone, rel=1e-5)
    assert float(rule.cover_of(sums)) == pytest.approx(h.sum(axis=0).mean(), rel=1e-5)
    assert bool(rule.admits(sums)) == (h.sum(axis=0).mean() >= 1)


def test_what_cannot_be_solved_stays_put():
    sums = jnp.array([-1.0, 0.0, 3.0, 2.0, 0.0, 0.0])  # no curvature in the first
    value = newton_whole(2, 0.0).value(sums)
    np.testing.assert_allclose(value, [0.0, -1.5])


def test_a_pivot_that_is_not_positive_leaves_its_output_alone():
    # H = [[1, 2, 0], [2, 1, 1], [0, 1, 4]]: the second pivot is 1 - 2 * 2.
    sums = jnp.array([3.0, 1.0, 5.0, 1.0, -8.0, 4.0, 2.0, 0.0, 0.0, 0.0, 1.0, 0.0])
    value = newton_whole(3, 0.0).value(sums)
    np.testing.assert_allclose(value, [-3.0, 0.0, 2.0])
    # H = [[0, 2], [2, 1]]: the first one, whose column must not reach the second.
    sums = jnp.array([3.0, 0.0, 5.0, 1.0, 2.0, 0.0])
    np.testing.assert_allclose(newton_whole(2, 0.0).value(sums), [0.0, -5.0])


def test_diagonal_leaves_are_those_of_every_output(rng):
    one = newton(0.5, 0.3, 0.8, 0.0)
    many = newton_diagonal(3, 0.5, 0.3, 0.8)
    sums = jnp.asarray(np.abs(rng.normal(size=(6, 40))) * 3, jnp.float32)
    sums = sums.at[::2].multiply(jnp.asarray(rng.choice([-1, 1], (3, 40)), jnp.float32))
    w = jnp.asarray(rng.normal(size=(3, 40)), jnp.float32)
    each = [sums[2 * k : 2 * k + 2] for k in range(3)]
    expected = np.stack([one.value(part)[0] for part in each])
    assert (expected == 0).any()
    assert (np.abs(expected) == np.float32(0.8)).any()
    np.testing.assert_allclose(many.value(sums), expected, rtol=1e-6)
    total = sum(one.score(part) for part in each)
    np.testing.assert_allclose(many.score(sums), total, rtol=1e-5)
    total = sum(one.score_at(part, w[k : k + 1]) for k, part in enumerate(each))
    np.testing.assert_allclose(many.score_at(sums, w), total, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rule", [newton_diagonal, newton_whole])
def test_the_mean_hessian_decides_what_is_heavy_enough(rule):
    h = [(0.0, 0.0), (1.0, 3.0), (1.0, 2.9)]
    sums = jnp.array([[1.0, a, 1.0, b, 0.0, 0.0] for a, b in h]).T
    sums = sums[:4] if rule is newton_diagonal else sums
    heavy = rule(2, min_child_weight=2.0).admits(sums)
    assert heavy.tolist() == [False, True, False]
    assert rule(2, min_child_weight=0.0).admits(sums).tolist() == [False, True, True]


@pytest.mark.parametrize("whole", [False, True])
def test_leaves_hold_the_step_of_their_rows(rng, whole):
    x, y = problem(rng)
    model = fit(x, y, dataclasses.replace(CLASSES, whole_hessian=whole), KEY)
    assert model.trees.value.shape == (1, 7, 3)
    tree = jax.tree.map(lambda a: a[0], model.trees)
    leaf = np.asarray(leaf_index(tree, x))
    assert len(set(leaf)) == 4
    goal = objective("multi:softprob", num_class=3)
    margin = jnp.broadcast_to(model.start[None], (len(y), 3))
    g, h = map(np.asarray, goal.derivatives(margin, jnp.asarray(y)))
    H = 2 * np.asarray(goal.hessian(margin, jnp.asarray(y)))
    for node in set(leaf):
        rows = leaf == node
        G = g[rows].sum(axis=0)
        if whole:
            step = -np.linalg.solve(H[rows].sum(axis=0) + np.eye(3), G)
        else:
            step = -G / (h[rows].sum(axis=0) + 1)
        np.testing.assert_allclose(tree.value[node], step, rtol=1e-3, atol=1e-4)
        told = predict(model, x[rows], output_margin=True)[0]
        np.testing.assert_allclose(told, model.start + step, rtol=1e-3, atol=1e-4)


def test_any_vector_loss_is_boosted(rng):
    x, _ = problem(rng)
    y = np.stack((x[:, 0], x[:, 0] + x[:, 1]), axis=1)
    pull = jnp.array([[1.0, 0.8], [0.8, 1.0]])
    goal = Objective(lambda m, y: 0.5 * (m - y) @ pull @ (m - y), outputs=2)
    config = dataclasses.replace(
        CLASSES, objective=goal, whole_hessian=True, num_boost_round=8, eta=0.5
    )
    model = fit(x, y, config, KEY, evaluation=(x, y))
    losses = np.asarray(model.losses)
    assert losses[-1] < 0.3 * losses[0]
    error = np.mean((np.asarray(predict(model, x)) - y) ** 2, axis=0)
    assert (error < 0.4 * y.var(axis=0)).all()


def test_quantiles_do_not_cross(rng):
    x = rng.uniform(-1, 1, (300, 2)).astype(np.float32)
    y = (rng.normal(size=300) * (0.2 + np.abs(x[:, 0]))).astype(np.float32)
    alphas = (0.3, 0.45, 0.5, 0.55, 0.7)
    config = dataclasses.replace(
        CLASSES, objective="reg:quantileerror", quantile_alpha=alphas, max_depth=3
    )
    config = dataclasses.replace(
        config, num_boost_round=6, multi_strategy="one_output_per_tree"
    )
    free = np.asarray(predict(fit(x, y, config, KEY), x))
    assert (np.diff(free, axis=1) < 0).any()
    ordered = dataclasses.replace(config, objective=non_crossing(alphas))
    told = np.asarray(predict(fit(x, y, ordered, KEY), x))
    assert (np.diff(told, axis=1) >= 0).all()
    both = dataclasses.replace(ordered, multi_strategy="multi_output_tree")
    told = np.asarray(predict(fit(x, y, both, KEY), x))
    assert (np.diff(told, axis=1) >= 0).all()
    share = (y[:, None] <= told).mean(axis=0)
    np.testing.assert_allclose(share, alphas, atol=0.06)

    def loss(q):
        error = y[:, None] - q
        return np.maximum(error * alphas, error * (np.array(alphas) - 1)).sum()

    assert loss(np.sort(free, axis=1)) <= loss(free)
    with pytest.raises(ValueError, match="must ascend"):
        non_crossing((0.5, 0.1))


def test_bad_vector_leaves_are_told(rng):
    x, y = problem(rng, 16)
    for change, message in (
        ({"booster": "dart"}, "must be of gbtree"),
        ({"monotone_constraints": (1, 0, 0)}, "not monotone"),
        (
            {"multi_strategy": "one_output_per_tree", "whole_hessian": True},
            "must come with",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            fit(x, y, dataclasses.replace(CLASSES, **change), KEY)
