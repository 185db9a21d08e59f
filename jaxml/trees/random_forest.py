"""Random forests: trees on bootstrap samples, in which every node draws its own columns.

A tree counts each row as often as n draws with replacement hit it; a node draws a few
columns, goes on drawing while they are constant, and splits at the best of their
thresholds. The forest says the mean of its trees: class shares ("soft votes") or numbers.

Bootstrap samples are weights, so that all trees have one shape: `lax.map` grows them one
after the other or in batches, `mesh` spreads them over devices. Each tree's key comes from
its number, hence the same forest comes out of any batch size and any number of devices.

The trap: columns are drawn for every node, not for every tree, and a draw of constant
columns must be repeated; without that, sparse columns leave leaves that should split.

Reference: Breiman, "Random Forests", Machine Learning 2001,
https://doi.org/10.1023/A:1010933404324 (sections 2 to 4, and 10 on importance). Deviation:
votes are soft, as in scikit-learn.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxml.export import export
from jaxml.trees import cart, planting
from jaxml.trees.learner import map_fits
from jaxml.trees.table import check_width, pad_rows, table
from jaxml.trees.tree import Tree, in_blocks, leaf_index, predict_sum
from jaxml.typing import Array, Float, PRNGKeyArray

CHUNK_NODES = 2**21
"""Nodes that one call may return before those in no use are cut off."""


@export("trees.random_forest.Config", since="0.1")
@dataclass(frozen=True)
class Config:
    """What a forest is grown by.

    Attributes:
        tree: how each tree grows; "sqrt" columns per node are usual for classes, all or a
            third of them for numbers.
        num_trees: trees.
        bootstrap: whether each tree sees its own sample of rows; otherwise all.
        max_samples: draws of each bootstrap sample, a number or a share; None for as many
            as there are rows.
        batch_size: trees that grow together; it changes time and memory only.
    """

    tree: cart.Config = field(default_factory=lambda: cart.Config(max_features="sqrt"))
    num_trees: int = 100
    bootstrap: bool = True
    max_samples: int | float | None = None
    batch_size: int = 1


@export("trees.random_forest.fit", since="0.1")
def fit(
    x: Float[Array, "rows columns"],
    y: Array,
    config: Config,
    key: PRNGKeyArray,
    weights: Float[Array, " rows"] | None = None,
    *,
    mesh: Mesh | None = None,
) -> cart.Model:
    """Grows a forest: a `cart.Model` whose tree has a leading axis.

    Args:
        x: features, compared as float32; NaN is missing.
        y: class indices, or numbers: [rows] or [rows, outputs].
        config: how to grow.
        key: tree i grows from `fold_in(key, i)`.
        weights: of the rows, not negative; they multiply the bootstrap's counts.
        mesh: of one axis, over whose devices the trees are spread.

    Raises:
        ValueError: as `cart.fit`, or if a number of the configuration is out of range.

    >>> x = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    >>> y = (x[:, 0] > 0).astype(int)
    >>> model = fit(x, y, Config(num_trees=8), jax.random.key(0))
    >>> float((predict(model, x) == y).mean()) > 0.9
    True

    Reference: Breiman, "Random Forests", Machine Learning 2001,
    https://doi.org/10.1023/A:1010933404324.
    """
    _check(config, len(x))
    data = table(x, y, config.tree, weights)
    draws = _draws(config, data.rows)
    seen = None if draws is None else most_drawn(int(draws[0]), data.rows)
    plan, bounds = planting.plan_of(config.tree, data, seen)
    prepared = planting.prepare(data.x, data.y, data.weights, plan)
    devices = 1 if mesh is None else mesh.size
    chunk = min(max(CHUNK_NODES // plan.shape.nodes, 1), config.num_trees)
    chunk = -(-config.num_trees // -(-config.num_trees // chunk))
    if isinstance(prepared.x, jax.core.Tracer):
        chunk = config.num_trees
    chunk = -(-chunk // devices) * devices
    parts = []
    for start in range(0, config.num_trees, chunk):
        index = np.arange(start, start + chunk, dtype=np.int32)
        grown = _grow(
            prepared,
            data.weights,
            plan,
            bounds,
            key,
            index,
            draws,
            min(config.batch_size, chunk),
            mesh,
        )
        parts.append(planting.trim(grown))
    return cart.model_of(_join(parts, config.num_trees), data)


def _draws(config: Config, rows: int) -> tuple[np.int32, np.int32] | None:
    """How many draws from how many rows; None without bootstrap."""
    if not config.bootstrap:
        return None
    most = config.max_samples
    if isinstance(most, float):
        most = max(round(most * rows), 1)
    return np.int32(rows if most is None else most), np.int32(rows)


def most_drawn(draws: int, rows: int) -> int:
    """How many different rows so many draws hit: never more, but once in 10^29.

    The mean and twelve standard deviations, of which there are at most sqrt(rows) / 2.

    >>> most_drawn(100_000, 100_000), most_drawn(10, 100_000)
    (65110, 10)
    """
    mean = rows * -np.expm1(-draws / rows)
    return min(int(np.ceil(mean + 6 * np.sqrt(rows))), draws, rows)


def _sample(key: PRNGKeyArray, n: int, draws: tuple | None) -> Float[Array, " rows"]:
    """How often each row is drawn."""
    if draws is None:
        return jnp.ones(n, jnp.float32)
    count, rows = draws
    row = jax.random.randint(key, (n,), 0, rows)
    hit = jnp.arange(n, dtype=jnp.int32) < count
    return jnp.zeros(n, jnp.float32).at[row].add(hit.astype(jnp.float32))


@partial(jax.jit, static_argnames=("plan", "batch_size", "mesh"))
def _grow(
    prepared: planting.Prepared,
    weights: Array,
    plan: planting.Plan,
    bounds: planting.Bounds,
    key: PRNGKeyArray,
    index: Array,
    draws: tuple | None,
    batch_size: int,
    mesh: Mesh | None,
) -> Tree:
    def many(prepared: Any, weights: Array, bounds: Any, index: Array) -> Tree:
        def one(i: Array) -> Tree:
            sample_key, tree_key = jax.random.split(jax.random.fold_in(key, i))
            counts = _sample(sample_key, len(weights), draws)
            return planting.grow_tree(
                prepared, weights * counts, plan, bounds, tree_key
            )[0]

        return map_fits(one, index, batch_size)

    if mesh is None:
        return many(prepared, weights, bounds, index)
    axis = P(mesh.axis_names[0])
    # Devices exchange nothing, so there is nothing for the check to find.
    spread = jax.shard_map(
        many, mesh=mesh, in_specs=(P(), P(), P(), axis), out_specs=axis, check_vma=False
    )
    return spread(prepared, weights, bounds, index)


def _join(parts: list[Tree], num_trees: int) -> Tree:
    nodes = max(part.left.shape[1] for part in parts)

    def pad(a: Array) -> Array:
        edges = [(0, 0), (0, nodes - a.shape[1])] + [(0, 0)] * (a.ndim - 2)
        return jnp.pad(a, edges)

    joined = jax.tree.map(
        lambda *a: jnp.concatenate([pad(one) for one in a])[:num_trees], *parts
    )
    return joined


def _check(config: Config, rows: int) -> None:
    for name in ("num_trees", "batch_size"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be positive, got {getattr(config, name)}")
    most = config.max_samples
    if most is not None and not (0 < most <= (1 if isinstance(most, float) else rows)):
        raise ValueError(
            f"max_samples must be a share in (0, 1] or a number in [1, {rows}], got {most}"
        )


@export("trees.random_forest.predict", since="0.1")
def predict(model: cart.Model, x: Float[Array, "rows columns"]) -> Array:
    """Class indices or numbers, [rows] or [rows, outputs] as y was.

    Raises:
        ValueError: if x has another number of columns than the model was fitted to.
    """
    return _answer(model, _told(model, x))


@export("trees.random_forest.predict_proba", since="0.1")
def predict_proba(model: cart.Model, x: Float[Array, "rows columns"]) -> Array:
    """Mean class shares of the trees, [rows, classes] or [rows, outputs, classes].

    Raises:
        ValueError: if the model is not a classifier, or x is not as wide as it must be.
    """
    if not model.num_classes:
        raise ValueError(
            "the criterion must be a classifier's, got a regression forest"
        )
    told = _told(model, x)
    return told[:, 0] if model.squeeze else told


def _answer(model: cart.Model, told: Array) -> Array:
    value = told[:, :, 0]
    if model.num_classes:
        value = jnp.argmax(told, axis=2).astype(jnp.int32)
    return value[:, 0] if model.squeeze else value


def _told(model: cart.Model, x: Array) -> Float[Array, "rows outputs values"]:
    check_width(x, model.num_features)
    value = pad_rows(partial(_mean, model.tree), x)
    return value.reshape(len(x), model.outputs, max(model.num_classes, 1))


@jax.jit
def _mean(trees: Tree, x: Array) -> Float[Array, "rows values"]:
    count, values = len(trees.left), trees.value.shape[-1]
    weight = jnp.full(count, 1 / count, jnp.float32)
    zero = jnp.zeros(count, jnp.int32)
    return predict_sum(trees, x, zero, weight, jnp.zeros(values, jnp.float32))


@export("trees.random_forest.out_of_bag", since="0.1")
def out_of_bag(
    model: cart.Model,
    x: Float[Array, "rows columns"],
    config: Config,
    key: PRNGKeyArray,
) -> Float[Array, "rows outputs values"]:
    """What the trees that did not see a row say of it; NaN where all of them did.

    Args:
        model: from `fit`.
        x: the features that it was fitted to.
        config: the configuration that it was fitted with.
        key: the key that it was fitted with.

    Raises:
        ValueError: if the trees saw all rows, without bootstrap.
    """
    if not config.bootstrap:
        raise ValueError("bootstrap must be True, or no row is out of any bag")
    check_width(x, model.num_features)
    draws = _draws(config, len(x))
    told = pad_rows(partial(_out_of_bag, model.tree, key, draws), x)
    return told.reshape(len(x), model.outputs, max(model.num_classes, 1))


@jax.jit
def _out_of_bag(trees: Tree, key: PRNGKeyArray, draws: tuple, x: Array) -> Array:
    def step(carry: tuple[Array, Array], one: tuple[Tree, Array]) -> tuple:
        total, count = carry
        tree, i = one
        sample_key, _ = jax.random.split(jax.random.fold_in(key, i))
        free = _sample(sample_key, len(x), draws) == 0
        leaf = in_blocks(lambda rows: leaf_index(tree, rows), x)
        told = jnp.where(free[:, None], tree.value[leaf], 0)
        return (total + told, count + free), None

    start = jnp.zeros((len(x), trees.value.shape[-1])), jnp.zeros(len(x), jnp.int32)
    index = jnp.arange(len(trees.left), dtype=jnp.int32)
    total, count = lax.scan(step, start, (trees, index))[0]
    mean = total / jnp.maximum(count, 1)[:, None]
    return jnp.where((count > 0)[:, None], mean, jnp.nan)


@export("trees.random_forest.permutation_importance", since="0.1")
def permutation_importance(
    score: Callable[[Array], Float[Array, ""]],
    x: Float[Array, "rows columns"],
    key: PRNGKeyArray,
    repeats: int = 5,
) -> Float[Array, "columns repeats"]:
    """How much a score falls when one column is shuffled.

    Args:
        score: of features, higher is better; traced once, so it must be a JAX function.
        x: features, best held-out ones.
        key: of the shuffles.
        repeats: shuffles of every column.

    >>> key = jax.random.key(0)
    >>> x = jax.random.normal(key, (50, 2))
    >>> y = x[:, 0]
    >>> fall = permutation_importance(lambda x: -jnp.mean((x[:, 0] - y) ** 2), x, key)
    >>> bool(fall[0].min() > 0), bool((fall[1] == 0).all())
    (True, True)
    """
    x = jnp.asarray(x, jnp.float32)
    base = score(x)

    def one(at: Array) -> Array:
        column = at // repeats
        mixed = jax.random.permutation(jax.random.fold_in(key, at), x[:, column])
        return base - score(jnp.asarray(x).at[:, column].set(mixed))

    falls = lax.map(one, jnp.arange(x.shape[1] * repeats, dtype=jnp.int32))
    return falls.reshape(x.shape[1], repeats)
