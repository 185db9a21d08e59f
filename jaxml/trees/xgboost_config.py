"""The parameters of XGBoost, with its names and defaults, and what they must be.

Numbers that only enter arithmetic are leaves of the pytree, so that models of many learning
rates or penalties train in one program; all that shapes the program is static.

Reference: Chen and Guestrin, "XGBoost: A Scalable Tree Boosting System", KDD 2016,
https://arxiv.org/abs/1603.02754; names as in
https://xgboost.readthedocs.io/en/stable/parameter.html.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import numpy as np

from jaxml.export import export
from jaxml.trees.bin_sums import Implementation
from jaxml.trees.bin_sums import check as check_implementation
from jaxml.trees.bins import Bins
from jaxml.trees.objectives import Objective, objective
from jaxml.trees.ranking import Ranking
from jaxml.trees.vector_leaves import Leaves
from jaxml.typing import Array

STATIC = {"static": True}


@export("trees.xgboost.Config", since="0.1")
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Config:
    """XGBoost's parameters, with its names and defaults.

    The numbers of the first block may be arrays: `jax.vmap` trains many models at once,
    one for each value.

    Attributes:
        eta: factor of every tree; None is 0.3, and 0.5 for "gblinear".
        gamma: the least gain of a split.
        min_child_weight: the least sum of Hessians of a child.
        reg_lambda: L2 penalty of leaf values; None is 1, and 0 for "gblinear".
        reg_alpha: L1 penalty of leaf values.
        base_score: prediction to start from, or None to estimate it.
        objective: a name of XGBoost's or an `Objective` of one's own.
        scale_pos_weight: weight of the rows of label 1, for the objectives that XGBoost
            has it for.
        num_boost_round: rounds.
        max_depth: levels of splits of a tree.
        max_delta_step: the largest absolute leaf value before `eta`; 0 for no bound. For
            "count:poisson", 0 means 0.7.
        subsample: share of rows that a tree sees.
        colsample_bytree: share of columns that a tree may use.
        colsample_bylevel: share of those that a level may use.
        colsample_bynode: share of those that a node may use.
        tree_method: "exact", "hist" (bins from quantiles of the values) or "approx" (bins
            from quantiles weighted by the Hessian, anew in every round).
        grow_policy: which splits a tree of `max_leaves` leaves keeps: "depthwise" the
            upper ones, "lossguide" those that a search comes to which always splits the
            leaf of the largest gain. Neither goes below `max_depth`.
        max_leaves: leaves of a tree; 0 for as many as there are.
        max_bin: bins per column.
        categorical: columns of categories, 0, 1, ... below `max_bin`.
        max_cat_to_onehot: with fewer categories, one is split from the rest.
        max_cat_threshold: how many categories a split tries on one side.
        multi_strategy: a tree for every output, or one for all with vectors at its leaves.
        whole_hessian: of vector leaves: whether they come from the whole Hessian.
        booster: "gbtree", "dart" or "gblinear".
        num_parallel_tree: trees per round and output; with `subsample`, a random forest.
        num_class: classes of a softmax.
        quantile_alpha: quantiles of "reg:quantileerror".
        tweedie_variance_power: of "reg:tweedie", in [1, 2).
        huber_slope: of "reg:pseudohubererror".
        lambdarank_pair_method, lambdarank_num_pair_per_sample, lambdarank_normalization,
            lambdarank_score_normalization, ndcg_exp_gain: of the "rank:" objectives, see
            `ranking.Ranking`.
        monotone_constraints: -1, 0 or 1 per column, or empty.
        interaction_constraints: sets of columns that may meet on a path, or empty.
        rate_drop, skip_drop, one_drop, sample_type, normalize_type: of DART.
        early_stopping_rounds: stop when the held-out loss has not fallen in so many
            rounds; 0 never stops.
        axis_name: mesh axis over which the rows are split, inside `jax.shard_map`.
        implementation: how histograms are summed: "scatter", or "mosaic_gpu", a kernel
            for Hopper that is taken where the program runs on a GPU; the same trees.
    """

    eta: Any = None
    gamma: Any = 0.0
    min_child_weight: Any = 1.0
    reg_lambda: Any = None
    reg_alpha: Any = 0.0
    base_score: Any = None
    objective: str | Objective = field(default="reg:squarederror", metadata=STATIC)
    scale_pos_weight: float = field(default=1.0, metadata=STATIC)
    num_boost_round: int = field(default=10, metadata=STATIC)
    max_depth: int = field(default=6, metadata=STATIC)
    max_delta_step: float = field(default=0.0, metadata=STATIC)
    subsample: float = field(default=1.0, metadata=STATIC)
    colsample_bytree: float = field(default=1.0, metadata=STATIC)
    colsample_bylevel: float = field(default=1.0, metadata=STATIC)
    colsample_bynode: float = field(default=1.0, metadata=STATIC)
    tree_method: Literal["exact", "approx", "hist"] = field(
        default="hist", metadata=STATIC
    )
    grow_policy: Literal["depthwise", "lossguide"] = field(
        default="depthwise", metadata=STATIC
    )
    max_leaves: int = field(default=0, metadata=STATIC)
    max_bin: int = field(default=256, metadata=STATIC)
    categorical: tuple[int, ...] = field(default=(), metadata=STATIC)
    max_cat_to_onehot: int = field(default=4, metadata=STATIC)
    max_cat_threshold: int = field(default=64, metadata=STATIC)
    multi_strategy: Literal["one_output_per_tree", "multi_output_tree"] = field(
        default="one_output_per_tree", metadata=STATIC
    )
    whole_hessian: bool = field(default=False, metadata=STATIC)
    booster: Literal["gbtree", "dart", "gblinear"] = field(
        default="gbtree", metadata=STATIC
    )
    num_parallel_tree: int = field(default=1, metadata=STATIC)
    num_class: int = field(default=0, metadata=STATIC)
    quantile_alpha: tuple[float, ...] = field(default=(0.5,), metadata=STATIC)
    tweedie_variance_power: float = field(default=1.5, metadata=STATIC)
    huber_slope: float = field(default=1.0, metadata=STATIC)
    lambdarank_pair_method: Literal["topk", "mean"] = field(
        default="topk", metadata=STATIC
    )
    lambdarank_num_pair_per_sample: int | None = field(default=None, metadata=STATIC)
    lambdarank_normalization: bool = field(default=True, metadata=STATIC)
    lambdarank_score_normalization: bool = field(default=True, metadata=STATIC)
    ndcg_exp_gain: bool = field(default=True, metadata=STATIC)
    monotone_constraints: tuple[int, ...] = field(default=(), metadata=STATIC)
    interaction_constraints: tuple[tuple[int, ...], ...] = field(
        default=(), metadata=STATIC
    )
    rate_drop: float = field(default=0.0, metadata=STATIC)
    skip_drop: float = field(default=0.0, metadata=STATIC)
    one_drop: bool = field(default=False, metadata=STATIC)
    sample_type: Literal["uniform", "weighted"] = field(
        default="uniform", metadata=STATIC
    )
    normalize_type: Literal["tree", "forest"] = field(default="tree", metadata=STATIC)
    early_stopping_rounds: int = field(default=0, metadata=STATIC)
    axis_name: str | None = field(default=None, metadata=STATIC)
    implementation: Implementation = field(default="scatter", metadata=STATIC)

    def resolved_objective(self) -> Objective:
        """The loss, with this configuration's parameters."""
        if isinstance(self.objective, Objective):
            return self.objective
        return objective(
            self.objective,
            num_class=self.num_class,
            quantile_alpha=self.quantile_alpha,
            tweedie_variance_power=self.tweedie_variance_power,
            huber_slope=self.huber_slope,
            max_delta_step=self.max_delta_step or 0.7,
            ranking=Ranking(
                "ndcg",
                self.lambdarank_pair_method,
                self.lambdarank_num_pair_per_sample,
                self.lambdarank_normalization,
                self.lambdarank_score_normalization,
                self.ndcg_exp_gain,
            ),
        )

    def leaves(self) -> Leaves:
        """What a leaf holds."""
        if self.multi_strategy == "one_output_per_tree":
            return "scalar"
        return "whole" if self.whole_hessian else "diagonal"

    def step(self) -> Any:
        """`eta`, with the booster's default."""
        default = 0.5 if self.booster == "gblinear" else 0.3
        return default if self.eta is None else self.eta

    def ridge(self) -> Any:
        """`reg_lambda`, with the booster's default."""
        default = 0.0 if self.booster == "gblinear" else 1.0
        return default if self.reg_lambda is None else self.reg_lambda

    def delta_step(self) -> float:
        """`max_delta_step`, with Poisson's default."""
        poisson = self.objective == "count:poisson" and not self.max_delta_step
        return 0.7 if poisson else self.max_delta_step


