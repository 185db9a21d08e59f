"""Extremely randomized trees: forests that draw their thresholds too.

Every node draws columns as in a random forest, and for each one threshold, uniform between
the least and the greatest value of the node; the best of these splits it. Nothing is
sorted, and every tree sees all rows.

The trap: thresholds are drawn in the range of the node, not of the column, or most draws
leave an empty child.

Reference: Geurts, Ernst and Wehenkel, "Extremely Randomized Trees", Machine Learning 2006,
https://doi.org/10.1007/s10994-006-6226-1 (table 1). Deviation: missing values, which the
paper does not have, go to either side by a coin.
"""

from dataclasses import replace

from jax.sharding import Mesh

from jaxml.export import export
from jaxml.trees import cart, random_forest
from jaxml.trees.random_forest import Config
from jaxml.trees.random_forest import predict as predict
from jaxml.trees.random_forest import predict_proba as predict_proba
from jaxml.typing import Array, Float, PRNGKeyArray


@export("trees.extra_trees.config", since="0.1")
def config(
    tree: cart.Config | None = None, num_trees: int = 100, **options: object
) -> Config:
    """A `random_forest.Config` with random thresholds and no bootstrap, unless asked for.

    >>> config().tree.splitter, config().bootstrap
    ('random', False)
    """
    tree = replace(tree or cart.Config(max_features="sqrt"), splitter="random")
    return Config(tree, num_trees, **{"bootstrap": False, **options})  # type: ignore


@export("trees.extra_trees.fit", since="0.1")
def fit(
    x: Float[Array, "rows columns"],
    y: Array,
    config: Config,
    key: PRNGKeyArray,
    weights: Float[Array, " rows"] | None = None,
    *,
    mesh: Mesh | None = None,
) -> cart.Model:
    """Grows the trees; see `random_forest.fit`.

    Raises:
        ValueError: as `random_forest.fit`, or if the splitter is not "random".

    Reference: Geurts, Ernst and Wehenkel, "Extremely Randomized Trees", Machine Learning
    2006, https://doi.org/10.1007/s10994-006-6226-1.
    """
    if config.tree.splitter != "random":
        raise ValueError(f"splitter must be 'random', got {config.tree.splitter!r}")
    return random_forest.fit(x, y, config, key, weights, mesh=mesh)
