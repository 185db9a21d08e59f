"""CART: one classification or regression tree, of any depth, for one target or several.

A node is split where the weighted impurity of its rows falls most,

    gain = W I(node) - W_left I(left) - W_right I(right),

thresholds lie halfway between values of the node, and growth stops where a node is pure or
a limit says so. Level by level, or by the best gain next (`max_leaf_nodes`), or grown in
full and pruned (`ccp_alpha`); missing values go where they gain most.

The trap: among equal gains somebody must win. Of one column it is the lowest threshold, of
several the first in an order that every level draws (in scikit-learn every node), so that
on data with ties trees differ from key to key.

Reference: Breiman, Friedman, Olshen and Stone, "Classification and Regression Trees", 1984,
https://doi.org/10.1201/9781315139470 (chapters 2, 3, 4, 8). Deviations: missing values have
a side of their own instead of surrogate splits; a split of zero gain is made, as in
scikit-learn, for the next may gain.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxml.export import export
from jaxml.trees import pruning
from jaxml.trees.cart_config import Config as Config
from jaxml.trees.cart_config import num_features as num_features
from jaxml.trees.deviation import medians
from jaxml.trees.impurity import CLASSIFIERS, Name
from jaxml.trees.learner import Learner
from jaxml.trees.planting import (
    Bounds,
    Plan,
    Prepared,
    grow_tree,
    plan_of,
    prepare,
    trim,
)
from jaxml.trees.table import Table, check_width, pad_rows, table
from jaxml.trees.tree import Tree, in_blocks, leaf_index
from jaxml.typing import Array, Float, PRNGKeyArray

Leaf = Any
"""An array; or what JAX puts in its place while it takes a pytree apart."""


@export("trees.cart.Model", since="0.1")
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Model:
    """A tree, or a forest with leading axes, and how to read its leaves.

    Attributes:
        tree: nodes level by level; values are class shares [outputs * classes], or means.
        outputs: targets per row.
        num_classes: of every target, 0 for numbers.
        num_features: columns of x.
        squeeze: whether y was [rows], not [rows, outputs].
    """

    tree: Leaf
    outputs: int = field(kw_only=True, metadata={"static": True})
    num_classes: int = field(kw_only=True, metadata={"static": True})
    num_features: int = field(kw_only=True, metadata={"static": True})
    squeeze: bool = field(kw_only=True, default=True, metadata={"static": True})


@export("trees.cart.fit", since="0.1")
def fit(
    x: Float[Array, "rows columns"],
    y: Array,
    config: Config,
    key: PRNGKeyArray,
    weights: Float[Array, " rows"] | None = None,
) -> Model:
    """Grows a tree.

    Args:
        x: features, compared as float32; NaN is missing.
        y: class indices, or numbers: [rows] or [rows, outputs].
        config: how to grow.
        key: for drawn columns and thresholds; ignored where nothing is drawn.
        weights: of the rows, not negative; rows of weight zero take no part.

    Raises:
        ValueError: if shapes, labels, weights or parameters are not what they must be;
            values are looked at only outside `jit`.

    >>> x = np.linspace(0, 1, 8, dtype=np.float32)[:, None]
    >>> model = fit(x, (x[:, 0] > 0.6).astype(int), Config(), jax.random.key(0))
    >>> predict(model, np.array([[0.1], [0.9]], np.float32)).tolist()
    [0, 1]

    Reference: Breiman, Friedman, Olshen and Stone, "Classification and Regression Trees",
    1984, https://doi.org/10.1201/9781315139470.
    """
    data = table(x, y, config, weights)
    plan, bounds = plan_of(config, data)
    tree = _fit(data.x, data.y, data.weights, plan, bounds, key)
    return model_of(trim(tree), data)


def model_of(tree: Tree, data: Table) -> Model:
    """The tree with what is known of the targets."""
    return Model(
        tree,
        outputs=data.outputs,
        num_classes=data.num_classes,
        num_features=data.columns,
        squeeze=data.squeeze,
    )


@partial(jax.jit, static_argnames="plan")
def _fit(
    x: Array, y: Array, weights: Array, plan: Plan, bounds: Bounds, key: PRNGKeyArray
) -> Tree:
    prepared = prepare(x, y, weights, plan)
    return grow_tree(prepared, weights, plan, bounds, key)[0]


@export("trees.cart.predict", since="0.1")
def predict(model: Model, x: Float[Array, "rows columns"]) -> Array:
    """Class indices or numbers, [rows] or [rows, outputs] as y was.

    Raises:
        ValueError: if x has another number of columns than the model was fitted to.
    """
    value = _told(model, x)
    if model.num_classes:
        value = jnp.argmax(value, axis=2).astype(jnp.int32)
    else:
        value = value[:, :, 0]
    return value[:, 0] if model.squeeze else value


@export("trees.cart.predict_proba", since="0.1")
def predict_proba(model: Model, x: Float[Array, "rows columns"]) -> Array:
    """Class shares of each row's leaf, [rows, classes] or [rows, outputs, classes].

    Raises:
        ValueError: if the model is not a classifier, or x is not as wide as it must be.
    """
    if not model.num_classes:
        raise ValueError("the criterion must be a classifier's, got a regression tree")
    value = _told(model, x)
    return value[:, 0] if model.squeeze else value


def _told(model: Model, x: Array) -> Float[Array, "rows outputs values"]:
    check_width(x, model.num_features)
    value = pad_rows(partial(_values, model.tree), x)
    return value.reshape(len(x), model.outputs, max(model.num_classes, 1))


@jax.jit
def _values(tree: Tree, x: Array) -> Float[Array, "rows values"]:
    return tree.value[in_blocks(lambda rows: leaf_index(tree, rows), x)]


@export("trees.cart.apply", since="0.1")
def apply(model: Model, x: Float[Array, "rows columns"]) -> Array:
    """The node that is each row's leaf, [rows]."""
    check_width(x, model.num_features)
    return pad_rows(partial(_leaves, model.tree), x)


