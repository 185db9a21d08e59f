"""Boosting rounds: one `lax.scan` in which every round grows a tree for every output.

    F_t = F_(t-1) + eta tree_t(g, h),   g, h the derivatives of the loss at F_(t-1)

DART drops random earlier trees while it takes the derivatives, and rescales: with k trees
dropped the new one weighs 1 / (k + eta) and each dropped one k / (k + eta) of before
("tree"), or all 1 / (1 + eta) ("forest").

The trap: DART's margins change for all rows when weights change, so the contribution of
every tree to every training row is kept, [trees, rows].

Reference: Friedman, "Greedy Function Approximation: A Gradient Boosting Machine", Annals of
Statistics 2001, https://doi.org/10.1214/aos/1013203451; Rashmi and Gilad-Bachrach, "DART:
Dropouts meet Multiple Additive Regression Trees", AISTATS 2015,
https://arxiv.org/abs/1505.01866 (algorithm 1).
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxml.trees.growth import draw_columns
from jaxml.trees.objectives import Objective
from jaxml.trees.quantiles import grouped_quantile
from jaxml.trees.ranking import Groups, lambdas
from jaxml.trees.tree import Tree, leaf_index
from jaxml.trees.vector_leaves import Leaves, channels_of
from jaxml.typing import Array, Bool, Float, Int, PRNGKeyArray

Grow = Callable[[Array, Array, PRNGKeyArray], tuple[Tree, Array]]
"""(channels, available columns, key) -> (tree, leaf of every row)."""


class Rows(NamedTuple):
    """The rows that this device holds."""

    label: Float[Array, "rows *targets"]
    weight: Float[Array, " rows"] | None
    base: Float[Array, "rows outputs"]
    groups: Groups | None = None

    def derivatives(
        self,
        objective: Objective,
        margin: Float[Array, "rows outputs"],
        round_: Int[Array, ""],
        scale_pos_weight: Float[Array, ""],
    ) -> tuple[Float[Array, "rows outputs"], Float[Array, "rows outputs"]]:
        """Gradient and Hessian of every row, with its weight."""
        if objective.ranking is not None and self.groups is not None:
            score, label = margin[:, 0], self.label
            g, h = lambdas(objective.ranking, score, label, self.groups, round_)
            return g[:, None], h[:, None]
        g, h = objective.derivatives(margin, self.label)
        weight = self.weights(scale_pos_weight)[:, None]
        return g * weight, h * weight

    def weights(self, scale_pos_weight: Float[Array, ""]) -> Float[Array, " rows"]:
        """The weight of every row, that of its label among it."""
        weight = jnp.ones(len(self.label), jnp.float32)
        if self.label.ndim == 1:
            weight = jnp.where(self.label == 1, scale_pos_weight, 1.0)
        return weight if self.weight is None else weight * self.weight


class Sampling(NamedTuple):
    """How much of the rows and columns a tree sees."""

    subsample: float = 1.0
    bytree: float = 1.0
    axis_name: str | None = None

    def rows(self, key: PRNGKeyArray, n: int) -> Bool[Array, " rows"] | None:
        """Which of this device's rows count: the same draw on any number of devices."""
        if self.subsample >= 1:
            return None
        if self.axis_name is None:
            return jax.random.uniform(key, (n,)) < self.subsample
        total = n * lax.axis_size(self.axis_name)
        drawn = jax.random.uniform(key, (total,)) < self.subsample
        return lax.dynamic_slice(drawn, (lax.axis_index(self.axis_name) * n,), (n,))


class Plan(NamedTuple):
    """How a round goes.

    Attributes:
        sampling: of rows and columns.
        num_columns: of the features.
        num_parallel: trees of one round and output.
        leaves: a tree for every output, or vectors at the leaves of one.
        scale_pos_weight: weight of the rows of label 1.
    """

    sampling: Sampling
    num_columns: int
    num_parallel: int
    leaves: Leaves
    scale_pos_weight: Float[Array, ""]

    def num_trees(self, objective: Objective) -> int:
        """Trees of a round."""
        each = objective.num_outputs if self.leaves == "scalar" else 1
        return each * self.num_parallel


