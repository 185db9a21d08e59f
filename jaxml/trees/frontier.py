"""Trees of any depth: each level is a list of the nodes that may still split.

Levels with 2^depth slots cannot reach depth 30. Here the open nodes of a level are numbered
without gaps, at most n / 2 of them, for each has two rows or more; their children are
appended to one list of at most 2 n - 1 nodes, and one `lax.while_loop` runs until no node
is open, however deep that is. One level costs the same work however many nodes it has,
so that large trees are grown in `stages` of fewer and fewer rows.

Every node draws its own columns, one in each of `visits`, and goes on while those it drew are
constant, as random forests must. `search` finds the best threshold of each: by a table by
node and code while nodes are few, then from rows in the order of their codes.

The trap: sums must not depend on the order of rows, or two runs grow two trees. Channels
are put on a grid on which every sum is exact in float64 (`fixed_point.snap`).

Reference: Breiman et al., "Classification and Regression Trees", 1984,
https://doi.org/10.1201/9781315139470; draws by node as in Breiman, "Random Forests",
Machine Learning 2001, https://doi.org/10.1023/A:1010933404324; random thresholds as in
Geurts et al., "Extremely Randomized Trees", Machine Learning 2006,
https://doi.org/10.1007/s10994-006-6226-1.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxml.export import export
from jaxml.trees.codes import Codes
from jaxml.trees.deviation import Targets
from jaxml.trees.fixed_point import snap
from jaxml.trees.impurity import Impurity
from jaxml.trees.search import (
    Least,
    Level,
    Rows,
    Shape,
    admits,
    default_side,
    goes_left,
    take,
)
from jaxml.trees.stages import (
    STAGED_ROWS,
    State,
    goes_on,
    keep,
    resize,
    stages_of,
    tables_of,
    take_or,
    which,
)
from jaxml.trees.tree import Tree
from jaxml.trees.visits import Drawn, best_split
from jaxml.typing import Array, Bool, Float, Int, PRNGKeyArray

MOST = 2**31 - 1


@export("trees.frontier.Limits", since="0.1")
class Limits(NamedTuple):
    """Where a tree stops; numbers that may differ from tree to tree of one program.

    Attributes:
        max_depth: levels of splits.
        min_split: the least number of rows of a node that splits.
        min_leaf: the least number of rows of a child.
        min_decrease: the least gain of a split, as weight times impurity.
        columns: the first so many columns are used.
        visits: how many of them each node draws.
        min_weight: the least weight of a child.
    """

    max_depth: Int[Array, ""] | int
    min_split: Int[Array, ""] | int
    min_leaf: Int[Array, ""] | int
    min_decrease: Float[Array, ""] | float
    columns: Int[Array, ""] | int
    visits: Int[Array, ""] | int
    min_weight: Float[Array, ""] | float = 0.0


@export("trees.frontier.shape", since="0.1")
def shape(
    rows: int,
    width: int,
    max_depth: int | None = None,
    min_split: int = 2,
    *,
    most_counted: int | None = None,
    staged: bool = True,
    **options: bool,
) -> Shape:
    """The least shape for so many rows, codes of `width`, and levels.

    Args:
        rows: of the data set.
        width: of the codes.
        max_depth: levels of splits, if there is a limit.
        min_split: the least number of rows of a node that splits.
        most_counted: how many rows take part at most; all without it.
        staged: whether large data sets may be grown in stages.
        options: as in `Shape`.

    >>> shape(100, 100).nodes, shape(100, 100, max_depth=3).nodes
    (199, 15)
    """
    open_nodes = max(rows // max(min_split, 2), 1)
    nodes = max(2 * rows - 1, 1)
    if max_depth is not None and max_depth < 31:
        open_nodes = min(open_nodes, 2 ** max(max_depth - 1, 0))
        nodes = min(nodes, 2 ** (max_depth + 1) - 1)
    whole = Shape(nodes, open_nodes, **options)
    if staged and rows >= STAGED_ROWS:
        return whole._replace(stages=stages_of(whole, most_counted or rows, width))
    return whole._replace(tables=tables_of(whole, rows, width))


@export("trees.frontier.grow", since="0.1")
def grow(
    x: Float[Array, "columns rows"],
    codes: Codes | None,
    channels: Float[Array, "channels rows"],
    same: Int[Array, " rows"],
    counted: Bool[Array, " rows"],
    impurity: Impurity,
    limits: Limits,
    shape: Shape,
    key: PRNGKeyArray,
    targets: Targets | None = None,
) -> tuple[Tree, Int[Array, " rows"], Int[Array, ""]]:
    """One tree; the leaf of every counted row, the root for the others; nodes in use.

    Args:
        x: features, a column per row of the array, float32; NaN is missing.
        codes: of x; None for random thresholds.
        channels: what is summed.
        same: rows of one number have one target: a node of them is pure.
        counted: rows that take part.
        impurity: scores the sums.
        limits: where to stop.
        shape: from `shape`.
        key: of columns and thresholds.
        targets: for splits by absolute deviations; no value may then be missing.
    """
    with jax.enable_x64(True):
        return _grow(
            x, codes, channels, same, counted, impurity, limits, shape, key, targets
        )


def _grow(
    x: Array,
    codes: Codes | None,
    channels: Array,
    same: Array,
    counted: Array,
    impurity: Impurity,
    limits: Limits,
    shape: Shape,
    key: PRNGKeyArray,
    targets: Targets | None,
) -> tuple[Tree, Array, Array]:
    """The same inside the wide scope."""
    n = x.shape[1]
    q = snap(jnp.where(counted[None, :], channels, 0)).T
    if shape.counts:
        q = jnp.concatenate([q, counted[:, None].astype(q.dtype)], axis=1)
    rows = Rows(x, codes, q, same, targets)
    limits = Limits(*(jnp.asarray(limit) for limit in limits))
    stages = shape.stages or ((n, shape),)
    nodes, capacity = shape.nodes, stages[0][1].open
    root = jnp.sum(q, axis=0)[:, None]
    count = jnp.sum(counted, dtype=jnp.int32)
    of = jnp.where(counted, 0, 1).astype(jnp.int32)
    starts = _is_open(rows, root, count[None], of, impurity, limits, shape)[0]
    starts &= limits.max_depth > 0
    each = jnp.arange(capacity, dtype=jnp.int32)
    start = State(
        depth=jnp.int32(0),
        used=jnp.int32(1),
        slot=jnp.where(counted & starts, 0, capacity).astype(jnp.int32),
        node=jnp.zeros(n, jnp.int32),
        at=jnp.where((each == 0) & starts, 0, nodes).astype(jnp.int32),
        count=jnp.where(each == 0, count, 0),
        sums=jnp.where((each == 0)[None, :], root, 0),
        tree=Tree(
            feature=jnp.zeros(nodes, jnp.int32),
            threshold=jnp.zeros(nodes, jnp.float32),
            default_left=jnp.zeros(nodes, bool),
            left=jnp.zeros(nodes, jnp.int32),
            value=jnp.zeros((nodes, 0), jnp.float32),
            gain=jnp.zeros(nodes, jnp.float32),
            cover=jnp.zeros(nodes, jnp.float32),
            categories=jnp.zeros((nodes, 0), jnp.uint32),
        ),
        total=jnp.zeros((q.shape[1], nodes)).at[:, :1].set(root),
    )
    state, row, leaf = start, jnp.arange(n, dtype=jnp.int32), start.node
    for i, (size, here) in enumerate(stages):
        if size < len(row):
            kept = which(state.slot < capacity, size)
            rows, row = keep(rows, kept), take_or(row, kept, n)
            state = state._replace(
                slot=take_or(state.slot, kept, capacity),
                node=take_or(state.node, kept, 0),
            )
        state, capacity = resize(state, here.open, nodes), here.open
        state = lax.while_loop(
            partial(goes_on, whole=shape, stage=i, stages=stages),
            partial(
                _level, rows=rows, impurity=impurity, limits=limits, shape=here, key=key
            ),
            state,
        )
        leaf = jnp.asarray(leaf).at[row].set(state.node, mode="drop")
    total = shape.bare(state.total)
    tree = state.tree._replace(
        value=impurity.rule.value(total).T,
        cover=impurity.weight(total).astype(jnp.float32),
    )
    return tree, leaf, state.used


def _level(
    state: State,
    rows: Rows,
    impurity: Impurity,
    limits: Limits,
    shape: Shape,
    key: PRNGKeyArray,
) -> State:
    """Splits all open nodes, sends their rows on, and opens their children."""
    n = rows.x.shape[1]
    here = jax.random.fold_in(key, state.depth)
    first = jnp.cumsum(state.count, dtype=jnp.int32) - state.count
    level = Level(state.slot, first, state.count, state.sums)
    alive = state.at < shape.nodes
    least, drawn = _least(limits), Drawn(limits.columns, limits.visits)
    split, left_sums = best_split(
        rows, level, alive, impurity, least, drawn, shape, here
    )
    split_is = alive & (split.gain > -jnp.inf)
    split_is &= split.gain + 1e-12 >= limits.min_decrease
    rank = jnp.cumsum(split_is, dtype=jnp.int32) - 1
    left = state.used + 2 * rank
    put = jnp.where(split_is, state.at, shape.nodes)

    # Rows go on to their child: 2 s or 2 s + 1, and 2 open where they rest.
    slot = jnp.minimum(state.slot, shape.open - 1)
    moves = (state.slot < shape.open) & take(split_is, slot)
    right = (~goes_left(rows, slot, split)).astype(jnp.int32)
    children = 2 * shape.open
    child = jnp.where(moves, 2 * slot + right, children)
    node = jnp.where(moves, take(left, slot) + right, state.node)
    ones = jnp.ones(n, jnp.int32)
    empty = jnp.zeros(children + 1, jnp.int32)  # the last for rows at rest
    count = empty.at[child].add(ones, mode="promise_in_bounds")[:-1]
    sums = jnp.stack((left_sums, state.sums - left_sums), axis=2)
    sums = sums.reshape(len(sums), children)
    number = (left[:, None] + jnp.arange(2, dtype=jnp.int32)[None, :]).reshape(-1)
    exists = jnp.repeat(split_is, 2)
    total = jnp.asarray(state.total).at[:, jnp.where(exists, number, shape.nodes)]

    # The open ones among the children close ranks.
    opens = exists & _is_open(rows, sums, count, child, impurity, limits, shape)
    opens &= state.depth + 1 < limits.max_depth
    place = jnp.cumsum(opens, dtype=jnp.int32) - 1
    place = jnp.where(opens, place, shape.open)
    none = jnp.full(shape.open, shape.nodes, jnp.int32)
    which = jnp.zeros(shape.open, jnp.int32)
    which = which.at[place].set(jnp.arange(children, dtype=jnp.int32), mode="drop")
    slot_of = jnp.append(place, jnp.int32(shape.open))
    tree = state.tree
    tree = tree._replace(
        feature=jnp.asarray(tree.feature).at[put].set(split.feature, mode="drop"),
        threshold=jnp.asarray(tree.threshold).at[put].set(split.threshold, mode="drop"),
        default_left=jnp.asarray(tree.default_left)
        .at[put]
        .set(default_side(split, count), mode="drop"),
        left=jnp.asarray(tree.left).at[put].set(left, mode="drop"),
        gain=jnp.asarray(tree.gain)
        .at[put]
        .set(split.gain.astype(jnp.float32), mode="drop"),
    )
    return State(
        depth=state.depth + 1,
        used=state.used + 2 * jnp.sum(split_is, dtype=jnp.int32),
        slot=take(slot_of, child),
        node=node,
        at=none.at[place].set(number, mode="drop"),
        count=count[which],
        sums=sums[:, which],
        tree=tree,
        total=total.set(sums, mode="drop"),
    )


def _is_open(
    rows: Rows,
    sums: Float[Array, "channels nodes"],
    count: Int[Array, " nodes"],
    of: Int[Array, " rows"],
    impurity: Impurity,
    limits: Limits,
    shape: Shape,
) -> Bool[Array, " nodes"]:
    """Which nodes may split, of sums, rows, and the node of each row."""
    enough = (count >= limits.min_split) & (count >= 2 * limits.min_leaf)
    half = shape.bare(sums) / 2
    heavy = admits(impurity, half, _least(limits))  # enough for two children
    if impurity.pure is not None:
        mixed = ~impurity.pure(shape.bare(sums))
    else:
        most = jnp.full(len(count) + 1, MOST, jnp.int32)
        first = most.at[of].min(rows.same, mode="promise_in_bounds")
        last = (-most).at[of].max(rows.same, mode="promise_in_bounds")
        mixed = (first < last)[:-1]
    return enough & (count > 1) & heavy & mixed


def _least(limits: Limits) -> Least:
    return Least(jnp.asarray(limits.min_leaf), jnp.asarray(limits.min_weight))
