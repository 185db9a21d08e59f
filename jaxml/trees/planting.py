"""From a table and a configuration to a program that grows one tree, and its numbers.

What shapes a program is a `Plan`; all other limits are numbers that go in, so that a grid
of them trains in one program. `grow_tree` serves single trees, forests and boosting.

The trap: weights differ from tree to tree, so limits that are shares of weight are
multiplied by it inside the program.

Reference: Breiman et al., "Classification and Regression Trees", 1984,
https://doi.org/10.1201/9781315139470 (chapters 2, 4 and 8).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxml.trees import pruning
from jaxml.trees.cart_config import Config, num_features
from jaxml.trees.codes import Codes, encode
from jaxml.trees.deviation import Targets, medians, rank_targets
from jaxml.trees.frontier import Limits, Shape, grow, shape
from jaxml.trees.impurity import CLASSIFIERS, Name, impurity
from jaxml.trees.table import Table
from jaxml.trees.tree import Tree, leaf_index
from jaxml.typing import Array, Float, PRNGKeyArray


class Plan(NamedTuple):
    """What a program is compiled for."""

    criterion: Name
    outputs: int
    num_classes: int
    max_leaf_nodes: int | None
    max_bins: int | None
    prunes: bool
    shape: Shape


class Bounds(NamedTuple):
    """Limits as numbers, before the weights of a tree are known."""

    limits: Limits
    min_weight: Float[Array, ""] | float
    min_decrease: Float[Array, ""] | float
    ccp_alpha: Float[Array, ""] | float


class Prepared(NamedTuple):
    """What all trees of one data set share."""

    x: Float[Array, "columns rows"]
    codes: Codes | None
    y: Array
    same: Array
    targets: Targets | None = None


@partial(jax.jit, static_argnames="plan")
def prepare(x: Array, y: Array, weights: Array, plan: Plan) -> Prepared:
    """Sorts columns and targets once, in a program that all data sets of a plan share."""
    codes = None
    if not plan.shape.random:
        codes = encode(x, plan.max_bins, weights > 0)
    x = jnp.asarray(x, jnp.float32).T
    x = jnp.where(x == 0, 0.0, x)  # no negative zero
    targets = rank_targets(y) if plan.criterion == "absolute_error" else None
    return Prepared(x, codes, y, same_target(y), targets)


def same_target(y: Array) -> Array:
    """A number for every distinct row of targets."""
    if y.shape[1] == 1:
        y = y[:, 0]
        if jnp.issubdtype(y.dtype, jnp.integer):
            return y.astype(jnp.int32)
        return lax.bitcast_convert_type(jnp.where(y == 0, 0.0, y), jnp.int32)
    order = jnp.lexsort(y.T)
    ordered = y[order]
    is_new = jnp.any(ordered != jnp.roll(ordered, 1, axis=0), axis=1).at[0].set(False)
    number = jnp.cumsum(is_new, dtype=jnp.int32)
    return jnp.zeros(len(y), jnp.int32).at[order].set(number)


def channels_of(y: Array, weights: Array, plan: Plan) -> Float[Array, "channels rows"]:
    """What is summed over rows: weights of classes, or weighted targets and weights."""
    if plan.criterion in CLASSIFIERS:
        classes = jnp.arange(plan.num_classes, dtype=y.dtype)
        hot = y[:, :, None] == classes[None, None, :]
        return jnp.where(hot, weights[:, None, None], 0).reshape(len(y), -1).T
    return jnp.concatenate([(y * weights[:, None]).T, weights[None, :]])


def grow_tree(
    prepared: Prepared,
    weights: Float[Array, " rows"],
    plan: Plan,
    bounds: Bounds,
    key: PRNGKeyArray,
) -> tuple[Tree, Array]:
    """One tree for these weights, and the leaf of every row that has some."""
    x, codes, y, same, targets = prepared
    total = jnp.sum(weights)
    rule = impurity(plan.criterion, plan.outputs, plan.num_classes)
    limits = bounds.limits._replace(
        min_decrease=bounds.min_decrease * total,
        min_weight=jnp.asarray(bounds.min_weight * total * (1 - 1e-6), jnp.float32),
    )
    tree, leaf, _ = grow(
        x,
        codes,
        channels_of(y, weights, plan),
        same,
        weights > 0,
        rule,
        limits,
        plan.shape,
        key,
        targets,
    )
    changed = plan.max_leaf_nodes is not None or plan.prunes
    if plan.max_leaf_nodes is not None:
        tree = pruning.best_first(tree, plan.max_leaf_nodes)
    if plan.prunes:
        tree = pruning.prune(tree, bounds.ccp_alpha)
    if changed:
        leaf = leaf_index(tree, x.T)
    if targets is not None:
        middle = medians(y, weights, leaf, len(tree.left))
        tree = tree._replace(value=jnp.where(jnp.isnan(middle), tree.value, middle))
    return tree, leaf


def plan_of(
    config: Config, data: Table, most_counted: int | None = None
) -> tuple[Plan, Bounds]:
    """What to compile, and the numbers that go in.

    Args:
        config: how to grow.
        data: from `table`.
        most_counted: how many rows have a weight at most, if not all.
    """
    rows, columns = data.rows, data.columns

    def number(value: int | float, least: int) -> int:
        share = isinstance(value, float) and not isinstance(value, int)
        return max(int(np.ceil(value * rows)) if share else int(value), least)

    min_leaf = number(config.min_samples_leaf, 1)
    min_split = max(number(config.min_samples_split, 2), 2 * min_leaf)
    visits = num_features(config.max_features, columns)
    depth = config.max_depth
    if config.max_leaf_nodes is not None:
        depth = min(depth or config.max_leaf_nodes, config.max_leaf_nodes - 1)
    padded = len(data.x)
    width = min(config.max_bins or padded, padded)
    compiled = shape(
        padded,
        width,
        depth,
        most_counted=most_counted,
        staged=config.criterion != "absolute_error",
        random=config.splitter == "random",
        draws=visits < columns,
        has_missing=data.has_missing,
        counts=min_leaf > 1,
    )
    plan = Plan(
        config.criterion,
        data.outputs,
        data.num_classes,
        config.max_leaf_nodes,
        config.max_bins,
        config.ccp_alpha > 0,
        compiled,
    )
    most = np.iinfo(np.int32).max
    limits = Limits(
        np.int32(most if depth is None else depth),
        np.int32(min_split),
        np.int32(min_leaf),
        np.float32(0),
        np.int32(columns),
        np.int32(visits),
    )
    return plan, Bounds(
        limits,
        np.float32(config.min_weight_fraction_leaf),
        np.float32(config.min_impurity_decrease),
        np.float32(config.ccp_alpha),
    )


def trim(trees: Tree) -> Tree:
    """Without the nodes behind the last that is in use, but for a power of two."""
    if isinstance(trees.left, jax.core.Tracer):
        return trees
    last = int(np.max(np.asarray(trees.left), initial=0)) + 2
    size = min(1 << (last - 1).bit_length(), trees.left.shape[-1])
    axis = trees.left.ndim - 1
    return jax.tree.map(lambda a: a[(slice(None),) * axis + (slice(size),)], trees)