class Dart(NamedTuple):
    """DART's parameters."""

    rate_drop: float = 0.0
    skip_drop: float = 0.0
    one_drop: bool = False
    sample_type: Literal["uniform", "weighted"] = "uniform"
    normalize_type: Literal["tree", "forest"] = "tree"

    def draw(
        self, key: PRNGKeyArray, weight: Float[Array, " trees"], grown: Array
    ) -> Bool[Array, " trees"]:
        """Which of the trees that are grown already are dropped in this round."""
        drop_key, skip_key, one_key = jax.random.split(key, 3)
        exists = jnp.arange(len(weight)) < grown
        rate = jnp.full(len(weight), self.rate_drop, jnp.float32)
        if self.sample_type == "weighted":
            live = jnp.where(exists, weight, 0)
            rate = rate * grown * live / jnp.maximum(jnp.sum(live), 1e-6)
        dropped = exists & (jax.random.uniform(drop_key, weight.shape) < rate)
        if self.one_drop:
            noise = jnp.where(exists, jax.random.uniform(one_key, weight.shape), -1.0)
            one = exists & (noise == jnp.max(noise))
            dropped = jnp.where(jnp.any(dropped), dropped, one)
        skip = jax.random.uniform(skip_key) < self.skip_drop
        return dropped & ~skip

    def scales(
        self, count: Int[Array, ""], eta: Float[Array, ""]
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Factor of the dropped trees, and weight of the new ones."""
        k = count.astype(jnp.float32)
        if self.normalize_type == "forest":
            old = new = 1 / (1 + eta)
        else:
            old, new = k / jnp.maximum(k + eta, 1e-30), 1 / jnp.maximum(k + eta, 1e-30)
        return jnp.where(k > 0, old, 1.0), jnp.where(k > 0, new, 1.0)


class Evaluation(NamedTuple):
    """Held-out rows, watched while boosting."""

    x: Float[Array, "held columns"]
    label: Float[Array, "held *targets"]
    weight: Float[Array, " held"]
    base: Float[Array, "held outputs"]


class Boosted(NamedTuple):
    """What the rounds leave: trees [rounds * trees per round], their weights, losses."""

    trees: Tree
    weight: Float[Array, " trees"]
    margin: Float[Array, "rows outputs"]
    losses: Float[Array, " rounds"]


def grow_round(
    grow: Grow,
    objective: Objective,
    rows: Rows,
    margin: Float[Array, "rows outputs"],
    eta: Float[Array, ""],
    plan: Plan,
    round_: Int[Array, ""],
    key: PRNGKeyArray,
) -> tuple[Tree, Int[Array, "trees rows"]]:
    """The trees of one round, outputs by outputs, and their leaves of every row."""
    sampling, num_parallel = plan.sampling, plan.num_parallel
    g, h = rows.derivatives(objective, margin, round_, plan.scale_pos_weight)
    n = len(g)
    if plan.leaves == "whole":
        H = objective.hessian(margin, rows.label) * objective.hessian_scale
        H = H * rows.weights(plan.scale_pos_weight)[:, None, None]
        every = jnp.eye(H.shape[1], dtype=bool)[None]
        h = jnp.where(every, h[:, :, None], H)
    keys = jax.random.split(key, num_parallel)

    def one(index: Array) -> tuple[Tree, Array]:
        output, parallel = index // num_parallel, index % num_parallel
        row_key, tree_key = jax.random.split(keys[parallel])
        tree_key, column_key = jax.random.split(jax.random.fold_in(tree_key, output))
        if plan.leaves == "scalar":
            channels = jnp.stack((g[:, output], h[:, output]))
        else:
            channels = channels_of(g, h)
        counted = sampling.rows(row_key, n)
        if counted is not None:
            channels = jnp.where(counted[None], channels, 0)
        every = jnp.ones((1, plan.num_columns), bool)
        available = draw_columns(column_key, every, sampling.bytree)[0]
        tree, leaf = grow(channels, available, tree_key)
        value = tree.value
        if objective.quantiles:
            alphas = jnp.asarray(objective.quantiles, jnp.float32)

            def renewed(k: Array | int) -> Array:
                residual = rows.label - margin[:, k]
                return grouped_quantile(
                    residual, leaf, len(value), alphas[k], rows.weight, counted
                )

            scalar = plan.leaves == "scalar"
            which = [output] if scalar else range(len(objective.quantiles))
            best = jnp.stack([renewed(k) for k in which], axis=1)
            value = jnp.where(jnp.isnan(best), value, best)
        return tree._replace(value=value * (eta / num_parallel)), leaf

    count = plan.num_trees(objective)
    if count == 1:
        tree, leaf = one(jnp.int32(0))
        return jax.tree.map(lambda leaf: leaf[None], tree), leaf[None]
    return lax.map(one, jnp.arange(count, dtype=jnp.int32))


def add_trees(
    margin: Float[Array, "rows outputs"],
    value: Float[Array, "trees rows width"],
    num_parallel: int,
) -> Float[Array, "rows outputs"]:
    """Adds what each tree says of each row, one tree after the other."""
    if value.shape[2] > 1 or margin.shape[1] == 1:
        return sum(value, start=margin)
    value = value[..., 0]
    for index in range(len(value)):
        margin = jnp.asarray(margin).at[:, index // num_parallel].add(value[index])
    return margin


def boost(
    grow: Grow,
    objective: Objective,
    rows: Rows,
    eta: Float[Array, ""],
    num_rounds: int,
    plan: Plan,
    key: PRNGKeyArray,
    evaluation: Evaluation | None = None,
    patience: int = 0,
    dart: Dart | None = None,
) -> Boosted:
    """All rounds; see `xgboost.fit` for what the arguments mean.

    With `evaluation`, `losses` are those of the held-out rows after each round; with
    `patience` too, rounds stop once that many have brought no better one, and the trees of
    the rounds that were not run are single leaves of value zero.
    """
    per_round, num_parallel = plan.num_trees(objective), plan.num_parallel
    n = len(rows.label)

    def trees_at(margin: Array, r: Array) -> tuple[Tree, Array]:
        return grow_round(
            grow,
            objective,
            rows,
            margin,
            eta,
            plan,
            r,
            jax.random.fold_in(key, r),
        )

    def held_out(held: Array, trees: Tree) -> tuple[Array, Array]:
        if evaluation is None:
            return held, jnp.float32(jnp.nan)
        told = [
            _values(jax.tree.map(lambda leaf, i=i: leaf[i], trees), evaluation.x)
            for i in range(per_round)
        ]
        held = add_trees(held, jnp.stack(told), num_parallel)
        return held, mean_loss(objective, held, evaluation.label, evaluation.weight)

    def plain(carry: tuple, r: Array) -> tuple[tuple, tuple]:
        margin, held, best, since = carry

        def run() -> tuple:
            trees, leaf = trees_at(margin, r)
            told = jnp.stack([trees.value[i][leaf[i]] for i in range(per_round)])
            after, loss = held_out(held, trees)
            return add_trees(margin, told, num_parallel), after, trees, loss

        if not patience:
            margin, held, trees, loss = run()
            return (margin, held, best, since), (trees, loss)
        shapes = jax.eval_shape(run)
        nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes[2])

        def skip() -> tuple:
            return margin, held, nothing, jnp.float32(jnp.nan)

        margin, held, trees, loss = lax.cond(since < patience, run, skip)
        better = loss < best
        since = jnp.where(better, 0, since + 1)
        return (margin, held, jnp.where(better, loss, best), since), (trees, loss)

    def dropping(carry: tuple, r: Array) -> tuple[tuple, tuple]:
        assert dart is not None
        told, weight = carry
        dart_key, tree_key = jax.random.split(jax.random.fold_in(key, r))
        dropped = dart.draw(dart_key, weight, r * per_round)
        live = jnp.where(dropped, 0, weight)
        margin = rows.base + _by_output(live[:, None] * told, per_round, num_parallel)
        trees, leaf = grow_round(grow, objective, rows, margin, eta, plan, r, tree_key)
        new = jnp.take_along_axis(trees.value[..., 0], leaf, axis=1)
        old_scale, new_weight = dart.scales(jnp.sum(dropped), eta / per_round)
        weight = jnp.where(dropped, weight * old_scale, weight)
        at = r * per_round
        told = lax.dynamic_update_slice(told, new, (at, 0))
        weight = lax.dynamic_update_slice(
            weight, jnp.full(per_round, new_weight), (at,)
        )
        return (told, weight), (trees, jnp.float32(jnp.nan))

    rounds = jnp.arange(num_rounds, dtype=jnp.int32)
    if dart is not None:
        told = jnp.zeros((num_rounds * per_round, n), jnp.float32)
        weight = jnp.zeros(num_rounds * per_round, jnp.float32)
        (told, weight), (trees, losses) = lax.scan(dropping, (told, weight), rounds)
        margin = rows.base + _by_output(weight[:, None] * told, per_round, num_parallel)
        return Boosted(_flat(trees), weight, margin, losses)
    held = rows.base[:0] if evaluation is None else evaluation.base
    start = rows.base, held, jnp.float32(jnp.inf), jnp.int32(0)
    (margin, *_), (trees, losses) = lax.scan(plain, start, rounds)
    trees = _flat(trees)
    return Boosted(trees, jnp.ones(len(trees.left), jnp.float32), margin, losses)


def _flat(trees: Tree) -> Tree:
    """Rounds and the trees of a round as one axis."""
    rounds, per_round = trees.left.shape[:2]
    return jax.tree.map(
        lambda leaf: leaf.reshape(rounds * per_round, *leaf.shape[2:]), trees
    )


def mean_loss(
    objective: Objective,
    margin: Float[Array, "rows outputs"],
    label: Float[Array, "rows *targets"],
    weight: Float[Array, " rows"],
) -> Float[Array, ""]:
    """The weighted mean of the objective's loss."""
    if objective.outputs is None:
        margin = margin[:, 0]
    return jnp.average(jax.vmap(objective.loss)(margin, label), weights=weight)


def _values(tree: Tree, x: Array) -> Float[Array, "rows width"]:
    return tree.value[leaf_index(tree, x)]


def _by_output(told: Array, per_round: int, num_parallel: int) -> Array:
    """Sums [trees, rows] over the trees of each output."""
    grouped = told.reshape(-1, per_round // num_parallel, num_parallel, told.shape[1])
    return jnp.sum(grouped, axis=(0, 2)).T
