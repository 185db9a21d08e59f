"""How a model's margin moves with a feature: partial dependence and single curves.

Partial dependence is the mean over rows of what the model would say were the feature v:

    f(v) = mean_i F(v, x_i without the feature)                      by brute force, exact,

or, going down each tree with v where it reads the feature, and both ways in proportion to
the covers where it does not, by recursion: no rows are needed, and the mean is over what
was seen in training as each tree splits it. Single curves are those of each row (ICE);
centred, they start at zero, so that their spread shows interactions.

The trap: both say what the model does, at values of the feature that may never go with the
rest of a row.

Reference: Friedman, "Greedy Function Approximation: A Gradient Boosting Machine", Annals of
Statistics 2001, https://doi.org/10.1214/aos/1013203451 (section 8.2); Goldstein et al.,
"Peeking Inside the Black Box", 2013, https://arxiv.org/abs/1309.6392 (ICE and c-ICE).
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxml.export import export
from jaxml.trees.model import Model
from jaxml.trees.prediction import predict
from jaxml.trees.tree import Tree
from jaxml.typing import Array, Float


@export("trees.partial_dependence.individual_curves", since="0.1")
def individual_curves(
    model: Model,
    x: Float[Array, "rows columns"],
    column: int,
    grid: Float[Array, " points"],
    *,
    centred: bool = False,
) -> Float[Array, "points rows outputs"]:
    """Margins of every row at every value of one feature.

    Args:
        model: a fitted or loaded model.
        x: features.
        column: which feature is moved.
        grid: its values.
        centred: whether every curve starts at zero.

    Raises:
        ValueError: if there is no such column.
    """
    _check(model, column)
    x = jnp.asarray(x, jnp.float32)

    def at(value: Array) -> Array:
        moved = x.at[:, column].set(value)
        return predict(model, moved, output_margin=True).reshape(len(x), -1)

    curves = lax.map(at, jnp.asarray(grid, jnp.float32))
    return curves - curves[:1] if centred else curves


@export("trees.partial_dependence.partial_dependence", since="0.1")
def partial_dependence(
    model: Model,
    x: Float[Array, "rows columns"] | None,
    column: int,
    grid: Float[Array, " points"],
) -> Float[Array, "points outputs"]:
    """Mean margins at every value of one feature.

    Args:
        model: a fitted or loaded model.
        x: the rows whose mean is taken; None goes down the trees by their covers.
        column: which feature is moved.
        grid: its values.

    Raises:
        ValueError: if there is no such column, or a linear model has no rows.

    >>> from jaxml.trees.xgboost import Config, fit
    >>> x = jnp.linspace(0, 1, 64)[:, None]
    >>> config = Config(max_depth=1, num_boost_round=20, eta=0.5)
    >>> model = fit(x, 3.0 * (x[:, 0] > 0.5), config, jax.random.key(0))
    >>> partial_dependence(model, None, 0, jnp.array([0.2, 0.9])).round(2).tolist()
    [[0.0], [3.0]]
    """
    if x is not None:
        return jnp.mean(individual_curves(model, x, column, grid), axis=1)
    _check(model, column)
    if model.linear is not None:
        raise ValueError("a linear model must have rows, for it has no covers")
    if model.best_iteration is not None:
        model = model.up_to_best()
    return _by_covers(model, column, jnp.asarray(grid, jnp.float32))


@jax.jit
def _by_covers(model: Model, column: Array, grid: Array) -> Array:
    outputs = len(model.start)

    def add(total: Array, one: tuple[Tree, Array, Array]) -> tuple[Array, None]:
        tree, output, scale = one
        value = scale * _walk(tree, column, grid)
        if value.shape[1] == outputs:
            return total + value, None
        return jnp.asarray(total).at[:, output].add(value[:, 0]), None

    start = jnp.broadcast_to(model.start[None, :], (len(grid), outputs))
    return lax.scan(add, start, (model.trees, model.group, model.weight))[0]


def _walk(tree: Tree, column: Array, grid: Array) -> Float[Array, "points width"]:
    """The mean of one tree; its children stand behind their parents."""
    nodes = len(tree.left)

    def share_of_first(node: Array) -> Array:
        first = tree.left[node]
        here, there = tree.cover[first], tree.cover[first + 1]
        both = here + there
        by_cover = jnp.where(both > 0, here / jnp.where(both > 0, both, 1), 0.5)
        goes_left = grid < tree.threshold[node]
        words = tree.categories[node]
        if len(words):
            code = jnp.clip(grid, 0, 32 * len(words) - 1).astype(jnp.uint32)
            bit = (words[(code >> 5).astype(jnp.int32)] >> (code & 31)) & 1
            inside = (grid >= 0) & (grid < 32 * len(words)) & (bit == 1)
            goes_left = jnp.where(jnp.any(words != 0), ~inside, goes_left)
        goes_left = jnp.where(jnp.isnan(grid), tree.default_left[node], goes_left)
        return jnp.where(tree.feature[node] == column, goes_left, by_cover)

    def step(node: Array, share: Array) -> Array:
        first = tree.left[node]
        inner = first > 0
        left = share_of_first(node) * share[:, node]
        both = jnp.stack((left, share[:, node] - left), axis=1)
        moved = lax.dynamic_update_slice(share, both, (jnp.int32(0), first))
        moved = moved.at[:, node].set(0)
        return jnp.where(inner, moved, share)

    share = jnp.zeros((len(grid), nodes), jnp.float32).at[:, 0].set(1)
    share = lax.fori_loop(0, nodes, step, share)
    return jnp.matmul(share, tree.value, precision="highest")


def _check(model: Model, column: int) -> None:
    if not 0 <= column < model.num_features:
        raise ValueError(
            f"column must be below {model.num_features}, the number of features, got "
            f"{column}"
        )