def check(
    config: Config,
    x: Array | Bins,
    y: Array,
    weights: Array | None,
    goal: Objective,
    width: int | None = None,
) -> None:
    """Raises ValueError unless `fit` can work with these."""
    shape = x.shape if isinstance(x, Bins) else np.shape(x)
    if len(shape) != 2 or not x.shape[0] or not x.shape[1]:
        raise ValueError(f"x must be [rows, columns], both positive, got {shape}")
    if width is not None and x.shape[1] != width:
        raise ValueError(f"held-out x must have {width} columns, got {x.shape[1]}")
    own = np.ndim(y) == 2 and goal.outputs is not None and goal.name == "custom"
    if np.shape(y)[:1] != x.shape[:1] or (np.ndim(y) != 1 and not own):
        raise ValueError(f"y must be [{x.shape[0]}], one per row, got {np.shape(y)}")
    if weights is not None and np.shape(weights) != np.shape(y)[:1]:
        raise ValueError(f"weights must be {np.shape(y)[:1]}, got {np.shape(weights)}")
    _check_config(config, x.shape[1])
    if isinstance(x, Bins) and config.booster == "gblinear":
        raise ValueError("x must be features, not bins, for a linear model")
    _check_categories(config, x)
    if isinstance(x, Bins) and config.tree_method != "hist":
        raise ValueError(
            f"tree_method must be 'hist' for bins, got {config.tree_method}"
        )
    leaves = jax.tree.leaves((x, y, weights))
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        return
    if not isinstance(x, Bins) and np.isinf(np.asarray(x)).any():
        raise ValueError("x must be finite, or NaN where missing, got an infinity")
    y = np.asarray(y, np.float64)
    if not np.isfinite(y).all():
        raise ValueError("labels must be finite, got NaN or infinity")
    (low, high), (low_open, high_open) = goal.labels, goal.open
    out = (y <= low if low_open else y < low) | (y >= high if high_open else y > high)
    if out.any():
        left, right = "(["[not low_open], ")]"[not high_open]
        raise ValueError(
            f"labels of {goal.name} must be in {left}{low:g}, {high:g}{right}, got "
            f"{y[out][0]:g}"
        )
    if goal.start == "class" and (y != np.round(y)).any():
        raise ValueError(f"labels of {goal.name} must be integers")
    if weights is not None:
        w = np.asarray(weights)
        if not np.isfinite(w).all() or (w < 0).any() or not w.any():
            raise ValueError("weights must be finite, not negative, and not all zero")


