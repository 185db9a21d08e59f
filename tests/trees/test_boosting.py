"""Parts of a boosting round: weights, draws, DART's scales, sums by output."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.trees.boosting import Dart, Rows, Sampling, add_trees, mean_loss
from jaxml.trees.objectives import objective

KEY = jax.random.key(0)


def test_rows_of_label_one_weigh_more():
    label, weight = jnp.array([0.0, 1.0, 1.0]), jnp.array([1.0, 1.0, 3.0])
    rows = Rows(label, weight, jnp.zeros((3, 1)))
    assert rows.weights(jnp.float32(2)).tolist() == [1, 2, 6]
    g, h = rows.derivatives(
        objective("binary:logistic"),
        jnp.zeros((3, 1)),
        jnp.int32(0),
        jnp.float32(2),
    )
    np.testing.assert_allclose(g[:, 0], [0.5, -1, -3])
    np.testing.assert_allclose(h[:, 0], [0.25, 0.5, 1.5])


def test_all_rows_count_unless_some_are_drawn():
    assert Sampling().rows(KEY, 10) is None
    share = Sampling(subsample=0.3).rows(KEY, 4000).mean()
    assert abs(share - 0.3) < 0.03


@pytest.mark.parametrize(
    ("kind", "old", "new"), [("tree", 3 / 3.1, 1 / 3.1), ("forest", 1 / 1.1, 1 / 1.1)]
)
def test_dropped_trees_and_the_new_one_share_their_place(kind, old, new):
    dart = Dart(normalize_type=kind)
    told = dart.scales(jnp.int32(3), jnp.float32(0.1))
    np.testing.assert_allclose(told, (old, new), rtol=1e-6)
    assert [float(s) for s in dart.scales(jnp.int32(0), jnp.float32(0.1))] == [1, 1]


def test_only_trees_that_exist_are_dropped():
    weight = jnp.ones(8)
    assert Dart(rate_drop=1.0).draw(KEY, weight, jnp.int32(3)).tolist() == [
        *[True] * 3,
        *[False] * 5,
    ]
    one = Dart(rate_drop=0.0, one_drop=True)
    drawn = [one.draw(jax.random.key(i), weight, jnp.int32(3)) for i in range(20)]
    assert all(d.sum() == 1 for d in drawn)
    assert set(np.argmax(drawn, axis=1).tolist()) == {0, 1, 2}
    assert not Dart(rate_drop=1.0, skip_drop=1.0).draw(KEY, weight, jnp.int32(3)).any()


def test_trees_add_to_their_own_output():
    value = jnp.arange(1.0, 5.0)[:, None, None] * jnp.ones((4, 2, 1))
    told = add_trees(jnp.zeros((2, 2)), value, num_parallel=2)
    assert told.tolist() == [[3, 7]] * 2
    vectors = add_trees(jnp.zeros((2, 3)), jnp.ones((2, 2, 3)), num_parallel=1)
    assert vectors.tolist() == [[2, 2, 2]] * 2


def test_the_mean_loss_is_weighted():
    squared = objective("reg:squarederror")
    margin, label = jnp.array([[1.0], [3.0]]), jnp.zeros(2)
    each = [
        mean_loss(squared, margin, label, jnp.array(w)) for w in ([1.0, 0], [0, 1.0])
    ]
    assert each[1] == 9 * each[0] > 0
    both = mean_loss(squared, margin, label, jnp.array([3.0, 1.0]))
    np.testing.assert_allclose(both, (3 * each[0] + each[1]) / 4, rtol=1e-6)
