"""Stacking: features from rows that were held out, and a final learner that heeds them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.trees.learner import from_pair, logistic, ridge
from jaxml.trees.stacking import (
    Config,
    draw_folds,
    fit,
    level_one,
    out_of_fold,
    predict,
    vote,
)

KEY = jax.random.key(0)
MEAN = from_pair(
    lambda x, y, key, w: jnp.sum(w * y) / jnp.sum(w),
    lambda model, x: jnp.full(len(x), model),
)
MEMORY = from_pair(  # says of a row what it was told, and 0 of rows of weight zero
    lambda x, y, key, w: jnp.where(w > 0, y, 0.0),
    lambda model, x: model[x[:, 0].astype(jnp.int32)],
)


def test_no_row_is_told_what_it_was_fitted_to(rng):
    y = rng.normal(size=20).astype(np.float32)
    x = np.arange(20, dtype=np.float32)[:, None]
    fold = jnp.asarray(rng.integers(0, 4, 20))
    weights = jnp.asarray(rng.uniform(0.5, 2, 20), jnp.float32)
    for learner in (MEAN, MEMORY):
        data = learner.prepare(x, y)
        told = out_of_fold(learner, data, jnp.asarray(x), weights, fold, 4, KEY)
        for row in range(20):
            others = np.asarray(fold) != fold[row]
            mean = np.average(y[others], weights=np.asarray(weights)[others])
            expected = mean if learner is MEAN else 0.0
            assert told[row] == pytest.approx(expected, abs=1e-5)


def test_the_final_learner_does_not_trust_memory(rng):
    """Inside its fold memory knows all of y; stacked, it must get no weight."""
    x = np.stack([np.arange(60.0), rng.normal(size=60)], axis=1).astype(np.float32)
    y = (2 * x[:, 1] + 0.1 * rng.normal(size=60)).astype(np.float32)
    slope = from_pair(
        lambda x, y, key, w: jnp.sum(w * x[:, 1] * y) / jnp.sum(w * x[:, 1] ** 2),
        lambda model, x: model * x[:, 1],
    )
    learners = (MEMORY, slope)
    model = fit(x, y, learners, ridge(), Config(), KEY)
    trust = np.asarray(model.final[0])
    assert abs(trust[0]) < 0.1
    assert trust[1] == pytest.approx(1, abs=0.1)
    np.testing.assert_array_equal(model.learners[0], y)  # fitted again, to all rows
    told = predict(model, learners, ridge(), Config(), x)
    assert told.shape == (60,)


def test_classes_give_shares_and_features_may_pass_through(rng):
    x = rng.normal(size=(45, 2)).astype(np.float32)
    y = (x[:, 0] > 0).astype(int) + (x[:, 1] > 1)
    base, final = logistic(3), logistic(3, 0.1)
    config = Config(3, 3, passthrough=True)
    model = fit(x, y, (base,), final, config, KEY)
    shares = predict(model, (base,), final, config, x)
    assert shares.shape == (45, 3)
    assert (shares.argmax(axis=1) == y).mean() > 0.85
    features = level_one([shares], jnp.asarray(x), config)
    assert features.shape == (45, 5)
    np.testing.assert_array_equal(features, jnp.hstack((shares, x)))
    two = level_one([shares[:, :2]], jnp.asarray(x), Config(3, 2))
    np.testing.assert_array_equal(two, shares[:, 1:2])


def test_all_learners_heed_the_weights(rng):
    y = rng.normal(size=30).astype(np.float32)
    weights = rng.integers(0, 3, 30).astype(np.float32)
    model = fit(np.zeros((30, 1)), y, (MEAN,), MEAN, Config(), KEY, weights)
    expected = pytest.approx(np.average(y, weights=weights), rel=1e-5)
    assert model.learners[0] == expected
    assert model.final == expected


def test_folds_are_even_in_every_class(rng):
    y = np.repeat([0, 1, 2], [12, 8, 20])
    fold = np.asarray(draw_folds(KEY, y, 4, stratify=True))
    for c in range(3):
        counts = np.bincount(fold[y == c], minlength=4)
        assert counts.max() - counts.min() <= 1
    assert (fold != draw_folds(jax.random.key(1), y, 4, stratify=True)).any()


def test_votes_are_soft_hard_or_weighted():
    told = [jnp.array([[0.9, 0.1]]), jnp.array([[0.4, 0.6]]), jnp.array([[0.3, 0.7]])]
    assert vote(told)[0].tolist() == pytest.approx([1.6 / 3, 1.4 / 3])
    assert vote(told, hard=True)[0].tolist() == pytest.approx([1 / 3, 2 / 3])
    weighted = vote(told, jnp.array([0.0, 1.0, 3.0]))[0]
    assert weighted.tolist() == pytest.approx([0.325, 0.675])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": Config(1)}, r"folds must be in \[2, 6\]"),
        ({"learners": ()}, "learners must not be empty"),
    ],
)
def test_bad_input_is_refused(change, message):
    given = {
        "x": np.zeros((6, 1)),
        "y": np.zeros(6),
        "learners": (MEAN,),
        "final": ridge(),
        "config": Config(2),
        "key": KEY,
        **change,
    }
    with pytest.raises((ValueError, TypeError), match=message):
        fit(**given)
