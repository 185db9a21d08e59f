"""Decision trees as arrays: one tree is a row of numbers per node, a forest adds an axis.

A row x starts at node 0 and, at an inner node, goes to the first child where

    x[feature] < threshold                      (float32 on both sides),

to the second otherwise, and by `default_left` where x[feature] is missing (NaN). Children
are neighbours: the second is the first plus one, so that a step costs one gather less.
Leaves have no child: `left` is 0, which is never a child.

The trap is the comparison: `x <= t`, as scikit-learn writes it, is `x < nextafter(t, inf)`,
and a feature in float64 must be rounded to float32 before it is compared, never after.

Reference: Breiman et al., "Classification and Regression Trees", 1984,
https://doi.org/10.1201/9781315139470; layout and comparison as in Chen and Guestrin,
"XGBoost: A Scalable Tree Boosting System", KDD 2016, https://arxiv.org/abs/1603.02754.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxml.export import export
from jaxml.typing import Array, Bool, Float, Int, UInt32

ROWS = 1024
"""Rows that go down a tree together: their features stay in the nearest cache."""
LEVELS = 4
"""Levels at which every row is compared with all nodes, instead of looking up its own."""


@export("trees.tree.Tree", since="0.1")
class Tree(NamedTuple):
    """A tree, or a forest of trees of one size with leading axes.

    Attributes:
        feature: which column an inner node reads; 0 at a leaf.
        threshold: rows below it go to the first child.
        default_left: whether missing values go there too.
        left: the first child, the second follows it; 0 at a leaf.
        value: what a leaf adds to every output; at an inner node what it would add if it
            were a leaf.
        gain: what the split gained in the objective; 0 at a leaf.
        cover: sum of the Hessians, or of the weights, of the rows that came here.
        categories: bits of the categories that go to the second child, 32 to a word;
            of width 0 where no feature is categorical, all zero at a numeric split.
    """

    feature: Int[Array, "*trees nodes"]
    threshold: Float[Array, "*trees nodes"]
    default_left: Bool[Array, "*trees nodes"]
    left: Int[Array, "*trees nodes"]
    value: Float[Array, "*trees nodes outputs"]
    gain: Float[Array, "*trees nodes"]
    cover: Float[Array, "*trees nodes"]
    categories: UInt32[Array, "*trees nodes words"]

    @property
    def is_leaf(self) -> Bool[Array, "*trees nodes"]:
        """Where a row stops. Nodes that no row reaches are leaves too."""
        return self.left == 0


@export("trees.tree.leaf_index", since="0.1")
def leaf_index(tree: Tree, x: Float[Array, "rows features"]) -> Int[Array, " rows"]:
    """The leaf of every row in one tree.

    Args:
        tree: one tree, without leading axes.
        x: features; NaN is missing. They are compared as float32.

    >>> x = jnp.array([[0.0], [1.0], [jnp.nan]])
    >>> leaf_index(stump(0, 0.5, [1.0, 2.0]), x).tolist()
    [1, 2, 1]
    """
    x = lax.stop_gradient(jnp.asarray(x, jnp.float32))
    n, width = x.shape
    flat, row = x.reshape(-1), jnp.arange(n, dtype=jnp.int32) * width

    def value(column: Array) -> Array:
        return _read(flat, row + column)

    start = jnp.zeros(n, jnp.int32)
    return _descend(tree, _pack(tree, width), value, width, start, 0, _depth(tree))


class _Top(NamedTuple):
    """The nodes of the first levels as a heap: the children of i are 2 i + 1 and 2 i + 2.

    A leaf is its own first child, with a threshold of NaN, which no value reaches. `below`
    holds the nodes of the level that comes next.
    """

    column: Int[Array, "*trees heap"]
    threshold: Float[Array, "*trees heap"]
    default_left: Bool[Array, "*trees heap"]
    below: Int[Array, "*trees ends"]


def _top(tree: Tree) -> _Top:
    """As many levels as all trees of so many nodes may have; none with categories."""
    levels = min(LEVELS, (tree.left.shape[-1] - 1) // 2)
    if tree.categories.shape[-1]:
        levels = 0
    read = partial(jnp.take_along_axis, axis=-1)
    at = jnp.zeros((*tree.left.shape[:-1], 1), jnp.int32)
    heap = [at[..., :0]]
    for _ in range(levels):
        heap.append(at)
        left = read(tree.left, at)
        both = jnp.stack((jnp.where(left == 0, at, left), left + 1), axis=-1)
        at = both.reshape(*at.shape[:-1], 2 * at.shape[-1])
    node = jnp.concatenate(heap, axis=-1)
    leaf = read(tree.is_leaf, node)
    threshold = jnp.where(leaf, jnp.nan, read(tree.threshold, node))
    return _Top(
        read(tree.feature, node),
        lax.stop_gradient(threshold),
        leaf | read(tree.default_left, node),
        at,
    )


class _Packed(NamedTuple):
    """What a step down reads of a node: one word and one threshold.

    The word holds the first child, whether missing values go there, and the column. A leaf
    is its own first child, with a threshold of NaN, which no value reaches.
    """

    word: Int[Array, "*trees nodes"]
    column: Int[Array, "*trees nodes"] | None
    threshold: Float[Array, "*trees nodes"]


def _pack(tree: Tree, width: int) -> _Packed:
    nodes = tree.left.shape[-1]
    own = jnp.broadcast_to(jnp.arange(nodes, dtype=jnp.int32), tree.left.shape)
    leaf = tree.is_leaf
    word = 2 * jnp.where(leaf, own, tree.left) + (leaf | tree.default_left)
    threshold = lax.stop_gradient(jnp.where(leaf, jnp.nan, tree.threshold))
    bits = (width - 1).bit_length()
    if (2 * nodes) << bits > 2**31:
        return _Packed(word, tree.feature, threshold)
    return _Packed((word << bits) | tree.feature, None, threshold)


def _depth(tree: Tree) -> Int[Array, ""]:
    """The longest way from a root to a leaf, over all trees."""
    nodes = tree.left.shape[-1]
    left = tree.left.reshape(-1, nodes)
    first = jnp.where(left == 0, nodes, left)  # of a leaf: nowhere
    own = jnp.broadcast_to(jnp.arange(nodes, dtype=jnp.int32), left.shape)
    each = jnp.arange(len(left), dtype=jnp.int32)[:, None]
    parent = jnp.zeros_like(left).at[each, first].set(own, mode="drop")
    parent = jnp.asarray(parent).at[each, first + 1].set(own, mode="drop")

    def double(_: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        far, steps = carry  # an ancestor, and how many steps it is above
        more = jnp.take_along_axis(steps, far, axis=1)
        return jnp.take_along_axis(far, far, axis=1), steps + more

    start = parent, (own != 0).astype(jnp.int32)
    far, steps = lax.fori_loop(0, (nodes - 1).bit_length(), double, start)
    # What no root reaches may go round in circles.
    return jnp.max(jnp.where(far == 0, steps, 0))


def _pass_top(top: _Top, columns: Array) -> tuple[Array, int]:
    """The node of every row of x below the first levels, and how many those are.

    Comparing a column with fifteen thresholds is quicker than reading four nodes.
    """
    inner = len(top.below) - 1
    right = []
    for i in range(inner):
        value = lax.dynamic_index_in_dim(
            columns, top.column[i], keepdims=False, allow_negative_indices=False
        )
        missing = jnp.isnan(value) & ~top.default_left[i]
        right.append((value >= top.threshold[i]) | missing)

    def below(i: int) -> Array:
        if i >= inner:
            return top.below[i - inner]
        return jnp.where(right[i], below(2 * i + 2), below(2 * i + 1))

    return jnp.broadcast_to(below(0), columns.shape[1:]), inner.bit_length()


def _read(table: Array, at: Array) -> Array:
    return jnp.asarray(table).at[at].get(mode="promise_in_bounds")


def _descend(
    tree: Tree,
    packed: _Packed,
    value_of: Callable[[Array], Array],
    width: int,
    start: Array,
    levels: int,
    depth: Array,
) -> Array:
    """The leaves in one tree of rows that stand at `start`, so many levels down.

    `value_of` reads a column for every row.
    """
    bits = (width - 1).bit_length()

    def step(_: Array, node: Array) -> Array:
        word, threshold = _read(packed.word, node), _read(packed.threshold, node)
        if packed.column is None:
            column, word = word & ((1 << bits) - 1), word >> bits
        else:
            column = _read(packed.column, node)
        value = value_of(column)
        right = value >= threshold
        if tree.categories.shape[-1]:
            right = ~_category_goes_left(tree, node, value, ~right)
            right &= ~jnp.isnan(threshold)  # a leaf may have words that mean nothing
        right = jnp.where(jnp.isnan(value), (word & 1) == 0, right)
        return (word >> 1) + right.astype(jnp.int32)

    return lax.fori_loop(levels, depth, step, start)


def _category_goes_left(
    tree: Tree, node: Array, value: Array, below: Array
) -> Bool[Array, " rows"]:
    """Membership in the node's set of categories, or the comparison if it has none."""
    words = tree.categories[node]
    known = (value >= 0) & (value < 32 * words.shape[-1])
    code = jnp.where(known, value, 0).astype(jnp.uint32)
    place = (code >> 5).astype(jnp.int32)[:, None]
    word = jnp.take_along_axis(words, place, axis=1)[:, 0]
    chosen = known & ((word >> (code & jnp.uint32(31))) & jnp.uint32(1)).astype(bool)
    return jnp.where(jnp.any(words != 0, axis=1), ~chosen, below)


