"""Which columns the open nodes of a level look at: one each in every visit.

Every node draws its own columns without replacement, from a deck that it shuffles as it
goes, or all nodes of a level take all columns in one order, drawn too: of columns that
gain the same the first one wins, and none is to be preferred. A visit searches the whole level at once:
by tables while nodes are few, then by a walk over rows on a CPU, and by sorting them on
devices that work side by side.

The trap: a node whose columns were all constant must draw on, after the others are done.

Reference: draws by node as in Breiman, "Random Forests", Machine Learning 2001,
https://doi.org/10.1023/A:1010933404324 (section 4).
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxml.trees.impurity import Impurity
from jaxml.trees.search import (
    Found,
    Least,
    Level,
    Rows,
    Shape,
    Split,
    by_chance,
    by_sort,
    by_table,
    by_walk,
)
from jaxml.trees.walk import MOST
from jaxml.typing import Array, Bool, Float, Int, PRNGKeyArray


class Drawn(NamedTuple):
    """How many columns there are, the first ones, and how many a node draws."""

    columns: Int[Array, ""]
    visits: Int[Array, ""]


def best_split(
    rows: Rows,
    level: Level,
    alive: Bool[Array, " open"],
    impurity: Impurity,
    least: Least,
    drawn: Drawn,
    shape: Shape,
    key: PRNGKeyArray,
) -> tuple[Split, Float[Array, "channels open"]]:
    """The best split of every node over the columns that it draws, and its left sums."""
    columns, capacity = len(rows.x), shape.open
    kind = jnp.int16 if columns < 2**15 else jnp.int32
    deck = jnp.zeros((capacity, 0), kind)
    if shape.draws:
        deck = jnp.broadcast_to(jnp.arange(columns, dtype=kind), (capacity, columns))
    order = _order(key, columns, drawn.columns)
    each = jnp.arange(capacity, dtype=jnp.int32)
    num_open = jnp.sum(alive, dtype=jnp.int32)

    def search(feature: Array, visit: Array) -> tuple[Split, Array, Array]:
        if shape.random:
            noise = jax.random.fold_in(jax.random.fold_in(key, 1), visit)
            return by_chance(rows, level, feature, impurity, least, shape, noise)
        return _searched(rows, level, num_open, feature, impurity, least, shape)

    def wants(visit: Array, varied: Array) -> Array:
        """Which nodes still draw: up to their number, then until a column varies."""
        return alive & (visit < drawn.columns) & ((visit < drawn.visits) | ~varied)

    def visit(carry: tuple) -> tuple:
        j, best, left, varied, deck = carry
        feature = jnp.broadcast_to(order[j], (capacity,))
        if shape.draws:  # the next card of each node's shuffled deck
            noise = jax.random.uniform(
                jax.random.fold_in(key, 2 + j), (capacity,), jnp.float32
            )
            room = (drawn.columns - j).astype(jnp.float32)
            other = j + jnp.minimum(
                (noise * room).astype(jnp.int32), drawn.columns - j - 1
            )
            feature = deck[each, other].astype(jnp.int32)
            deck = deck.at[each, other].set(deck[:, j])
        found, found_left, varies = search(feature, j)
        better = wants(j, varied) & (found.gain > best.gain)
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), found, best)
        left = jnp.where(better[None, :], found_left, left)
        return j + 1, best, left, varied | varies, deck

    nothing = Split(
        gain=jnp.full(capacity, -jnp.inf),
        feature=jnp.zeros(capacity, jnp.int32),
        below=jnp.zeros(capacity, jnp.int32),
        threshold=jnp.zeros(capacity, jnp.float32),
        default_left=jnp.zeros(capacity, bool),
        some_missing=jnp.zeros(capacity, bool),
    )
    start = jnp.int32(0), nothing, level.sums, jnp.zeros(capacity, bool), deck
    end = lax.while_loop(lambda c: jnp.any(wants(c[0], c[3])), visit, start)
    best, left = end[1], end[2]
    gain = best.gain
    if rows.targets is None:
        gain -= impurity.rule.score(shape.bare(level.sums))
    gain = jnp.where(best.gain > -jnp.inf, jnp.maximum(gain, 0), -jnp.inf)
    return best._replace(gain=gain), left


def _order(key: PRNGKeyArray, columns: int, used: Array) -> Int[Array, " columns"]:
    """The first `used` columns in any order, before the others."""
    noise = jax.random.uniform(jax.random.fold_in(key, 0), (columns,), jnp.float32)
    noise = jnp.where(jnp.arange(columns, dtype=jnp.int32) < used, noise, 2)
    return jnp.argsort(noise).astype(jnp.int32)


def _searched(
    rows: Rows,
    level: Level,
    num_open: Int[Array, ""],
    feature: Int[Array, " open"],
    impurity: Impurity,
    least: Least,
    shape: Shape,
) -> Found:
    """Every threshold, by the smallest table that serves all open nodes, or in order."""

    def through(search: Any, feature: Array, **size: int) -> Found:
        return search(rows, level, feature, impurity, least, shape, **size)

    def in_order(feature: Array) -> Found:
        sorts = partial(through, by_sort)
        if rows.targets is not None or not impurity.light or rows.q.shape[1] > MOST:
            return sorts(feature)
        walks = partial(through, by_walk)
        return lax.platform_dependent(feature, cpu=walks, default=sorts)

    options: list[Any] = [
        partial(through, by_table, size=size) for size in shape.tables
    ]
    if shape.sorts and (not shape.tables or shape.tables[-1] < shape.open):
        options.append(in_order)
    tier = sum((num_open > size).astype(jnp.int32) for size in shape.tables)
    return lax.switch(jnp.minimum(tier, len(options) - 1), options, feature)
