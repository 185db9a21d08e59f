"""Bagging: its samples, its variance, and columns that learners do not see."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.trees import cart
from jaxml.trees.bagging import Config, fit, predict, sample
from jaxml.trees.learner import from_pair

KEY = jax.random.key(0)
MEAN = from_pair(
    lambda x, y, key, w: jnp.sum(w * y) / jnp.sum(w),
    lambda model, x: jnp.full(len(x), model),
)


def test_samples_are_of_the_size_asked_for():
    drawn = np.asarray(sample(KEY, 40, 0.5))
    assert drawn.sum() == 20
    assert drawn.max() > 1
    pasted = np.asarray(sample(KEY, 40, 0.5, replace=False))
    assert sorted(set(pasted.tolist())) == [0, 1]
    assert pasted.sum() == 20


def test_means_of_bags_vary_as_bootstrap_means_do(rng):
    y = rng.normal(size=50).astype(np.float32)
    x = np.zeros((50, 1), np.float32)
    model = fit(x, y, MEAN, Config(400), KEY)
    means = np.asarray(model.learners)
    assert means.mean() == pytest.approx(y.mean(), abs=4 * y.std() / np.sqrt(50 * 400))
    assert means.std() == pytest.approx(y.std() / np.sqrt(50), rel=0.15)
    told = predict(model, MEAN, x[:3])
    assert told.tolist() == pytest.approx([means.mean()] * 3, abs=1e-5)


def test_weights_multiply_the_draws(rng):
    y = rng.normal(size=30).astype(np.float32)
    weights = rng.integers(0, 3, 30).astype(np.float32)
    one = Config(1, bootstrap=False)
    model = fit(np.zeros((30, 1)), y, MEAN, one, KEY, weights)
    assert model.learners[0] == pytest.approx(np.average(y, weights=weights), rel=1e-5)


def test_trees_read_only_their_columns_in_any_batches(rng):
    x = rng.normal(size=(60, 4)).astype(np.float32)
    y = (x[:, 0] > 0).astype(int)
    trees = cart.learner(cart.Config(max_depth=2, num_classes=2))
    config = Config(6, max_features=0.5, num_classes=2)
    model = fit(x, y, trees, config, KEY)
    assert model.columns.shape == (6, 2)
    assert (np.diff(model.columns, axis=1) > 0).all()
    assert len({tuple(row) for row in model.columns.tolist()}) > 2
    mute = np.array(x)
    mute[:, [c for c in range(4) if c not in model.columns[0]]] = 9
    one = jax.tree.map(lambda a: a[:1], model)
    np.testing.assert_array_equal(predict(one, trees, x), predict(one, trees, mute))
    batched = fit(
        x, y, trees, Config(6, max_features=0.5, num_classes=2, batch_size=4), KEY
    )
    for mine, its in zip(jax.tree.leaves(model), jax.tree.leaves(batched), strict=True):
        np.testing.assert_array_equal(mine, its)
    shares = predict(model, trees, x)
    assert shares.shape == (60, 2)
    assert (shares.argmax(axis=1) == y).mean() > 0.8


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Config(0), "must be positive"),
        (Config(max_samples=0.0), r"must be in \(0, 1\]"),
        (Config(max_features=1.2), r"must be in \(0, 1\]"),
    ],
)
def test_bad_configurations_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        fit(np.zeros((4, 1)), np.zeros(4), MEAN, config, KEY)
