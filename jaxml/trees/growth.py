"""From the best splits of every level to a tree, and from rows to their leaves.

A tree grows level by level. On level d its nodes have 2^d slots, and the children of slot
s are the slots 2s and 2s + 1 of the next level; a node that does not split sends all of
its rows through phantoms to the left, so that every row ends in one of 2^depth slots, with
no branch in the program. `assemble` then prunes, tells phantoms from nodes, and says which
leaf a bottom slot means.

What may split where is decided here too: columns drawn per tree, level and node, monotone
bounds, and interaction constraints.

Reference: Chen and Guestrin, "XGBoost: A Scalable Tree Boosting System", KDD 2016,
https://arxiv.org/abs/1603.02754 (sections 2.3 and 3).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxml.trees.rule import Rule
from jaxml.trees.tree import Tree
from jaxml.typing import Array, Bool, Float, Int, PRNGKeyArray, UInt32

MIN_GAIN = 1e-6
"""Splits must gain more than this, whatever gamma is."""


class Splits(NamedTuple):
    """The best split of every slot of a level; `gain` is -inf where there is none."""

    gain: Float[Array, "*levels slots"]
    feature: Int[Array, "*levels slots"]
    threshold: Float[Array, "*levels slots"]
    default_left: Bool[Array, "*levels slots"]
    categories: UInt32[Array, "*levels slots words"]


class Nodes(NamedTuple):
    """What is known of every slot of a level before it is split."""

    value: Float[Array, "*levels slots outputs"]
    cover: Float[Array, "*levels slots"]


def assemble(
    levels: list[tuple[Nodes, Splits]],
    bottom: Nodes,
    gamma: Float[Array, ""] | float,
    *,
    prune: bool,
    max_leaves: int = 0,
    best_first: bool = False,
) -> tuple[Tree, Int[Array, " slots"]]:
    """A tree in heap order (children of i at 2i + 1 and 2i + 2), and the leaf of each slot.

    Args:
        levels: from the root down; a split counts where its gain is above `MIN_GAIN` and
            its parent split too.
        bottom: the slots under the last level, all leaves.
        gamma: the least gain of a split.
        prune: whether `gamma` cuts afterwards, from the leaves up, so that a poor split
            stays above a good one; otherwise it has cut before, through the gains.
        max_leaves: how many leaves the tree may have; 0 for as many as there are.
        best_first: which splits are kept then: those that a search would come to which
            always splits the leaf of the largest gain; otherwise the upper ones.

    Returns:
        the tree, and for each slot of the bottom the node that is its leaf.
    """
    alive = jnp.ones(1, bool)
    splits = []
    for _, best in levels:
        splits.append(alive & (best.gain > MIN_GAIN))
        alive = jnp.repeat(splits[-1], 2)
    if prune:
        below = jnp.zeros_like(alive)
        for d in reversed(range(len(levels))):
            has_inner_child = jnp.any(below.reshape(-1, 2), axis=1)
            keep = has_inner_child | (levels[d][1].gain >= gamma)
            splits[d] = below = splits[d] & keep
        for d in range(1, len(levels)):  # nothing is below what was cut
            splits[d] = splits[d] & jnp.repeat(splits[d - 1], 2)
    if max_leaves:
        splits = _limit(
            splits, [best.gain for _, best in levels], max_leaves, best_first
        )
    leaf = jnp.zeros(1, jnp.int32)
    for d, split in enumerate(splits):
        first = 2 ** (d + 1) - 1 + 2 * jnp.arange(2**d, dtype=jnp.int32)
        child = first[:, None] + jnp.arange(2, dtype=jnp.int32)[None, :]
        leaf = jnp.where(split[:, None], child, leaf[:, None]).reshape(-1)

    split = jnp.concatenate(splits)
    nodes = [*(n for n, _ in levels), bottom]
    value, cover = (jnp.concatenate(rows) for rows in zip(*nodes, strict=True))
    best = jax.tree.map(lambda *rows: jnp.concatenate(rows), *(s for _, s in levels))

    def pad(x: Array) -> Array:  # the bottom has no splits
        rest = jnp.zeros((len(value) - len(x), *x.shape[1:]), x.dtype)
        return jnp.concatenate([x, rest])

    def where(x: Array) -> Array:
        return pad(jnp.where(split, x, jnp.zeros((), x.dtype)))

    left = 2 * jnp.arange(len(split), dtype=jnp.int32) + 1
    words = jnp.where(split[:, None], best.categories, jnp.uint32(0))
    tree = Tree(
        feature=where(best.feature),
        threshold=where(best.threshold),
        default_left=where(best.default_left),
        left=where(left),
        value=value,
        gain=where(best.gain),
        cover=cover,
        categories=pad(words),
    )
    return tree, leaf


def _limit(
    splits: list[Array], gains: list[Array], max_leaves: int, best_first: bool
) -> list[Bool[Array, " slots"]]:
    """The splits of a tree of so many leaves, level by level.

    A node's best split does not depend on the others, so that the tree that grows best
    first is a part of the one that grows level by level.
    """
    alive, gain = jnp.concatenate(splits), jnp.concatenate(gains)
    ends = np.cumsum([len(split) for split in splits])[:-1]
    if not best_first:
        return jnp.split(alive & (jnp.cumsum(alive) < max_leaves), ends)
    n = len(alive)

    def step(_: Array, carry: tuple[jax.Array, jax.Array]) -> tuple[Array, Array]:
        ready, kept = carry
        at = jnp.argmax(jnp.where(ready, gain, -jnp.inf)).astype(jnp.int32)
        children = 2 * at + 1 + jnp.arange(2, dtype=jnp.int32)
        grown = ready.at[at].set(False).at[children].set(True, mode="drop") & alive
        some = jnp.any(ready)
        return jnp.where(some, grown, ready), kept.at[at].set(kept[at] | some)

    ready = alive & (jnp.arange(n) == 0)
    steps = min(max_leaves - 1, n)
    _, kept = jax.lax.fori_loop(0, steps, step, (ready, jnp.zeros(n, bool)))
    return jnp.split(kept, ends)


class Columns(NamedTuple):
    """Which columns may be used, and how.

    Attributes:
        monotone: -1, 0 or 1 per column, or empty: no constraint.
        interaction: sets of columns that may meet on one path, or empty: all may.
        bylevel: share of the tree's columns that a level may use.
        bynode: share of the level's columns that a node may use.
        categorical: columns whose values are categories, 0, 1 and so on; for bins only.
        onehot_below: with fewer categories, one of them is split from the rest.
        most_categories: how many of them a split tries on one side.
    """

    monotone: tuple[int, ...] = ()
    interaction: tuple[tuple[int, ...], ...] = ()
    bylevel: float = 1.0
    bynode: float = 1.0
    categorical: tuple[int, ...] = ()
    onehot_below: int = 4
    most_categories: int = 64

    def together(
        self, path: Bool[Array, "slots columns"]
    ) -> Bool[Array, "slots columns"]:
        """Columns that may be added to those already used on the way to each slot."""
        if not self.interaction:
            return jnp.ones_like(path)
        sets = np.zeros((len(self.interaction), path.shape[1]), bool)
        for row, members in zip(sets, self.interaction, strict=True):
            row[list(members)] = True
        holds = ~jnp.any(path[:, None] & ~sets[None], axis=2)
        joined = jnp.any(holds[:, :, None] & sets[None], axis=1)
        return joined | path | ~jnp.any(path, axis=1, keepdims=True)

    def allowed(
        self,
        key: PRNGKeyArray,
        columns: Bool[Array, " columns"],
        path: Bool[Array, "slots columns"],
    ) -> Bool[Array, "slots columns"]:
        """Columns that each slot of a level may use."""
        level_key, node_key = jax.random.split(key)
        mask = draw_columns(level_key, columns[None, :], self.bylevel)
        mask = jnp.broadcast_to(mask, path.shape)
        return draw_columns(node_key, mask, self.bynode) & self.together(path)


def draw_columns(
    key: PRNGKeyArray, columns: Bool[Array, "slots columns"], share: float
) -> Bool[Array, "slots columns"]:
    """A share of the marked columns of each row, at least one, without replacement.

    >>> mask = draw_columns(jax.random.key(0), jnp.ones((1, 10), bool), 0.35)
    >>> int(mask.sum())
    3
    """
    if share >= 1:
        return columns
    count = jnp.sum(columns, axis=1, keepdims=True)
    # The product in float64, as a user means 0.1 of 10 to be 1.
    wanted = jnp.asarray(
        np.maximum((share * np.arange(columns.shape[1] + 1)).astype(int), 1)
    )
    noise = jnp.where(columns, jax.random.uniform(key, columns.shape), 2.0)
    rank = jnp.argsort(jnp.argsort(noise, axis=1), axis=1)
    return columns & (rank < wanted[count])


def child_bounds(
    bounds: Float[Array, "slots 2"],
    middle: Float[Array, " slots"],
    sign: Int[Array, " slots"],
) -> Float[Array, "children 2"]:
    """Bounds (lower, upper) on the values of the children of each slot.

    A column that must not lower the output (sign 1) keeps all values under the first
    child below the middle of the two children's values, and the others above.
    """
    lower, upper = bounds[:, 0], bounds[:, 1]
    first = (jnp.where(sign < 0, middle, lower), jnp.where(sign > 0, middle, upper))
    second = (jnp.where(sign > 0, middle, lower), jnp.where(sign < 0, middle, upper))
    both = jnp.stack([jnp.stack(first, axis=1), jnp.stack(second, axis=1)], axis=1)
    return both.reshape(-1, 2)


def best_column(splits: Splits) -> Splits:
    """The best over the leading axis, the columns; of equal gains the first."""
    winner = jnp.argmax(splits.gain, axis=0)[None, :]
    pick = lambda x: jnp.take_along_axis(  # noqa: E731
        x, winner.reshape(winner.shape + (1,) * (x.ndim - 2)), axis=0
    )[0]
    return jax.tree.map(pick, splits)


def gain_of(
    rule: Rule,
    left: Array,
    right: Array,
    parent_score: Array,
    bounds: tuple[Array, Array] | None = None,
    sign: Array | None = None,
) -> Array:
    """Float32 gain of a split, -inf where a child may not be.

    Args:
        rule: the `Rule`.
        left, right: sums [channels, ...].
        parent_score: float32 score of the parent.
        bounds: lower and upper bound of the values, each [...], or None.
        sign: in which direction the values must be ordered, or None.
    """
    admitted = rule.admits(left) & rule.admits(right)
    if bounds is None or sign is None:
        gain = rule.score(left) + rule.score(right) - parent_score
    else:
        lower, upper = bounds
        a = jnp.clip(rule.value(left), lower[None], upper[None])
        b = jnp.clip(rule.value(right), lower[None], upper[None])
        gain = rule.score_at(left, a) + rule.score_at(right, b) - parent_score
        ordered = jnp.all(sign * (b - a) >= 0, axis=0)
        admitted &= ordered
    return jnp.where(admitted, gain, -jnp.inf)
