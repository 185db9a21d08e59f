"""Large trees in stages: fewer rows and another number of open nodes in each.

A level costs as much as the arrays that it runs over are long, however few rows still move
and however few nodes are open. So a tree of many rows starts with the rows that count and
room for the few nodes that tables serve, goes on with room for all nodes, and then drops
the rows that rest in leaves, twice. Every stage is a loop over levels of its own shape.

The trap: a stage that is entered with more rows or nodes than it has room for would lose
them silently, hence loops end by what the next stage can hold (`frontier`).

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
    for share in (1, *SHARES):
        size = max(int(share * rows), 1)
        stages.append((size, whole._replace(open=min(whole.open, max(size // 2, 1)))))
    return tuple(stages)


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
    state: State, here: Shape, after: tuple[int, Shape] | None
) -> Bool[Array, ""]:
    """Whether a stage has another level: nodes are open, and the next would not do."""
    alive = state.at < here.nodes
    some = jnp.any(alive)
    if after is None:
        return some
    if not here.sorts:
        return some & (jnp.sum(alive) <= here.tables[-1])
    return some & (jnp.sum(jnp.where(alive, state.count, 0)) > after[0])


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