@export("trees.tree.predict_sum", since="0.1")
def predict_sum(
    trees: Tree,
    x: Float[Array, "rows features"],
    group: Int[Array, " trees"],
    weight: Float[Array, " trees"],
    init: Float[Array, " groups"],
) -> Float[Array, "rows groups"]:
    """Init + the sum of weight * value over the trees, in the order of the trees.

    Args:
        trees: a forest with one leading axis.
        x: features; NaN is missing.
        group: the output to which each tree of one output adds; trees of several outputs
            add to all of them.
        weight: of each tree.
        init: what the sum starts from.
    """
    x = lax.stop_gradient(jnp.asarray(x, jnp.float32))
    vector = trees.value.shape[-1] > 1
    packed, top, depth = _pack(trees, x.shape[1]), _top(trees), _depth(trees)

    def block(rows: Array) -> Array:
        columns, (n, width) = rows.T, rows.shape
        flat, row = columns.reshape(-1), jnp.arange(n, dtype=jnp.int32)

        def value(column: Array) -> Array:
            return _read(flat, column * n + row)

        def add(total: Array, one: tuple) -> tuple[Array, None]:
            tree, nodes, first, column, scale = one
            start, levels = _pass_top(first, columns)
            leaf = _descend(tree, nodes, value, width, start, levels, depth)
            told = scale * tree.value[leaf]
            if vector or len(init) == 1:
                return total + told, None
            return jnp.asarray(total).at[:, column].add(told[:, 0]), None

        start = jnp.broadcast_to(init[None, :], (len(rows), len(init)))
        return lax.scan(add, start, (trees, packed, top, group, weight))[0]

    return in_blocks(block, x)


