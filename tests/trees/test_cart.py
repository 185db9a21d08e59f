"""CART against scikit-learn: the same nodes where gains do not tie, and the same paths."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from jaxml.trees import cart
from jaxml.trees.table import table

KEY = jax.random.key(0)
ROWS = 64


def problem(seed=0, missing=0.0):
    """Features without ties, numbers and classes."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(ROWS, 5)).astype(np.float32)
    number = (x[:, 0] * x[:, 1] + x[:, 2] + rng.normal(size=ROWS)).astype(np.float32)
    x[rng.random(x.shape) < missing] = np.nan
    return x, number, (number > 0).astype(int) + (number > 1.5)


def peer(config):
    """scikit-learn's tree of the same parameters."""
    chosen = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name not in ("num_classes", "max_bins")
    }
    kind = DecisionTreeClassifier if config.classifies else DecisionTreeRegressor
    return kind(random_state=0, **chosen)


def assert_same_tree(model, theirs):
    """Node by node: columns, thresholds as float32 compares them, covers and gains."""
    tree, other = jax.tree.map(np.asarray, model.tree), theirs.tree_
    weight = other.weighted_n_node_samples
    risk = weight * other.impurity
    todo, met = [(0, 0)], 0
    while todo:
        mine, its = todo.pop()
        met += 1
        first, second = other.children_left[its], other.children_right[its]
        assert (tree.left[mine] == 0) == (first < 0)
        assert tree.cover[mine] == pytest.approx(weight[its], rel=1e-6)
        if first < 0:
            continue
        threshold = np.float32(other.threshold[its])
        if threshold <= other.threshold[its]:
            threshold = np.nextafter(threshold, np.float32(np.inf))
        assert tree.feature[mine] == other.feature[its]
        assert tree.threshold[mine] == threshold
        gain = risk[its] - risk[first] - risk[second]
        assert tree.gain[mine] == pytest.approx(gain, rel=1e-4, abs=1e-4)
        todo += [(tree.left[mine], first), (tree.left[mine] + 1, second)]
    assert met == other.node_count


def assert_same(config, y, x, weights=None, atol=1e-6):
    model = cart.fit(x, y, config, KEY, weights)
    theirs = peer(config).fit(x, y, weights)
    assert_same_tree(model, theirs)
    fresh = np.random.default_rng(9).normal(size=(50, 5)).astype(np.float32)
    if config.classifies:
        told, expected = cart.predict_proba(model, fresh), theirs.predict_proba(fresh)
        assert (cart.predict(model, fresh) == theirs.predict(fresh)).all()
    else:
        told, expected = cart.predict(model, fresh), theirs.predict(fresh)
    np.testing.assert_allclose(told, expected, rtol=1e-5, atol=atol)
    importances = cart.feature_importances(model)
    np.testing.assert_allclose(importances, theirs.feature_importances_, atol=1e-5)
    return model


LEAF = {"min_samples_leaf": 4}
"""Children of four rows or more: below that perfect splits tie."""
GINI = {
    "leaves of four rows": LEAF,
    "shares of rows": {"min_samples_leaf": 0.1, "min_samples_split": 0.4},
    "weight fraction": {**LEAF, "min_weight_fraction_leaf": 0.15},
    "decrease": {**LEAF, "min_impurity_decrease": 0.03},
}


@pytest.mark.parametrize("limits", GINI.values(), ids=GINI)
def test_gini_trees_are_those_of_scikit_learn(limits, rng):
    x, _, label = problem()
    weights = rng.uniform(0.5, 2, ROWS).astype(np.float32)
    weights[:5] = 0
    assert_same(cart.Config(**limits), label, x, weights)


@pytest.mark.parametrize(
    "config",
    [
        cart.Config("entropy", max_depth=3, **LEAF),
        cart.Config("gini", max_leaf_nodes=6, **LEAF),
        cart.Config("gini", ccp_alpha=0.02, **LEAF),
    ],
    ids=["entropy", "best first", "pruned"],
)
def test_trees_of_classes_are_those_of_scikit_learn(config):
    x, _, label = problem(1)
    weights = np.random.default_rng(1).uniform(0.5, 2, ROWS).astype(np.float32)
    assert_same(config, label, x, weights)


