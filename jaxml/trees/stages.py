"""Large trees in stages: fewer rows and another number of open nodes in each.

A level costs as much as the arrays that it runs over are long, however few rows still move
and however few nodes are open. So a tree of many rows starts with the rows that count and
room for the few nodes that tables serve, goes on with room for a node in sixteen rows, as
most trees ever have, or else for all, and then drops the rows that rest in leaves, twice.
Every stage is a loop over levels of its own shape; most trees pass by one or another.

The trap: a stage that is entered with more rows or nodes than it has room for would lose
them silently, hence a loop goes on while its own room is enough for all children, and ends
no sooner than the rows that still move fit into the next.

Reference: dropping finished rows as in Shafer, Agrawal and Mehta, "SPRINT: A Scalable
Parallel Classifier for Data Mining", VLDB 1996, https://dl.acm.org/doi/10.5555/645922.673491
(section 2.3: every leaf has its own lists, and lists of finished leaves are not read).
"""

from typing import NamedTuple

import jax.numpy as jnp

from jaxml.trees.search import Rows, Shape, take
from jaxml.trees.tree import Tree
from jaxml.typing import Array, Bool, Float, Int

TABLE_ROWS = 4096
"""From how many rows on tables are compiled beside the sort."""
STAGED_ROWS = 16384
"""From how many rows on trees are grown in stages."""
SHARES = (0.35, 0.08)
"""Of the rows at the start: what the later stages hold."""
CROWD = 16
"""Rows to an open node of all but the deepest trees."""


class State(NamedTuple):
    """What is carried from level to level; `slot` is `open` where a row rests."""

    depth: Int[Array, ""]
    used: Int[Array, ""]
    slot: Int[Array, " rows"]
    node: Int[Array, " rows"]
    at: Int[Array, " open"]
    count: Int[Array, " open"]
    sums: Float[Array, "channels open"]
    tree: Tree
    total: Float[Array, "channels nodes"]


def tables_of(whole: Shape, rows: int, width: int) -> tuple[int, ...]:
    """How many open nodes tables of so many codes should serve."""
    if rows < TABLE_ROWS or whole.random:
        return ()
    sizes = (min(whole.open, 32), min(whole.open, max(rows // width, 1)))
    return tuple(sorted({size for size in sizes if size * width <= 2 * rows}))


def stages_of(whole: Shape, rows: int, width: int) -> tuple[tuple[int, Shape], ...]:
    """Rows and shape of each stage, of which `rows` at most are counted."""
    tables = tables_of(whole, rows, width)
    if tables and tables[-1] >= whole.open:
        return ((rows, whole._replace(tables=tables, sorts=False)),)
    stages = []
    if tables and tables[-1] >= 32:
        few = whole._replace(open=2 * tables[-1], tables=tables, sorts=False)
        stages.append((rows, few))
    some = rows // CROWD
    if (stages[0][1].open if stages else 0) < some < whole.open:
        stages.append((rows, whole._replace(open=some)))
    for share in (1, *SHARES):
        size = max(int(share * rows), 1)
        stages.append((size, whole._replace(open=_most_open(whole, size))))
    return tuple(stages)


def _most_open(whole: Shape, size: int) -> int:
    """How many nodes of so many rows can be open, for each has two or more."""
    return min(whole.open, max(size // 2, 1))


def which(moves: Bool[Array, " rows"], size: int) -> Int[Array, " size"]:
    """The rows that move, in their order; the number of rows behind them."""
    n = len(moves)
    place = jnp.where(moves, jnp.cumsum(moves, dtype=jnp.int32) - 1, size)
    row = jnp.full(size, n, jnp.int32)
    return row.at[place].set(jnp.arange(n, dtype=jnp.int32), mode="drop")


def keep(rows: Rows, kept: Int[Array, " size"]) -> Rows:
    """These rows alone; what stands behind them is some row or other."""
    near = jnp.minimum(kept, rows.x.shape[1] - 1)
    codes = rows.codes
    if codes is not None:
        codes = codes._replace(index=jnp.take(codes.index, near, axis=1))
    return Rows(
        jnp.take(rows.x, near, axis=1), codes, take(rows.q, near), take(rows.same, near)
    )


def take_or(values: Int[Array, " rows"], kept: Int[Array, " size"], rest: int) -> Array:
    """The values of these rows, and `rest` behind them."""
    return jnp.asarray(values).at[kept].get(mode="fill", fill_value=rest)


def goes_on(
    state: State, whole: Shape, stage: int, stages: tuple[tuple[int, Shape], ...]
) -> Bool[Array, ""]:
    """Whether a stage has another level: nodes are open, and no later one is due."""
    size, here = stages[stage]
    alive = state.at < here.nodes
    num_open = jnp.sum(alive)
    more = num_open > 0
    if here.open < _most_open(whole, size):
        more &= num_open <= here.open // 2
    smaller = [rows for rows, _ in stages[stage + 1 :] if rows < size]
    if smaller:
        more &= jnp.sum(jnp.where(alive, state.count, 0)) > smaller[0]
    return more


def resize(state: State, capacity: int, nodes: int) -> State:
    """The same with room for another number of open nodes, no less than there are."""
    old = len(state.at)
    if capacity == old:
        return state
    more = max(capacity - old, 0)

    def fit(part: Array, fill: int) -> Array:
        edges = [(0, 0)] * (part.ndim - 1) + [(0, more)]
        return jnp.pad(part, edges, constant_values=fill)[..., :capacity]

    return state._replace(
        slot=jnp.where(state.slot < old, state.slot, capacity),
        at=fit(state.at, nodes),
        count=fit(state.count, 0),
        sums=fit(state.sums, 0),
    )
