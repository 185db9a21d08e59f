"""One tree as XGBoost's files have it, written and read.

Files are not trusted: sizes, indices, cycles and numbers are checked, with a ValueError.

Reference: schema at
https://xgboost.readthedocs.io/en/stable/tutorials/saving_model.html; Chen and Guestrin,
"XGBoost: A Scalable Tree Boosting System", KDD 2016, https://arxiv.org/abs/1603.02754.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxml.trees.tree import Tree

NO_PARENT = 2**31 - 1


def tree_document(index: int, tree: Tree, eta: float, columns: int) -> dict[str, Any]:
    """A compact tree, with the factor that is in its values already."""
    n = len(tree.left)
    inner = tree.left > 0
    value = tree.value[:, 0].astype(np.float32)
    parents = np.full(n, NO_PARENT, np.int32)
    (nodes,) = np.nonzero(inner)
    parents[tree.left[nodes]] = parents[tree.left[nodes] + 1] = nodes
    by_category = inner & (tree.categories != 0).any(axis=1)
    sets = [
        np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little"))
        for words in np.ascontiguousarray(tree.categories[by_category], np.uint32)
    ]
    sizes = np.array([len(s) for s in sets], np.int64)
    condition = np.where(inner, tree.threshold, value)
    return {
        "base_weights": np.where(inner, value / np.float32(eta), value),
        "categories": np.concatenate([*sets, []]).astype(np.int32),
        "categories_nodes": np.flatnonzero(by_category).astype(np.int32),
        "categories_segments": np.cumsum(sizes) - sizes,
        "categories_sizes": sizes,
        "default_left": tree.default_left.astype(np.uint8),
        "id": index,
        "left_children": np.where(inner, tree.left, -1).astype(np.int32),
        "loss_changes": tree.gain.astype(np.float32),
        "parents": parents,
        "right_children": np.where(inner, tree.left + 1, -1).astype(np.int32),
        "split_conditions": np.where(by_category, np.nan, condition).astype(np.float32),
        "split_indices": tree.feature.astype(np.int32),
        "split_type": by_category.astype(np.uint8),
        "sum_hessian": tree.cover.astype(np.float32),
        "tree_param": {
            "num_deleted": "0",
            "num_feature": str(columns),
            "num_nodes": str(n),
            "size_leaf_vector": "1",
        },
    }


def read_tree(entry: Mapping[str, Any], columns: int) -> Tree:
    """A tree of that many columns."""
    n = int(entry["tree_param"]["num_nodes"])
    if int(entry["tree_param"].get("size_leaf_vector", 1)) > 1:
        raise ValueError("trees must have one output each, got leaves of vectors")

    def read(name: str, dtype: type) -> np.ndarray:
        array = np.asarray(entry[name])
        if array.shape != (n,) or array.dtype.kind not in "iufb":
            raise ValueError(f"{name} must be {n} numbers, got shape {array.shape}")
        return array.astype(dtype)

    left, right = read("left_children", np.int64), read("right_children", np.int64)
    order, seen = [0], {0}
    for node in order:  # breadth first; grows as children are met
        if left[node] == -1:
            continue
        for child in (int(left[node]), int(right[node])):
            if not 0 < child < n or child in seen:
                raise ValueError(f"children must be a tree's, got {child} under {node}")
            seen.add(child)
            order.append(child)
    old = np.array(order)
    new = np.full(n + 1, -1, np.int64)
    new[old] = np.arange(len(old))
    inner = left[old] != -1
    condition = read("split_conditions", np.float32)[old]
    feature = np.where(inner, read("split_indices", np.int64)[old], 0)
    if not ((feature >= 0) & (feature < columns)).all():
        raise ValueError(f"split_indices must be below {columns}")
    if not np.isfinite(condition[~inner]).all():
        raise ValueError("values of leaves must be finite")
    words, by_category = _read_categories(entry, n)
    words, by_category = words[old], by_category[old]
    value = np.where(inner, read("base_weights", np.float32)[old], condition)
    return Tree(
        feature=feature.astype(np.int32),
        # A set of categories that is empty sends every row left, as nothing is in it.
        threshold=np.where(
            by_category, np.float32(np.inf), np.where(inner, condition, 0)
        ).astype(np.float32),
        default_left=read("default_left", bool)[old] & inner,
        left=np.where(inner, new[left[old]], 0).astype(np.int32),
        value=value.astype(np.float32)[:, None],
        gain=read("loss_changes", np.float32)[old],
        cover=read("sum_hessian", np.float32)[old],
        categories=words,
    )


def _read_categories(entry: Mapping[str, Any], n: int) -> tuple[np.ndarray, np.ndarray]:
    """The words of every node, and which nodes split by category."""
    nodes = np.asarray(entry.get("categories_nodes", []), np.int64)
    by_category = np.zeros(n, bool)
    if not len(nodes):
        return np.zeros((n, 0), np.uint32), by_category
    codes = np.asarray(entry["categories"], np.int64)
    if len(codes) and not 0 <= codes.min() <= codes.max() < 2**16:
        raise ValueError("categories must be in [0, 65536)")
    starts = np.asarray(entry["categories_segments"], np.int64)
    sizes = np.asarray(entry["categories_sizes"], np.int64)
    if not (len(starts) == len(sizes) == len(nodes)) or len(nodes) > n:
        raise ValueError("categories_nodes, _segments and _sizes must have one length")
    words = np.zeros((n, (int(codes.max(initial=0)) >> 5) + 1), np.uint32)
    for node, start, size in zip(nodes, starts, sizes, strict=True):
        if not 0 <= node < n or not 0 <= start <= start + size <= len(codes):
            raise ValueError(f"categories of node {node} must lie within the file's")
        for code in codes[start : start + size]:
            words[node, code >> 5] |= np.uint32(1 << (code & 31))
        by_category[node] = True
    return words, by_category
