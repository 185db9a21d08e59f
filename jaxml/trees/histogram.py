"""Histogram splits: thresholds between bins, sums by bin and node in integers.

Channels are rounded to 31-bit fixed point (`fixed_point.quantize`), and added up by column,
bin and node (`bin_sums`). Integer sums know no order: the trees are the same, bit for bit,
for any order of the rows, any number of devices (`lax.psum` of the sums), and any way to add
them up. Then all candidates of all columns and nodes are tried (`bin_splits`).

The trap: of each two channels the second must not be negative (`bin_sums`).

Reference: Chen and Guestrin, "XGBoost: A Scalable Tree Boosting System", KDD 2016,
https://arxiv.org/abs/1603.02754 (algorithm 2).
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jaxml.export import export
from jaxml.trees.bin_splits import best_splits, goes_right, level_of
from jaxml.trees.bin_sums import Implementation, Table, sums_by_bin
from jaxml.trees.bins import Bins
from jaxml.trees.fixed_point import power_of_two, quantize
from jaxml.trees.growth import MIN_GAIN, Columns, Nodes, assemble, child_bounds
from jaxml.trees.rule import Rule
from jaxml.trees.tree import Tree
from jaxml.typing import Array, Bool, Float, Int, PRNGKeyArray


@export("trees.histogram.grow", since="0.1")
def grow(
    bins: Bins,
    channels: Float[Array, "channels rows"],
    rule: Rule,
    max_depth: int,
    *,
    gamma: Float[Array, ""] | float = 0.0,
    use: Columns | None = None,
    available: Bool[Array, " columns"] | None = None,
    key: PRNGKeyArray | None = None,
    axis_name: str | None = None,
    max_leaves: int = 0,
    best_first: bool = False,
    implementation: Implementation = "scatter",
    interpret: bool = False,
) -> tuple[Tree, Int[Array, " rows"]]:
    """One tree, and the leaf of every row.

    Args:
        bins: binned features.
        channels: what is summed; every second one not negative. Rows left out carry zeros.
        rule: scores the sums.
        max_depth: levels of splits.
        gamma: the least gain of a split.
        use: constraints and sampling of columns.
        available: the columns that this tree may use.
        key: for the sampling of columns by level and node.
        axis_name: mesh axis over which the rows are split.
        max_leaves: how many leaves the tree may have; 0 for as many as there are.
        best_first: whether the splits that gain most are kept then, not the upper ones.
        implementation: "scatter", or "mosaic_gpu", a kernel that is taken on a GPU.
        interpret: run the kernel without one.

    Returns:
        the tree in heap order, and the node that is each row's leaf.
    """
    use = use or Columns()
    key = jax.random.key(0) if key is None else key
    if available is None:
        available = jnp.ones(bins.shape[1], bool)
    # Wide numbers live inside one program only: op by op they would be narrowed.
    program = partial(
        _grow,
        rule=rule,
        max_depth=max_depth,
        gamma=gamma,
        use=use,
        axis_name=axis_name,
        max_leaves=max_leaves,
        best_first=best_first,
        sums=partial(sums_by_bin, implementation=implementation, interpret=interpret),
    )
    return jax.jit(program, inline=True)(bins, channels, available, key)


def _grow(
    bins: Bins,
    channels: Float[Array, "channels rows"],
    available: Bool[Array, " columns"],
    key: PRNGKeyArray,
    *,
    rule: Rule,
    max_depth: int,
    gamma: Float[Array, ""] | float,
    use: Columns,
    axis_name: str | None,
    max_leaves: int,
    best_first: bool,
    sums: Callable[..., Table],
) -> tuple[Tree, Int[Array, " rows"]]:
    rows, num_columns = bins.shape
    q, exponent = quantize(channels, axis_name)
    slot = jnp.zeros(rows, jnp.int32)
    bounds = None
    if use.monotone:
        bounds = jnp.array([[-jnp.inf, jnp.inf]], jnp.float32)
    path = jnp.zeros((1, num_columns), bool)
    alive = jnp.ones(1, bool)
    levels, own = [], None
    with jax.enable_x64(True):
        unit = power_of_two(-exponent, jnp.float64)
        total = _psum(jnp.sum(q.astype(jnp.int64), axis=1)[:, None], axis_name)
    for depth in range(max_depth):
        own = sums(bins, q, slot, 2**depth, own)
        with jax.enable_x64(True):
            table = _psum(own, axis_name)
        nodes = _describe(total, unit, rule, bounds)
        allowed = use.allowed(jax.random.fold_in(key, depth), available, path)
        level = level_of(bins, table, total, unit, rule, bounds, use)
        splits, cut, left = best_splits(bins, level, allowed)
        splits = splits._replace(
            gain=jnp.where(splits.gain >= gamma, splits.gain, -jnp.inf)
        )
        levels.append((nodes, splits))
        alive = alive & (splits.gain > MIN_GAIN)
        with jax.enable_x64(True):  # the rows of a leaf stay in its left child
            left = jnp.where(alive[None], left, total)
            total = jnp.stack((left, total - left), axis=2).reshape(len(left), -1)
        slot = 2 * slot + goes_right(bins, slot, splits, cut, alive)
        if bounds is not None:
            inherited = jnp.repeat(bounds, 2, axis=0)
            value = _describe(total, unit, rule, inherited).value.reshape(-1, 2)
            sign = jnp.asarray(use.monotone, jnp.int32)[splits.feature]
            bounds = child_bounds(bounds, value.sum(axis=1) / 2, sign)
        if use.interaction:
            read = jax.nn.one_hot(splits.feature, num_columns, dtype=bool)
            path = path | (read & alive[:, None])
        path = jnp.repeat(path, 2, axis=0)
        alive = jnp.repeat(alive, 2)
    bottom = _describe(total, unit, rule, bounds)
    tree, leaf = assemble(
        levels, bottom, 0.0, prune=False, max_leaves=max_leaves, best_first=best_first
    )
    return tree, leaf[slot]


def _psum(x: Array, axis_name: str | None) -> Array:
    return x if axis_name is None else lax.psum(x, axis_name)


def _describe(
    total: Int[Array, "channels slots"], unit: Array, rule: Rule, bounds: Array | None
) -> Nodes:
    with jax.enable_x64(True):
        sums = total * unit[:, None]
        value = rule.value(sums)
        cover = rule.cover_of(sums)
    if bounds is not None:
        value = jnp.clip(value, bounds[:, 0][None], bounds[:, 1][None])
    return Nodes(value.T, cover)
