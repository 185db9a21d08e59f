"""Gradient boosting as Friedman wrote it: trees fit the negative gradient, leaves the loss.

    F_m = F_(m-1) + nu sum_j gamma_jm [x in R_jm],
    gamma_j = argmin over gamma of sum over R_j of L(y, F + gamma),

with regions R_j of a least-squares tree for -dL/dF. Leaves are exact for squared, absolute,
quantile and Poisson losses, one step for Huber's and the logistic ones: a Newton step
sum -g / sum h, times (K - 1) / K for K classes. What comes out is a `trees.model.Model`,
which `xgboost` predicts, explains and saves.

The trap: absolute and quantile losses have no curvature. Without leaves of their own each
leaf moves by one learning rate's worth of signs, and boosting crawls.

Reference: Friedman, "Greedy Function Approximation: A Gradient Boosting Machine", Annals of
Statistics 2001, https://doi.org/10.1214/aos/1013203451 (algorithms 1 to 6); subsampling as
in Friedman, "Stochastic Gradient Boosting", Computational Statistics & Data Analysis 2002,
https://doi.org/10.1016/S0167-9473(01)00065-2.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxml.export import export
from jaxml.trees import planting
from jaxml.trees.deviation import medians
from jaxml.trees.fixed_point import snap
from jaxml.trees.gbdt_config import Config as Config
from jaxml.trees.gbdt_config import check, check_labels
from jaxml.trees.model import Model
from jaxml.trees.objectives import Objective, initial_prediction
from jaxml.trees.quantiles import grouped_quantile
from jaxml.trees.table import check_rows, check_width, table
from jaxml.trees.tree import Tree, in_blocks, leaf_index
from jaxml.trees.xgboost import predict as predict
from jaxml.trees.xgboost import staged_predict as staged_predict
from jaxml.typing import Array, Float, PRNGKeyArray


@export("trees.gbdt.fit", since="0.1")
def fit(
    x: Float[Array, "rows columns"],
    y: Array,
    config: Config,
    key: PRNGKeyArray,
    weights: Float[Array, " rows"] | None = None,
    *,
    evaluation: tuple[Array, ...] | None = None,
) -> Model:
    """Boosts trees.

    Args:
        x: features, compared as float32; NaN is missing.
        y: numbers, or class indices, [rows].
        config: how to boost.
        key: for the draws of rows and columns.
        weights: of the rows, not negative.
        evaluation: held-out (x, y) or (x, y, weights): `Model.losses`, and what `patience`
            watches.

    Raises:
        ValueError: if shapes, labels, weights or parameters are not what they must be.

    >>> x = np.linspace(0, 1, 64, dtype=np.float32)[:, None]
    >>> model = fit(x, 3.0 * (x[:, 0] > 0.5), Config(learning_rate=0.5), jax.random.key(0))
    >>> predict(model, np.array([[0.2], [0.9]], np.float32)).round(2).tolist()
    [0.0, 3.0]

    Reference: Friedman, "Greedy Function Approximation: A Gradient Boosting Machine",
    Annals of Statistics 2001, https://doi.org/10.1214/aos/1013203451.
    """
    check(config)
    classes = config.num_classes
    check_rows(x, y, weights, classes)
    data = table(x, jnp.asarray(y, jnp.float32), config.tree, weights)
    plan, bounds = planting.plan_of(config.tree, data)
    held = None
    if evaluation is not None:
        ex, ey, *ew = evaluation
        check_width(ex, data.columns)
        held = check_rows(ex, ey, ew[0] if ew else None, classes)
    if config.patience and held is None:
        raise ValueError("patience must come with `evaluation`")
    check_labels(config, y)
    goal = config.objective()
    start, base, trees, losses = _boost(
        data.x,
        data.y[:, 0],
        data.weights,
        np.int32(data.rows),
        plan,
        bounds,
        replace(
            config, learning_rate=0.0, subsample=0.5 if config.subsample < 1 else 1.0
        ),
        jnp.float32(config.learning_rate),
        jnp.float32(config.subsample),
        key,
        held,
    )
    outputs = goal.num_outputs
    best = None
    known = not isinstance(losses, jax.core.Tracer)
    if config.patience and known:
        best = int(np.nanargmin(losses))
    return Model(
        trees=planting.trim(trees),
        group=jnp.tile(jnp.arange(outputs, dtype=jnp.int32), config.num_rounds),
        weight=jnp.ones(config.num_rounds * outputs, jnp.float32),
        start=start,
        base_score=base,
        eta=jnp.float32(config.learning_rate),
        losses=losses,
        objective=goal,
        num_features=data.columns,
        trees_per_round=outputs,
        best_iteration=best,
    )


@partial(jax.jit, static_argnames=("plan", "config"))
def _boost(
    x: Array,
    y: Array,
    weights: Array,
    rows: Array,
    plan: planting.Plan,
    bounds: planting.Bounds,
    config: Config,
    rate: Array,
    share: Array,
    key: PRNGKeyArray,
    held: tuple[Array, ...] | None,
) -> tuple[Array, Array, Tree, Array]:
    goal = config.objective()
    prepared = planting.prepare(x, y[:, None], weights, plan)
    base = _start(goal, y, weights)
    start = goal.to_margin(base)
    outputs = goal.num_outputs

    def subsample(key: PRNGKeyArray) -> Array:
        if config.subsample >= 1:
            return weights
        noise = jnp.where(weights > 0, jax.random.uniform(key, weights.shape), 2.0)
        rank = jnp.argsort(jnp.argsort(noise))
        wanted = jnp.maximum((share * rows).astype(jnp.int32), 1)
        return jnp.where(rank < wanted, weights, 0)

    def one(
        margin: Array, g: Array, h: Array, mass: Array, output: Array, key: PRNGKeyArray
    ) -> tuple[Tree, Array]:
        """A tree for one output, and what it says of every row."""
        r = -g[:, output]
        mine = prepared._replace(y=r[:, None], same=planting.same_target(r[:, None]))
        tree, leaf = planting.grow_tree(mine, mass, plan, bounds, key)
        if config.subsample < 1:
            leaf = in_blocks(lambda part: leaf_index(tree, part), x)
        value = _leaves(config, y, margin[:, output], r, h[:, output], mass, leaf, tree)
        value = rate * value[:, None]
        return tree._replace(value=value), value[leaf, 0]

    def round_(margin: Array, key: PRNGKeyArray) -> tuple[Array, Tree]:
        row_key, tree_key = jax.random.split(key)
        mass = subsample(row_key)
        g, h = goal.derivatives(margin, y)
        if config.loss == "huber":
            distance = jnp.abs(y - margin[:, 0])
            delta = _huber_delta(distance, mass, config.alpha)
            g = jnp.clip(margin - y[:, None], -delta, delta)
        elif config.loss in ("absolute", "quantile"):  # a row on the edge is above it
            a = config.alpha if config.loss == "quantile" else 0.5
            g = jnp.where(y[:, None] >= margin, -a, 1 - a)
        each = jnp.arange(outputs, dtype=jnp.int32)
        grow = partial(one, margin, g, h, mass)
        if outputs == 1:
            tree, told = grow(jnp.int32(0), tree_key)
            tree, told = jax.tree.map(lambda a: a[None], (tree, told))
        else:
            tree, told = lax.map(
                lambda o: grow(o, jax.random.fold_in(tree_key, o)), each
            )
        return margin + told.T, tree

    def held_out(margin: Array, tree: Tree) -> tuple[Array, Array]:
        if held is None:
            return margin, jnp.float32(jnp.nan)
        ex, ey, ew = held
        told = jax.vmap(lambda t: t.value[leaf_index(t, ex), 0])(tree)
        margin = margin + told.T
        return margin, _mean_loss(config, goal, margin, ey.astype(jnp.float32), ew)

    def step(carry: tuple, i: Array) -> tuple[tuple, tuple]:
        margin, outside, best, since = carry

        def run() -> tuple:
            new, tree = round_(margin, jax.random.fold_in(key, i))
            after, loss = held_out(outside, tree)
            return new, after, tree, loss

        if not config.patience:
            margin, outside, tree, loss = run()
            return (margin, outside, best, since), (tree, loss)
        shapes = jax.eval_shape(run)[2]
        nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        margin, outside, tree, loss = lax.cond(
            since < config.patience,
            run,
            lambda: (margin, outside, nothing, jnp.float32(jnp.nan)),
        )
        better = loss < best - config.tolerance
        best = jnp.where(better, loss, best)
        since = jnp.where(better, 0, since + 1)
        return (margin, outside, best, since), (tree, loss)

    margin = jnp.broadcast_to(start[None, :], (len(y), outputs))
    count = 1 if held is None else len(held[0])
    outside = jnp.broadcast_to(start[None, :], (count, outputs))
    first = margin, outside, jnp.float32(jnp.inf), jnp.int32(0)
    rounds = jnp.arange(config.num_rounds, dtype=jnp.int32)
    _, (trees, losses) = lax.scan(step, first, rounds)
    count = config.num_rounds * outputs
    trees = jax.tree.map(lambda a: a.reshape(count, *a.shape[2:]), trees)
    return start, base, trees, losses


def _start(goal: Objective, y: Array, weights: Array) -> Float[Array, " outputs"]:
    if goal.start != "quantile":
        return initial_prediction(goal, y, weights)
    if goal.quantiles == (0.5,):
        return medians(y[:, None], weights, jnp.zeros(len(y), jnp.int32), 1)[0]
    group = jnp.zeros(len(y), jnp.int32)
    alpha = goal.quantiles[0]
    return grouped_quantile(y, group, 1, alpha, weights, weights > 0)


def _huber_delta(distance: Array, mass: Array, alpha: float) -> Float[Array, ""]:
    group = jnp.zeros(len(mass), jnp.int32)
    return grouped_quantile(distance, group, 1, alpha, mass, mass > 0)[0]


def _leaves(
    config: Config,
    y: Array,
    margin: Array,
    r: Array,
    h: Array,
    mass: Array,
    leaf: Array,
    tree: Tree,
) -> Float[Array, " nodes"]:
    """The best value of every leaf; for other nodes zero."""
    nodes = len(tree.left)

    def total(of: Array) -> Array:
        """Sums over leaves, the same for rows in any order and for copies of rows."""
        with jax.enable_x64(True):
            parts = snap((mass * of)[None])[0]
            return jnp.zeros(nodes).at[leaf].add(parts).astype(jnp.float32)

    if config.loss == "squared":
        return tree.value[:, 0]
    residual = y - margin
    if config.loss == "absolute":
        value = medians(residual[:, None], mass, leaf, nodes)[:, 0]
    elif config.loss == "quantile":
        value = grouped_quantile(residual, leaf, nodes, config.alpha, mass, mass > 0)
    elif config.loss == "huber":
        middle = jnp.nan_to_num(medians(residual[:, None], mass, leaf, nodes)[:, 0])
        delta = _huber_delta(jnp.abs(residual), mass, config.alpha)
        rest = jnp.clip(residual - middle[leaf], -delta, delta)
        value = middle + total(rest) / jnp.maximum(total(jnp.ones_like(rest)), 1e-30)
    elif config.loss == "poisson":
        mean = total(jnp.exp(margin))
        value = jnp.log(jnp.maximum(total(y), 1e-9)) - jnp.log(jnp.maximum(mean, 1e-9))
    else:
        curvature = total(h)
        value = total(r) / jnp.where(curvature > 1e-30, curvature, jnp.inf)
        if config.num_classes > 2:
            value = value * (config.num_classes - 1) / config.num_classes
    counted = total(jnp.ones_like(mass)) > 0
    return jnp.where((tree.left == 0) & counted, value, 0.0)


def _mean_loss(
    config: Config, goal: Objective, margin: Array, y: Array, weights: Array
) -> Float[Array, ""]:
    """Mean loss of margins [rows, outputs]; Huber's is judged as absolute."""
    del config
    m = margin if goal.outputs is not None else margin[:, 0]
    return jnp.sum(weights * jax.vmap(goal.loss)(m, y)) / jnp.sum(weights)


@export("trees.gbdt.predict_proba", since="0.1")
def predict_proba(
    model: Model, x: Float[Array, "rows columns"], **options: Any
) -> Float[Array, "rows classes"]:
    """Class probabilities; options as for `predict`.

    Raises:
        ValueError: if the loss is no classifier's.
    """
    if model.objective.name not in ("exponential", "binary:logistic", "multi:softprob"):
        raise ValueError(f"the loss must be of classes, got {model.objective.name}")
    p = predict(model, x, **options)
    return p if p.ndim == 2 else jnp.stack((1 - p, p), axis=1)