@jax.jit
def _leaves(tree: Tree, x: Array) -> Array:
    return in_blocks(lambda rows: leaf_index(tree, rows), x)


@export("trees.cart.feature_importances", since="0.1")
def feature_importances(model: Model) -> Float[Array, " columns"]:
    """Share of each column in what the splits gain; zeros for a tree without any.

    Forests average the shares of their trees.
    """
    nodes = model.tree.left.shape[-1]

    def one(feature: Array, gain: Array) -> Array:
        total = jnp.zeros(model.num_features).at[feature].add(gain)
        return total / jnp.maximum(jnp.sum(total), 1e-30)

    feature, gain = (
        a.reshape(-1, nodes) for a in (model.tree.feature, model.tree.gain)
    )
    return jnp.mean(jax.vmap(one)(feature, gain), axis=0)


@export("trees.cart.cost_complexity_path", since="0.1")
def cost_complexity_path(
    x: Float[Array, "rows columns"],
    y: Array,
    config: Config,
    key: PRNGKeyArray,
    weights: Float[Array, " rows"] | None = None,
) -> pruning.Path:
    """Alphas at which `ccp_alpha` changes the tree, ascending, and the risks between.

    Raises:
        ValueError: as `fit`.
    """
    data = table(x, y, config, weights)
    model = fit(x, y, replace(config, ccp_alpha=0.0), key, weights)
    root = root_impurity(data, config.criterion)
    path = jax.tree.map(np.asarray, _path(model.tree, root))
    return pruning.Path(*(part[np.isfinite(path.alpha)] for part in path))


_path: Callable[[Tree, Array], pruning.Path] = jax.jit(pruning.cost_complexity_path)


def root_impurity(data: Table, criterion: Name) -> Float[Array, ""]:
    """Impurity of all rows together, averaged over outputs."""
    w = np.asarray(data.weights, np.float64)
    share = w / w.sum()
    y = np.asarray(data.y, np.float64)
    total = 0.0
    for target in y.T:
        if criterion in CLASSIFIERS:
            p = np.bincount(target.astype(int), share)
            p = p[p > 0]
            total += (
                1 - (p**2).sum() if criterion == "gini" else -(p * np.log2(p)).sum()
            )
            continue
        if criterion == "absolute_error":
            middle = np.asarray(medians(target[:, None], w, np.zeros(len(w), int), 1))
            total += share @ np.abs(target - middle[0, 0])
            continue
        mean = share @ target
        if criterion == "poisson":
            logs = np.log(np.where(target > 0, target / mean, 1))
            total += share @ (target * logs)
        else:
            total += share @ (target - mean) ** 2
    return jnp.float32(total / y.shape[1])


@export("trees.cart.learner", since="0.1")
def learner(config: Config) -> Learner:
    """Trees of this configuration for `adaboost`, `bagging` and `stacking`.

    Predictions are class shares [rows, classes], or numbers [rows]. `num_classes` must be
    given for classes.
    """
    if config.classifies and not config.num_classes:
        raise ValueError("num_classes must be given for a learner of classes")
    return _learner(config)


@cache  # one learner, one compilation
def _learner(config: Config) -> Learner:
    def prepared(x: Array, y: Array) -> tuple[Prepared, tuple[Plan, Bounds]]:
        data = table(x, y, config, None)
        plan, bounds = plan_of(config, data)
        ready = prepare(data.x, data.y, data.weights, plan)
        return ready, (plan, bounds)

    def fit(data: Any, key: PRNGKeyArray, weights: Array) -> tuple[Tree, Array]:
        ready, (plan, bounds) = data
        n = len(weights)
        weights = jnp.pad(weights, (0, ready.x.shape[1] - n))
        tree, leaf = grow_tree(ready, weights, plan, bounds, key)
        return tree, read(tree.value[leaf[:n]])

    def predict(tree: Tree, x: Array) -> Array:
        leaf = in_blocks(lambda rows: leaf_index(tree, rows), jnp.asarray(x))
        return read(tree.value[leaf])

    def read(value: Array) -> Array:
        return value if config.classifies else value[:, 0]

    return Learner(prepared, fit, predict)
