"""Trees cut back: weakest links for their cost, or the best splits for their number.

Cost-complexity pruning takes away, again and again, the branch that does least for each of
its leaves,

    alpha(t) = (R(t) - R(branch of t)) / (leaves of the branch - 1),   R = risk of a node,

until the least alpha exceeds the given one. Gains are what splits take away from the risk,
so R(t) - R(branch) is the sum of the gains in the branch, whatever the impurity.

Best-first growth expands the open node of the largest gain next. What it reaches with k
leaves is a part of the full tree, which `best_first` picks out.

The trap: nodes lie level by level, children behind parents; both functions rest on it.

Reference: Breiman et al., "Classification and Regression Trees", 1984,
https://doi.org/10.1201/9781315139470 (sections 3.3 and 8.5); Shi, "Best-first Decision Tree
Learning", 2007, https://hdl.handle.net/10289/2317.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxml.export import export
from jaxml.trees.tree import Tree
from jaxml.typing import Array, Bool, Float, Int


@export("trees.pruning.Path", since="0.1")
class Path(NamedTuple):
    """The nested trees of cost-complexity pruning, from the full one to the root.

    Attributes:
        alpha: at which each tree begins to be the best, the first 0; +inf where padded.
        risk: sum of weight times impurity over its leaves, as a share of all weight.
    """

    alpha: Float[Array, " steps"]
    risk: Float[Array, " steps"]


@export("trees.pruning.cost_complexity_path", since="0.1")
def cost_complexity_path(tree: Tree, root_impurity: Float[Array, ""] | float) -> Path:
    """Every alpha at which the best tree of that alpha changes.

    Args:
        tree: one tree, nodes level by level.
        root_impurity: impurity of all rows together.
    """
    branches = _branches(tree)
    steps = len(tree.left) // 2 + 1
    risk = jnp.full(steps, root_impurity - branches.gain[0], jnp.float32)
    path = Path(jnp.full(steps, jnp.inf).at[0].set(0.0), risk)

    def step(carry: tuple) -> tuple:
        branches, path, i = carry
        node = jnp.argmin(branches.alpha)
        risk = path.risk[i - 1] + branches.gain[node]
        alpha = jnp.asarray(path.alpha).at[i].set(branches.alpha[node])
        return (
            _cut(branches, node),
            Path(alpha, jnp.asarray(path.risk).at[i].set(risk)),
            i + 1,
        )

    start = branches, path, jnp.int32(1)
    return lax.while_loop(lambda c: jnp.isfinite(c[0].alpha[0]), step, start)[1]


@export("trees.pruning.prune", since="0.1")
def prune(tree: Tree, alpha: Float[Array, ""] | float) -> Tree:
    """The smallest tree whose cost is least with `alpha` for every leaf.

    Nodes keep their numbers; those under a cut cannot be reached any more.
    """
    branches = lax.while_loop(
        lambda b: jnp.min(b.alpha) <= alpha,
        lambda b: _cut(b, jnp.argmin(b.alpha)),
        _branches(tree),
    )
    return _only(tree, jnp.isfinite(branches.alpha))


class _Branches(NamedTuple):
    """What hangs under every node that is left; `alpha` is +inf where nothing does.

    Nodes are met in the order of a walk, first children first: the branch of one is
    `size` nodes long from `order` on.
    """

    alpha: Float[Array, " nodes"]
    gain: Float[Array, " nodes"]
    leaves: Int[Array, " nodes"]
    parent: Int[Array, " nodes"]
    order: Int[Array, " nodes"]
    size: Int[Array, " nodes"]


def _branches(tree: Tree) -> _Branches:
    nodes = len(tree.left)
    each = jnp.arange(nodes, dtype=jnp.int32)
    inner = tree.left > 0
    parent = jnp.full(nodes, nodes, jnp.int32)  # of the root, and of nodes not in use
    for child in (0, 1):
        at = jnp.where(inner, tree.left + child, nodes)
        parent = parent.at[at].set(each, mode="drop")
    share = tree.gain / jnp.maximum(tree.cover[0], 1e-30)

    def climb(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        gain, leaves = carry
        node = nodes - 1 - i
        up = parent[node]
        gain = jnp.asarray(gain).at[up].add(gain[node], mode="drop")
        return gain, jnp.asarray(leaves).at[up].add(leaves[node], mode="drop")

    start = jnp.where(inner, share, 0), (~inner).astype(jnp.int32)
    gain, leaves = lax.fori_loop(0, nodes, climb, start)
    size = 2 * leaves - 1

    def descend(node: Array, order: Array) -> Array:
        first = jnp.where(inner[node], tree.left[node], nodes)
        here = order[node] + 1
        order = jnp.asarray(order).at[first].set(here, mode="drop")
        second = jnp.where(inner[node], first + 1, nodes)
        beside = here + size[jnp.minimum(first, nodes - 1)]
        return jnp.asarray(order).at[second].set(beside, mode="drop")

    order = lax.fori_loop(0, nodes, descend, jnp.zeros(nodes, jnp.int32))
    alpha = jnp.where(inner, gain / jnp.maximum(leaves - 1, 1), jnp.inf)
    return _Branches(alpha, gain, leaves, parent, order, size)


def _cut(branches: _Branches, node: Int[Array, ""]) -> _Branches:
    """The node becomes a leaf, and its ancestors lose what hung under it."""
    nodes = len(branches.alpha)
    gain, leaves = branches.gain[node], branches.leaves[node] - 1
    start = branches.order[node]
    hangs = (branches.order >= start) & (branches.order < start + branches.size[node])
    branches = branches._replace(alpha=jnp.where(hangs, jnp.inf, branches.alpha))

    def up(carry: tuple[Array, _Branches]) -> tuple[Array, _Branches]:
        at, b = carry
        less, fewer = b.gain[at] - gain, b.leaves[at] - leaves
        alpha = jnp.asarray(b.alpha).at[at].set(less / jnp.maximum(fewer - 1, 1))
        b = b._replace(
            alpha=alpha,
            gain=jnp.asarray(b.gain).at[at].set(less),
            leaves=jnp.asarray(b.leaves).at[at].set(fewer),
        )
        return b.parent[at], b

    start = branches.parent[node], branches
    return lax.while_loop(lambda c: c[0] < nodes, up, start)[1]


def _only(tree: Tree, inner: Bool[Array, " nodes"]) -> Tree:
    """The tree in which only these nodes split."""
    return tree._replace(
        feature=jnp.where(inner, tree.feature, 0),
        threshold=jnp.where(inner, tree.threshold, 0),
        default_left=inner & tree.default_left,
        left=jnp.where(inner, tree.left, 0),
        gain=jnp.where(inner, tree.gain, 0),
    )


@export("trees.pruning.best_first", since="0.1")
def best_first(tree: Tree, max_leaves: int) -> Tree:
    """The tree of `max_leaves` leaves that splits the node of the largest gain next.

    Args:
        tree: one fully grown tree.
        max_leaves: at least 2.
    """
    nodes = 2 * max_leaves - 1

    def frontier(node: Array) -> Array:
        return jnp.where(tree.left[node] > 0, tree.gain[node], -jnp.inf)

    def step(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        old, open_gain, left = carry  # of the new nodes
        best = jnp.argmax(open_gain).astype(jnp.int32)
        splits = open_gain[best] > -jnp.inf
        first = tree.left[old[best]]
        new = 2 * i + 1
        at = jnp.where(splits, jnp.stack((new, new + 1)), nodes)
        children = jnp.stack((first, first + 1))
        old = jnp.asarray(old).at[at].set(children, mode="drop")
        open_gain = jnp.asarray(open_gain).at[best].set(-jnp.inf)
        open_gain = jnp.asarray(open_gain).at[at].set(frontier(children), mode="drop")
        return (
            old,
            open_gain,
            jnp.asarray(left).at[best].set(jnp.where(splits, new, left[best])),
        )

    start = (
        jnp.zeros(nodes, jnp.int32),
        jnp.full(nodes, -jnp.inf).at[0].set(frontier(jnp.int32(0))),
        jnp.zeros(nodes, jnp.int32),
    )
    old, _, left = lax.fori_loop(0, max_leaves - 1, step, start)
    picked = jax.tree.map(lambda leaf: leaf[old], tree)
    return _only(picked, left > 0)._replace(left=left)