def _check_categories(config: Config, x: Array | Bins) -> None:
    if not config.categorical:
        return
    if config.tree_method == "exact":
        raise ValueError("tree_method must be 'hist' or 'approx' for categories")
    if not all(0 <= c < x.shape[1] for c in config.categorical):
        raise ValueError(
            f"categorical must name columns below {x.shape[1]}, got {config.categorical}"
        )
    if isinstance(x, jax.core.Tracer | Bins):
        return
    codes = np.asarray(x)[:, list(config.categorical)]
    codes = codes[~np.isnan(codes)]
    if ((codes != np.round(codes)) | (codes < 0) | (codes >= config.max_bin)).any():
        raise ValueError(f"categories must be integers in [0, {config.max_bin})")


def _check_config(config: Config, columns: int) -> None:
    shares = ("subsample", "colsample_bytree", "colsample_bylevel", "colsample_bynode")
    for name in shares:
        if not 0 < getattr(config, name) <= 1:
            raise ValueError(f"{name} must be in (0, 1], got {getattr(config, name)}")
    for name in ("num_boost_round", "num_parallel_tree", "max_depth"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be positive, got {getattr(config, name)}")
    if config.max_depth > 14:
        raise ValueError(
            f"max_depth must be at most 14, for a level has 2^depth slots, got "
            f"{config.max_depth}"
        )
    if config.max_leaves < 0 or config.max_leaves == 1:
        raise ValueError(f"max_leaves must be 0 or 2 and more, got {config.max_leaves}")
    bounded = config.max_leaves or config.grow_policy == "lossguide"
    if bounded and config.tree_method == "exact":
        raise ValueError("tree_method must be 'hist' or 'approx' to bound the leaves")
    if config.multi_strategy == "multi_output_tree" and (
        config.booster != "gbtree" or config.monotone_constraints
    ):
        raise ValueError("multi_output_tree must be of gbtree, and not monotone")
    if config.whole_hessian and (config.multi_strategy == "one_output_per_tree"):
        raise ValueError("whole_hessian must come with multi_output_tree")
    signs = config.monotone_constraints
    if signs and (len(signs) != columns or not set(signs) <= {-1, 0, 1}):
        raise ValueError(
            f"monotone_constraints must be {columns} numbers of -1, 0 and 1, got {signs}"
        )
    for members in config.interaction_constraints:
        if not all(0 <= m < columns for m in members):
            raise ValueError(
                f"interaction_constraints must name columns below {columns}, got "
                f"{tuple(members)}"
            )
    if config.scale_pos_weight != 1 and config.resolved_objective().settings[0] != (
        "reg_loss_param"
    ):
        raise ValueError(
            f"scale_pos_weight must be 1 for this objective, got "
            f"{config.scale_pos_weight}"
        )
    if config.booster == "gblinear" and (
        config.early_stopping_rounds or config.axis_name is not None
    ):
        raise ValueError("gblinear must have neither early stopping nor an axis_name")
    check_implementation(config.implementation)
    if config.implementation != "scatter" and config.tree_method == "exact":
        raise ValueError(
            f"implementation must be 'scatter' for exact trees, got "
            f"{config.implementation!r}"
        )
    if config.axis_name is not None and config.tree_method == "exact":
        raise ValueError("tree_method must be 'hist' for rows split over devices")