def in_blocks(function, x: Array, size: int = ROWS) -> Array:
    """`function` of blocks of rows one after the other, as if of all rows at once."""
    n = len(x)
    if n <= size:
        return function(x)
    count = n // size
    head = lax.map(function, x[: count * size].reshape(count, size, *x.shape[1:]))
    head = head.reshape(count * size, *head.shape[2:])
    return jnp.concatenate([head, function(x[count * size :])]) if n % size else head


@export("trees.tree.stump", since="0.1")
def stump(feature: int, threshold: float, values: list[float]) -> Tree:
    """A tree of one split, for examples and tests; missing values go left."""
    inner = np.array([1, 0, 0])
    return Tree(
        feature=jnp.asarray(feature * inner, jnp.int32),
        threshold=jnp.asarray(threshold * inner, jnp.float32),
        default_left=jnp.asarray(inner == 1),
        left=jnp.asarray(inner, jnp.int32),
        value=jnp.asarray([[0.0], [values[0]], [values[1]]], jnp.float32),
        gain=jnp.zeros(3, jnp.float32),
        cover=jnp.ones(3, jnp.float32),
        categories=jnp.zeros((3, 0), jnp.uint32),
    )


@export("trees.tree.compact", since="0.1")
def compact(tree: Tree) -> Tree:
    """The nodes of one tree that a row can reach, level by level; NumPy, not for `jit`.

    The numbering is that of a file of XGBoost: breadth first, children side by side.
    """
    left = np.asarray(tree.left)
    old = [0]
    for node in old:  # grows as children are met
        if left[node]:
            old += [int(left[node]), int(left[node]) + 1]
    new = np.zeros(len(left), np.int32)
    new[old] = np.arange(len(old))
    tree = jax.tree.map(lambda leaf: np.asarray(leaf)[old], tree)
    return tree._replace(left=np.where(tree.left > 0, new[tree.left], 0))


@export("trees.tree.stack", since="0.1")
def stack(trees: list[Tree]) -> Tree:
    """Trees of different sizes as one forest: short ones are padded with leaves."""
    nodes = max(tree.left.shape[0] for tree in trees)
    words = max(tree.categories.shape[-1] for tree in trees)

    def pad(leaf: Array, width: int | None = None) -> np.ndarray:
        leaf = np.asarray(leaf)
        extra = [(0, nodes - len(leaf))] + [(0, 0)] * (leaf.ndim - 1)
        if width is not None:
            extra[1] = (0, width - leaf.shape[1])
        return np.pad(leaf, extra)

    rows = [
        jax.tree.map(pad, tree._replace(categories=pad(tree.categories, words)))
        for tree in trees
    ]
    return jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *rows)
