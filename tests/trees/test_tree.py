"""Trees as arrays against a walk in Python."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.trees.tree import (
    LEVELS,
    Tree,
    compact,
    in_blocks,
    leaf_index,
    predict_sum,
    stack,
    stump,
)


def random_tree(rng, nodes=15, columns=4, words=0):
    """A tree of random shape; children are always behind their parent."""
    left, free = np.zeros(nodes, np.int32), 1
    for node in range(nodes):
        if free + 1 < nodes and (node == 0 or rng.random() < 0.7):
            left[node], free = free, free + 2
    sets = rng.integers(0, 2**32, (nodes, words), dtype=np.uint64).astype(np.uint32)
    sets[rng.random(nodes) < 0.5] = 0
    return Tree(
        feature=rng.integers(0, columns, nodes).astype(np.int32),
        threshold=rng.normal(size=nodes).astype(np.float32),
        default_left=rng.random(nodes) < 0.5,
        left=left,
        value=rng.normal(size=(nodes, 1)).astype(np.float32),
        gain=np.zeros(nodes, np.float32),
        cover=np.ones(nodes, np.float32),
        categories=sets,
    )


def walk(tree, row):
    node = 0
    while tree.left[node]:
        value, chosen = row[tree.feature[node]], tree.categories[node]
        if np.isnan(value):
            left = tree.default_left[node]
        elif chosen.any():
            known = 0 <= value < 32 * len(chosen)
            code = int(value) if known else 0
            left = not (known and chosen[code // 32] >> (code % 32) & 1)
        else:
            left = value < tree.threshold[node]
        node = tree.left[node] + (0 if left else 1)
    return node


@pytest.mark.parametrize(("nodes", "words"), [(3, 0), (15, 0), (101, 0), (15, 2)])
def test_leaves_are_those_of_a_walk(rng, nodes, words):
    x = (5 * rng.normal(size=(64, 4))).astype(np.float32)
    if words:
        x = np.round(np.abs(x) * 6) - 3
    x[rng.random(x.shape) < 0.1] = np.inf
    x[rng.random(x.shape) < 0.2] = np.nan
    find = jax.jit(leaf_index)
    reached = set()
    for _ in range(5):
        tree = random_tree(rng, nodes, words=words)
        expected = [walk(tree, row) for row in x]
        assert find(jax.tree.map(jnp.asarray, tree), x).tolist() == expected
        reached |= set(expected)
    assert len(reached) > nodes // 3
    deepest = max(depths(tree)[node] for node in expected)
    assert nodes < 101 or deepest > LEVELS + 1


def depths(tree):
    """How many steps lead to every node."""
    steps = {0: 0}
    for node, left in enumerate(tree.left):
        if left:
            steps |= {left: steps[node] + 1, left + 1: steps[node] + 1}
    return steps


def test_the_threshold_itself_goes_right_and_float64_is_rounded_first():
    tree = stump(0, 0.1, [1.0, 2.0])
    x = np.array([[0.1], [np.nextafter(np.float32(0.1), np.float32(0))]])
    assert leaf_index(tree, x).tolist() == [2, 1]
    assert leaf_index(tree, np.array([[0.1 - 1e-12]])).tolist() == [2]
    extremes = np.array([[np.inf], [-np.inf], [np.nan]])
    assert leaf_index(tree, extremes).tolist() == [2, 1, 1]


def test_a_forest_adds_up_in_order_by_group(rng):
    trees = [random_tree(rng, nodes) for nodes in (15, 1, 7)]
    x = rng.normal(size=(1300, 4)).astype(np.float32)  # more than a block, not whole
    weight = np.array([1.0, 2.0, 0.5], np.float32)
    total = jax.jit(predict_sum)(
        stack(trees), x, jnp.array([0, 1, 0]), weight, jnp.array([10.0, 20.0])
    )
    told = np.array([[t.value[walk(t, row), 0] for row in x] for t in trees])
    chex.assert_trees_all_close(total[:, 0], 10 + told[0] + 0.5 * told[2], rtol=1e-6)
    chex.assert_trees_all_close(total[:, 1], 20 + 2 * told[1], rtol=1e-6)


def test_compact_keeps_what_is_reached_breadth_first(rng):
    tree = random_tree(rng, 31)
    order = rng.permutation(np.arange(1, 31, 2))  # scatter the pairs of children
    place = np.zeros(33, np.int32)
    for new, old in zip(range(3, 33, 2), order, strict=True):
        place[old : old + 2] = new, new + 1
    moved = jax.tree.map(lambda leaf: np.zeros((33, *leaf.shape[1:]), leaf.dtype), tree)
    for target, source in zip(moved, tree, strict=True):
        target[place[:31]] = source
    moved = moved._replace(left=np.where(moved.left > 0, place[moved.left], 0))
    small, x = compact(moved), rng.normal(size=(50, 4)).astype(np.float32)
    inner = small.left[small.left > 0]
    assert inner.tolist() == list(range(1, len(small.left), 2))
    for row in x:
        assert small.value[walk(small, row)] == tree.value[walk(tree, row)]


def test_values_have_gradients_and_thresholds_do_not(rng):
    tree = jax.tree.map(jnp.asarray, random_tree(rng))
    x = rng.normal(size=(9, 4)).astype(np.float32)

    def total(value, threshold):
        changed = tree._replace(value=value, threshold=threshold)
        return jnp.sum(value[leaf_index(changed, x)])

    by_value, by_threshold = jax.grad(total, argnums=(0, 1))(tree.value, tree.threshold)
    assert float(by_value.sum()) == 9
    assert not by_threshold.any()


def test_blocks_of_any_number_of_rows_are_rows():
    for n in (1, 4, 8, 11):
        x = jnp.arange(2.0 * n).reshape(n, 2)
        assert jnp.array_equal(in_blocks(lambda r: r.sum(axis=1), x, 4), x.sum(axis=1))
