"""The parameters of trees, with scikit-learn's names and defaults, and what they must be.

The trap: 1 is a number of rows or columns, and 1.0 is all of them.

Reference: Breiman et al., "Classification and Regression Trees", 1984,
https://doi.org/10.1201/9781315139470; names as in
https://scikit-learn.org/stable/modules/tree.html.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from jaxml.export import export
from jaxml.trees.impurity import CLASSIFIERS, Name


@export("trees.cart.Config", since="0.1")
@dataclass(frozen=True)
class Config:
    """What a tree is grown by; names and defaults are scikit-learn's.

    Attributes:
        criterion: "gini" or "entropy" for classes; "squared_error", "absolute_error" or
            "poisson" for numbers.
        splitter: "best", or "random": one random threshold per column.
        max_depth: levels of splits; None for as many as there are.
        min_samples_split: rows of a node that may split; a float is a share of all.
        min_samples_leaf: rows of a child; a float is a share of all.
        min_weight_fraction_leaf: share of all weight that a child must have.
        max_features: columns that each node draws: a number, a share, "sqrt", "log2", or
            None for all. Nodes go on drawing while all that they drew are constant.
        max_leaf_nodes: leaves, grown best first; None for any number.
        min_impurity_decrease: least gain of a split, as a share of all weight.
        ccp_alpha: cost of a leaf in pruning.
        num_classes: of every target; 0 to count them, which needs labels outside `jit`.
        max_bins: bins of every column, for speed on large data; None for exact thresholds.
    """

    criterion: Name = "gini"
    splitter: Literal["best", "random"] = "best"
    max_depth: int | None = None
    min_samples_split: int | float = 2
    min_samples_leaf: int | float = 1
    min_weight_fraction_leaf: float = 0.0
    max_features: int | float | str | None = None
    max_leaf_nodes: int | None = None
    min_impurity_decrease: float = 0.0
    ccp_alpha: float = 0.0
    num_classes: int = 0
    max_bins: int | None = None

    @property
    def classifies(self) -> bool:
        """Whether targets are classes."""
        return self.criterion in CLASSIFIERS


@export("trees.cart.num_features", since="0.1")
def num_features(max_features: int | float | str | None, columns: int) -> int:
    """How many columns a node draws.

    >>> num_features("log2", 8), num_features("sqrt", 28), num_features(0.1, 5)
    (3, 5, 1)
    """
    if max_features is None:
        return columns
    if max_features == "sqrt":
        return max(int(np.sqrt(columns)), 1)
    if max_features == "log2":
        return max(int(np.log2(columns)), 1)
    if isinstance(max_features, int | np.integer):
        if 1 <= max_features <= columns:
            return int(max_features)
    elif not isinstance(max_features, str) and 0 < max_features <= 1:
        return max(int(max_features * columns), 1)
    raise ValueError(
        "max_features must be None, 'sqrt', 'log2', a share in (0, 1] or a number in "
        f"[1, {columns}], got {max_features!r}"
    )


def check_config(config: Any) -> None:
    """Raises ValueError where a number is out of its range."""

    def must(fine: bool, name: str, what: str) -> None:
        if not fine:
            raise ValueError(f"{name} must be {what}, got {getattr(config, name)!r}")

    def whole_or_share(name: str, least: int) -> None:
        value = getattr(config, name)
        share = isinstance(value, float)
        fine = 0 < value <= 1 if share else value >= least
        must(fine, name, f"an integer from {least} on, or a share in (0, 1]")

    depth, leaves, bins = config.max_depth, config.max_leaf_nodes, config.max_bins
    must(depth is None or depth >= 0, "max_depth", "0 or more, or None")
    must(leaves is None or leaves >= 2, "max_leaf_nodes", "2 or more, or None")
    must(bins is None or bins >= 2, "max_bins", "2 or more, or None")
    whole_or_share("min_samples_split", 2)
    whole_or_share("min_samples_leaf", 1)
    fraction = config.min_weight_fraction_leaf
    must(0 <= fraction <= 0.5, "min_weight_fraction_leaf", "in [0, 0.5]")
    must(config.min_impurity_decrease >= 0, "min_impurity_decrease", "0 or more")
    must(config.ccp_alpha >= 0, "ccp_alpha", "0 or more")
    must(config.splitter in ("best", "random"), "splitter", "'best' or 'random'")
    whole = config.criterion != "absolute_error" or config.splitter == "best"
    must(whole, "splitter", "'best' for 'absolute_error'")
    names = ("gini", "entropy", "squared_error", "absolute_error", "poisson")
    must(config.criterion in names, "criterion", f"one of {', '.join(names)}")
