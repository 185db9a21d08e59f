"""Pruning against the definition of weakest links, and best-first order."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxml.trees.pruning import best_first, cost_complexity_path, prune
from jaxml.trees.tree import Tree, leaf_index

#       0 (gain 4)
#     1 (1)      2 (6)
#   3   4      5 (2)  6
#             7  8
LEFT = np.array([1, 3, 5, 0, 0, 7, 0, 0, 0, 0], np.int32)
GAIN = np.array([4, 1, 6, 0, 0, 2, 0, 0, 0, 0], np.float32)


def tree():
    size = len(LEFT)
    return Tree(
        feature=jnp.asarray(np.where(LEFT > 0, np.arange(size) % 3, 0), jnp.int32),
        threshold=jnp.asarray(
            np.where(LEFT > 0, 0.1 * np.arange(size), 0), jnp.float32
        ),
        default_left=jnp.asarray(LEFT > 0),
        left=jnp.asarray(LEFT),
        value=jnp.arange(size, dtype=jnp.float32)[:, None],
        gain=jnp.asarray(GAIN),
        cover=jnp.full(size, 10.0),
        categories=jnp.zeros((size, 0), jnp.uint32),
    )


def inner(tree):
    """The numbers of the nodes that a row can reach and that split."""
    found, todo = set(), [0]
    for node in todo:
        if tree.left[node]:
            found.add(node)
            todo += [int(tree.left[node]), int(tree.left[node]) + 1]
    return found


def test_weakest_links_go_first():
    # Alphas: node 1 0.1, node 5 0.2; then the root 1.0 / 2 comes before node 2, 0.6.
    path = jax.jit(cost_complexity_path)(tree(), 2.0)
    known = np.isfinite(path.alpha)
    np.testing.assert_allclose(path.alpha[known], [0, 0.1, 0.2, 0.5], rtol=1e-6)
    np.testing.assert_allclose(path.risk[known], [0.7, 0.8, 1.0, 2.0], rtol=1e-6)


def test_pruned_trees_are_nested():
    cut = jax.jit(prune)
    for alpha, expected in [
        (0.05, {0, 1, 2, 5}),
        (0.1, {0, 2, 5}),
        (0.25, {0, 2}),
        (0.7, set()),
    ]:
        assert inner(cut(tree(), alpha)) == expected


def test_best_first_takes_the_largest_open_gain():
    for leaves, gains in [(2, {4}), (3, {4, 6}), (4, {4, 6, 2}), (9, {4, 6, 2, 1})]:
        picked = jax.jit(best_first, static_argnums=1)(tree(), leaves)
        assert {float(picked.gain[i]) for i in inner(picked)} == gains
    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    whole = tree()
    same = picked.value[leaf_index(picked, x)] == whole.value[leaf_index(whole, x)]
    assert same.all()
