"""One tree in the form of XGBoost's files: every field, any order of nodes, and lies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.trees.tree import leaf_index
from jaxml.trees.tree_files import NO_PARENT, read_tree, tree_document
from tests.trees.test_tree import random_tree

ETA = 0.5


def sample(rng, words=0, nodes=15):
    """A tree whose statistics differ from node to node; leaves ask nothing."""
    tree = random_tree(rng, nodes, 4, words)
    inner = tree.left > 0
    by_category = inner & (tree.categories != 0).any(axis=1)
    return tree._replace(
        feature=np.where(inner, tree.feature, 0).astype(np.int32),
        threshold=np.where(
            by_category, np.inf, np.where(inner, tree.threshold, 0)
        ).astype(np.float32),
        default_left=tree.default_left & inner,
        gain=rng.uniform(size=nodes).astype(np.float32),
        cover=rng.uniform(size=nodes).astype(np.float32),
        categories=np.where(by_category[:, None], tree.categories, 0).astype(np.uint32),
    )


def test_every_field_is_written(rng):
    tree = sample(rng, words=2)
    told = tree_document(7, tree, ETA, 4)
    sets = {}
    starts = told["categories_segments"], told["categories_sizes"]
    for node, start, size in zip(told["categories_nodes"], *starts, strict=True):
        sets[int(node)] = told["categories"][start : start + size].tolist()
    assert told["id"] == 7
    assert len(sets) > 1
    assert told["tree_param"]["num_nodes"] == "15"
    assert told["tree_param"]["num_feature"] == "4"
    for node in range(15):
        first = int(tree.left[node])
        children = (told["left_children"][node], told["right_children"][node])
        assert children == ((first, first + 1) if first else (-1, -1))
        value = tree.value[node, 0]
        assert told["base_weights"][node] == (
            value / np.float32(ETA) if first else value
        )
        words = tree.categories[node]
        chosen = [c for c in range(64) if int(words[c // 32]) >> (c % 32) & 1]
        assert sets.get(node, []) == chosen
        assert told["split_type"][node] == bool(chosen)
        condition = np.nan if chosen else tree.threshold[node] if first else value
        np.testing.assert_equal(told["split_conditions"][node], np.float32(condition))
        for child in children if first else ():
            assert told["parents"][child] == node
    assert told["parents"][0] == NO_PARENT
    for name, field in (
        ("default_left", tree.default_left),
        ("loss_changes", tree.gain),
        ("split_indices", tree.feature),
        ("sum_hessian", tree.cover),
    ):
        np.testing.assert_array_equal(told[name], field, name)


def shuffled(told, rng):
    """The same tree with its nodes in another order, the root still first."""
    n = len(told["parents"])
    new = np.r_[0, 1 + rng.permutation(n - 1)]  # where each node goes
    old = np.argsort(new)
    out = dict(told)
    for name, field in told.items():
        if np.shape(field) == (n,) and not name.startswith("categories"):
            out[name] = field[old]
    for name in ("left_children", "right_children"):
        out[name] = np.where(out[name] >= 0, new[out[name]], -1)
    out["categories_nodes"] = new[told["categories_nodes"]]
    return out


@pytest.mark.parametrize("words", [0, 2])
def test_trees_come_back_from_any_order(rng, words):
    tree = sample(rng, words)
    there = tree_document(0, tree, 1.0, 4)
    back = read_tree(there, 4)
    for name, field in tree._asdict().items():
        np.testing.assert_array_equal(getattr(back, name), field, name)
    other = read_tree(shuffled(there, rng), 4)
    x = np.round(20 * rng.normal(size=(60, 4))).astype(np.float32)
    x[rng.random(x.shape) < 0.2] = np.nan
    leaf = [leaf_index(jax.tree.map(jnp.asarray, t), x) for t in (tree, other)]
    for name in ("value", "cover", "gain"):
        a, b = (getattr(t, name)[at] for t, at in zip((tree, other), leaf, strict=True))
        np.testing.assert_array_equal(a, b, name)
    for name in ("value", "cover", "gain", "default_left", "feature"):
        a, b = (np.sort(getattr(t, name), axis=0) for t in (tree, other))
        np.testing.assert_array_equal(a, b, name)


def test_an_empty_set_sends_all_rows_to_the_first_child(rng):
    told = tree_document(0, sample(rng, words=1, nodes=3), 1.0, 4)
    told |= {
        "categories": np.zeros(0, np.int32),
        "categories_nodes": np.array([0]),
        "categories_segments": np.array([0]),
        "categories_sizes": np.array([0]),
        "default_left": np.array([1, 1, 1]),
    }
    tree = read_tree(told, 4)
    assert tree.default_left.tolist() == [True, False, False]
    x = np.array([[0.0] * 4, [9.0] * 4, [np.nan] * 4], np.float32)
    at = leaf_index(jax.tree.map(jnp.asarray, tree), x)
    assert at.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split_indices": [-1, 0, 0]}, "split_indices must be below 4"),
        ({"split_indices": [4, 0, 0]}, "split_indices must be below 4"),
        ({"split_conditions": [0.0, np.inf, 0.0]}, "leaves must be finite"),
        ({"left_children": [2, -1, -1]}, "children must be a tree's, got 2"),
        ({"right_children": [3, -1, -1]}, "children must be a tree's, got 3"),
        ({"sum_hessian": [[1.0], [1.0], [1.0]]}, "sum_hessian must be 3 numbers"),
        ({"categories": [-1]}, r"must be in \[0, 65536\)"),
        ({"categories": [2**16]}, r"must be in \[0, 65536\)"),
        ({"categories_sizes": [1, 1]}, "must have one length"),
        ({"categories_sizes": [2]}, "must lie within"),
        ({"categories_sizes": [-1]}, "must lie within"),
        ({"categories_segments": [-1]}, "must lie within"),
        ({"categories_nodes": [3]}, "categories of node 3"),
        ({"categories_nodes": [-1]}, "categories of node -1"),
        (
            {
                name: [0] * 4
                for name in (
                    "categories_nodes",
                    "categories_segments",
                    "categories_sizes",
                )
            },
            "must have one length",
        ),
    ],
)
def test_lies_are_told(rng, change, message):
    told = tree_document(0, sample(rng, nodes=3), 1.0, 4)
    told |= {
        "categories": [5],
        "categories_nodes": [0],
        "categories_segments": [0],
        "categories_sizes": [1],
    }
    assert read_tree(told, 4).categories.tolist() == [[32], [0], [0]]
    with pytest.raises(ValueError, match=message):
        read_tree(told | change, 4)


def test_leaves_of_vectors_are_refused(rng):
    told = tree_document(0, sample(rng, nodes=3), 1.0, 4)
    told["tree_param"]["size_leaf_vector"] = "2"
    with pytest.raises(ValueError, match="one output each"):
        read_tree(told, 4)