def test_trees_of_numbers_are_those_of_scikit_learn():
    x, number, _ = problem(2)
    config = cart.Config("squared_error", **LEAF)
    assert_same(config, number, x)
    path = cart.cost_complexity_path(x, number, config, KEY)
    theirs = peer(config).cost_complexity_pruning_path(x, number)
    np.testing.assert_allclose(path.alpha, theirs.ccp_alphas, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(path.risk, theirs.impurities, rtol=1e-5)


@pytest.mark.parametrize(
    "criterion", ["gini", "entropy", "squared_error", "absolute_error", "poisson"]
)
def test_the_root_is_as_impure_as_in_scikit_learn(criterion, rng):
    x, number, label = problem(3)
    config = cart.Config(criterion, max_depth=1)
    target = label if config.classifies else number - number.min()
    both = np.stack((target, np.roll(target**2, 1)), axis=1)
    weights = rng.uniform(0.5, 2, ROWS).astype(np.float32)
    theirs = peer(config).fit(x, both, weights).tree_.impurity[0]
    ours = cart.root_impurity(table(x, both, config, weights), criterion)
    assert float(ours) == pytest.approx(theirs, rel=1e-4)


def test_poisson_and_absolute_errors_are_those_of_scikit_learn(rng):
    x, number, _ = problem(3)
    assert_same(cart.Config("poisson", **LEAF), np.exp(number), x, atol=1e-4)
    weights = rng.integers(1, 4, ROWS).astype(np.float32)
    assert_same(cart.Config("absolute_error", max_depth=3, **LEAF), number, x, weights)


@pytest.mark.parametrize("missing", [0.2, 0.6])
def test_missing_values_go_where_they_go_in_scikit_learn(missing):
    x, number, _ = problem(4, missing)
    x[:, 4] = np.where(np.isnan(x[:, 4]), 0.1, x[:, 4])
    config = cart.Config("squared_error", max_depth=2, **LEAF)
    model = cart.fit(x, number, config, KEY)
    theirs = peer(config).fit(x, number)
    assert_same_tree(model, theirs)
    np.testing.assert_allclose(cart.predict(model, x), theirs.predict(x), rtol=1e-5)


def test_unpruned_trees_remember_everything():
    """Ties may part the trees, but not what they say of the rows they grew from."""
    x, number, label = problem(5)
    both = np.stack([label, label[::-1]], axis=1)
    model = cart.fit(x, both, cart.Config(), KEY)
    assert (cart.predict(model, x) == both).all()
    shares = cart.predict_proba(model, x)
    assert shares.shape == (ROWS, 2, 3)
    np.testing.assert_allclose(shares.sum(axis=2), 1, rtol=1e-6)
    two = np.stack([number, number**2], axis=1)
    model = cart.fit(x, two, cart.Config("squared_error"), KEY)
    np.testing.assert_allclose(cart.predict(model, x), two, rtol=1e-6)
    chain = np.arange(ROWS, dtype=np.float32)[:, None]
    steps = 2.0 ** np.arange(ROWS).clip(0, 30)
    model = cart.fit(chain, steps, cart.Config("squared_error"), KEY)
    np.testing.assert_allclose(cart.predict(model, chain), steps, rtol=1e-6)


def test_an_exclusive_or_is_learned_though_its_first_split_gains_nothing():
    x = np.array([[0, 0], [0, 1], [1, 0], [1, 1]] * 4, np.float32)
    y = (x[:, 0] != x[:, 1]).astype(int)
    model = cart.fit(x, y, cart.Config(max_depth=2), KEY)
    assert (cart.predict(model, x) == y).all()


def test_the_order_of_rows_changes_nothing(rng):
    x, number, _ = problem(6)
    order = rng.permutation(ROWS)
    config = cart.Config("squared_error")
    one, other = (cart.fit(x[o], number[o], config, KEY) for o in (slice(None), order))
    for mine, its in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert (mine == its).all()


def test_weights_are_copies_and_zero_is_absence(rng):
    x, number, _ = problem(7)
    counts = rng.integers(0, 3, ROWS)
    config = cart.Config("squared_error", max_depth=2, **LEAF)
    copies = np.repeat(np.arange(ROWS), counts)
    free = dataclasses.replace(config, min_samples_leaf=1)
    weighted = cart.fit(x, number, free, KEY, counts.astype(np.float32))
    copied = cart.fit(x[copies], number[copies], free, KEY)
    told = [cart.predict(model, x) for model in (weighted, copied)]
    np.testing.assert_allclose(*told, rtol=1e-5)
    absent = cart.fit(x[counts > 0], number[counts > 0], config, KEY)
    zero = cart.fit(x, number, config, KEY, (counts > 0).astype(np.float32))
    np.testing.assert_allclose(
        cart.predict(absent, x), cart.predict(zero, x), rtol=1e-5
    )


def test_random_thresholds_lie_inside_the_node(rng):
    x, number, _ = problem(8)
    config = cart.Config("squared_error", splitter="random", max_features=3)
    trees = [cart.fit(x, number, config, jax.random.key(i)).tree for i in (0, 1, 0)]
    assert (trees[0].threshold == trees[2].threshold).all()
    assert trees[0].threshold[0] != trees[1].threshold[0]
    column = x[:, int(trees[0].feature[0])]
    assert column.min() < trees[0].threshold[0] <= column.max()
    model = cart.fit(x, number, config, KEY)
    np.testing.assert_allclose(cart.predict(model, x), number, rtol=1e-5, atol=1e-6)


def test_fits_run_under_jit_and_vmap():
    x, number, _ = problem(9)
    config = cart.Config("squared_error", max_depth=2, **LEAF)
    targets = jnp.stack([jnp.asarray(number), -2 * jnp.asarray(number)])
    told = jax.vmap(lambda y: cart.predict(cart.fit(x, y, config, KEY), x))(targets)
    alone = cart.predict(cart.fit(x, number, config, KEY), x)
    np.testing.assert_allclose(told[0], alone, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(told[1], -2 * alone, rtol=1e-5, atol=1e-6)


def test_constant_features_one_class_and_one_row_are_a_leaf():
    x, _, label = problem(10)
    config = cart.Config(num_classes=3, **LEAF)
    for features, labels in ((x * 0, label), (x, label * 0 + 1), (x[:1], label[:1])):
        model = cart.fit(features, labels, config, KEY)
        assert model.tree.left[0] == 0
        shares = np.bincount(labels, minlength=3) / len(labels)
        np.testing.assert_allclose(cart.predict_proba(model, x)[0], shares, rtol=1e-6)


BAD = {
    "x must be finite": {"x": np.full((4, 2), np.inf)},
    r"x must be \[rows, columns\], both": {"x": np.ones((0, 4)), "y": np.ones(0)},
    "y must be finite": {"y": np.array([0, np.nan, 1, 1])},
    "y must be class indices": {"y": np.array([0.5, 0, 1, 1])},
    "y must be numbers": {"y": np.array(list("abcd"))},
    r"y must be \[4\]": {"y": np.zeros(3)},
    "weights must be finite and not neg": {"weights": np.array([1.0, -1, 1, 1])},
    "weights must not all": {"weights": np.zeros(4)},
    "below num_classes": {"config": cart.Config(num_classes=1)},
    "max_features must be": {"config": cart.Config(max_features=3)},
    "min_samples_split must be": {"config": cart.Config(min_samples_split=1)},
    "max_leaf_nodes must be": {"config": cart.Config(max_leaf_nodes=1)},
    "ccp_alpha must be": {"config": cart.Config(ccp_alpha=-1.0)},
    "must have no missing": {
        "x": np.full((4, 2), np.nan),
        "config": cart.Config("absolute_error"),
    },
    "not be negative": {"y": -np.ones(4), "config": cart.Config("poisson")},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_refused(message):
    given = {
        "x": np.ones((4, 2)),
        "y": np.array([0, 1, 0, 1]),
        "config": cart.Config(),
        "key": KEY,
        **BAD[message],
    }
    with pytest.raises(ValueError, match=message):
        cart.fit(**given)


def test_predictions_need_the_width_of_the_fit_and_shares_need_classes():
    x, number, _ = problem()
    config = cart.Config("squared_error", max_depth=2, **LEAF)
    model = cart.fit(x, number, config, KEY)
    with pytest.raises(ValueError, match=r"x must be \[rows, 5\]"):
        cart.predict(model, x[:, :3])
    with pytest.raises(ValueError, match="must be a classifier's"):
        cart.predict_proba(model, x)


def test_small_tables_are_padded_and_large_ones_are_not(rng):
    x, _, label = problem()
    data = table(x[:50], label[:50], cart.Config(), None)
    assert data.x.shape == (64, 8)
    assert float(data.weights.sum()) == data.rows == 50
    assert (data.columns, data.num_classes) == (5, 3)
    y = np.zeros(5000)
    assert table(np.zeros((5000, 3)), y, cart.Config(), None).x.shape == (5000, 3)


def test_of_columns_that_gain_the_same_each_may_win(rng):
    """Three columns alike, and one of noise: the key draws, what is told stays."""
    x = rng.normal(size=(60, 1)).astype(np.float32)
    y = (x[:, 0] > 0).astype(int)
    noise = rng.normal(size=(60, 1)).astype(np.float32)
    alike = np.concatenate((noise, x, x, x), axis=1)
    won = []
    for seed in range(20):
        model = cart.fit(alike, y, cart.Config(), jax.random.key(seed))
        assert (cart.predict(model, alike) == y).all()
        won.append(int(model.tree.feature[0]))
    assert set(won) == {1, 2, 3}
    assert won[:3] == [
        int(cart.fit(alike, y, cart.Config(), jax.random.key(s)).tree.feature[0])
        for s in range(3)
    ]
