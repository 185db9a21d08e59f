"""Plans: shares become numbers of rows, targets become channels, unused nodes go."""

import jax.numpy as jnp
import numpy as np

from jaxml.trees import cart, codes, planting
from jaxml.trees.cart_config import Config
from jaxml.trees.planting import channels_of, plan_of, same_target, trim
from jaxml.trees.table import table
from jaxml.trees.tree import stack, stump

X = np.zeros((100, 4), np.float32)
Y = np.arange(100) % 3


def plan(**options):
    config = Config(**options)
    return plan_of(config, table(X, Y, config, None))


def test_shares_are_of_the_rows_that_were_given():
    _, bounds = plan(min_samples_leaf=0.1, min_samples_split=0.05, max_features=0.5)
    limits = bounds.limits  # of 100 rows, not of the 128 that they are padded to
    assert (limits.min_leaf, limits.min_split) == (10, 20)
    assert (limits.columns, limits.visits) == (4, 2)


def test_only_what_shapes_a_program_is_in_the_plan():
    same = [plan(min_samples_split=k, min_impurity_decrease=k / 9)[0] for k in (2, 7)]
    assert same[0] == same[1]
    assert plan(max_depth=3)[0].shape.nodes == 15
    assert plan(min_samples_leaf=2)[0].shape.counts
    assert plan(max_features=2)[0].shape.draws
    assert not plan()[0].shape.draws
    assert plan(max_leaf_nodes=5)[1].limits.max_depth == 4


def test_data_sets_of_one_plan_are_prepared_by_one_program(monkeypatch):
    traced = []

    def encode(*given):
        traced.append(given)
        return codes.encode(*given)

    monkeypatch.setattr(planting, "encode", encode)
    learner = cart.learner(Config(max_depth=1, num_classes=3, max_bins=7))
    first, second = (
        learner.prepare(x, Y)[0] for x in (X, X + np.arange(4) * Y[:, None])
    )
    assert len(traced) == 1
    assert (first.codes.index != second.codes.index).any()


def test_rows_of_equal_targets_have_equal_numbers():
    y = jnp.array([[0.0, 1.0], [-0.0, 1.0], [0.0, 2.0], [1.0, 1.0], [0.0, 2.0]])
    number = same_target(y[1:])
    assert number[1] == number[3] != number[0]
    assert len(np.unique(number)) == 3
    single = same_target(y[:, :1])
    assert single[0] == single[1] == single[2] != single[3]


def test_channels_are_weights_of_classes_or_weighted_targets():
    w = jnp.array([2.0, 0.0, 3.0])
    classes = channels_of(jnp.array([[1], [0], [0]]), w, plan()[0])
    assert classes.tolist() == [[0, 0, 3], [2, 0, 0], [0, 0, 0]]
    numbers = plan(criterion="squared_error")[0]
    both = channels_of(jnp.array([[1.0, 4.0], [1.0, 1.0], [-1.0, 0.5]]), w, numbers)
    assert both.tolist() == [[2, 0, -3], [8, 0, 1.5], [2, 0, 3]]


def test_nodes_in_no_use_are_cut_off():
    one = stump(1, 0.5, [1.0, 2.0])
    forest = stack([one, one])
    wide = [np.pad(a, [(0, 0), (0, 13)] + [(0, 0)] * (a.ndim - 2)) for a in forest]
    small = trim(type(forest)(*wide))
    assert small.left.shape == (2, 4)
    assert small.left.tolist() == [[1, 0, 0, 0]] * 2
