"""XGBoost: second-order gradient boosting of trees, as pure functions.

Every round fits a tree to the gradients g and Hessians h of any twice differentiable loss:

    value = -T_alpha(G) / (H + lambda),   gain = s(left) + s(right) - s(parent) - gamma,
    s = T_alpha(G)^2 / (H + lambda),      G, H the sums of g, h over a node's rows,

with missing values sent to the better side. `fit` is one compiled scan over the rounds;
`tree_method="exact"` gives XGBoost's own trees, threshold by threshold, and `load_json`,
`save_json`, `load_ubj`, `save_ubj` exchange models with it.

The trap: "multi:softprob" has twice the usual Hessian, as in XGBoost, so its `eta` is worth
half of that of other libraries.

Reference: Chen and Guestrin, "XGBoost: A Scalable Tree Boosting System", KDD 2016,
https://arxiv.org/abs/1603.02754 (equations 2 to 7, algorithms 1 and 3). Deviations, all of
them XGBoost's own: no factor 1/2 in the gain, a Hessian for losses without curvature.
Random draws (rows, columns, DART) have XGBoost's distribution, not its generator.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxml.export import export
from jaxml.trees import exact, histogram
from jaxml.trees.bins import Bins, make_bins
from jaxml.trees.boosting import Dart, Evaluation, Grow, Rows, Sampling, boost
from jaxml.trees.growth import Columns
from jaxml.trees.linear import descend
from jaxml.trees.model import Model as Model
from jaxml.trees.model_files import load_json as load_json
from jaxml.trees.model_files import load_ubj as load_ubj
from jaxml.trees.model_files import no_trees
from jaxml.trees.model_files import save_json as save_json
from jaxml.trees.model_files import save_ubj as save_ubj
from jaxml.trees.objectives import Objective, initial_prediction, objective
from jaxml.trees.rule import newton
from jaxml.trees.shap import shap_values as shap_values
from jaxml.trees.tree import predict_sum
from jaxml.typing import Array, Float, PRNGKeyArray

Static = {"metadata": {"static": True}}


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
        max_bin: bins per column.
        booster: "gbtree", "dart" or "gblinear".
        num_parallel_tree: trees per round and output; with `subsample`, a random forest.
        num_class: classes of a softmax.
        quantile_alpha: quantiles of "reg:quantileerror".
        tweedie_variance_power: of "reg:tweedie", in [1, 2).
        huber_slope: of "reg:pseudohubererror".
        monotone_constraints: -1, 0 or 1 per column, or empty.
        interaction_constraints: sets of columns that may meet on a path, or empty.
        rate_drop, skip_drop, one_drop, sample_type, normalize_type: of DART.
        early_stopping_rounds: stop when the held-out loss has not fallen in so many
            rounds; 0 never stops.
        axis_name: mesh axis over which the rows are split, inside `jax.shard_map`.
    """

    eta: Any = None
    gamma: Any = 0.0
    min_child_weight: Any = 1.0
    reg_lambda: Any = None
    reg_alpha: Any = 0.0
    base_score: Any = None
    objective: str | Objective = field(default="reg:squarederror", **Static)
    scale_pos_weight: float = field(default=1.0, **Static)
    num_boost_round: int = field(default=10, **Static)
    max_depth: int = field(default=6, **Static)
    max_delta_step: float = field(default=0.0, **Static)
    subsample: float = field(default=1.0, **Static)
    colsample_bytree: float = field(default=1.0, **Static)
    colsample_bylevel: float = field(default=1.0, **Static)
    colsample_bynode: float = field(default=1.0, **Static)
    tree_method: Literal["exact", "approx", "hist"] = field(default="hist", **Static)
    max_bin: int = field(default=256, **Static)
    booster: Literal["gbtree", "dart", "gblinear"] = field(default="gbtree", **Static)
    num_parallel_tree: int = field(default=1, **Static)
    num_class: int = field(default=0, **Static)
    quantile_alpha: tuple[float, ...] = field(default=(0.5,), **Static)
    tweedie_variance_power: float = field(default=1.5, **Static)
    huber_slope: float = field(default=1.0, **Static)
    monotone_constraints: tuple[int, ...] = field(default=(), **Static)
    interaction_constraints: tuple[tuple[int, ...], ...] = field(default=(), **Static)
    rate_drop: float = field(default=0.0, **Static)
    skip_drop: float = field(default=0.0, **Static)
    one_drop: bool = field(default=False, **Static)
    sample_type: Literal["uniform", "weighted"] = field(default="uniform", **Static)
    normalize_type: Literal["tree", "forest"] = field(default="tree", **Static)
    early_stopping_rounds: int = field(default=0, **Static)
    axis_name: str | None = field(default=None, **Static)

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
        )

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


@export("trees.xgboost.fit", since="0.1")
def fit(
    x: Float[Array, "rows columns"] | Bins,
    y: Array,
    config: Config,
    key: PRNGKeyArray,
    weights: Float[Array, " rows"] | None = None,
    *,
    base_margin: Array | None = None,
    evaluation: tuple[Array, ...] | None = None,
) -> Model:
    """Trains a model; the whole run is one compiled program.

    Args:
        x: features, compared as float32; NaN is missing. Or `Bins` of them, whose cuts are
            then kept.
        y: labels: numbers, or class indices for a softmax.
        config: what to train.
        key: for the draws of rows, columns and dropped trees; ignored where nothing is
            drawn.
        weights: of the rows, not negative.
        base_margin: where each row starts, instead of `config.base_score`.
        evaluation: held-out (x, y) or (x, y, weights) to watch: `Model.losses`.

    Raises:
        ValueError: if shapes, labels, weights or parameters are not what they must be;
            values are looked at only outside `jit`.

    >>> x = np.linspace(0, 1, 64, dtype=np.float32)[:, None]
    >>> config = Config(max_depth=2, num_boost_round=20, eta=0.5)
    >>> model = fit(x, 3.0 * (x[:, 0] > 0.5), config, jax.random.key(0))
    >>> predict(model, np.array([[0.2], [0.9]], np.float32)).round(2).tolist()
    [0.0, 3.0]

    Reference: Chen and Guestrin, "XGBoost: A Scalable Tree Boosting System", KDD 2016,
    https://arxiv.org/abs/1603.02754.
    """
    goal = config.resolved_objective()
    check(config, x, y, weights, goal)
    x = x if isinstance(x, Bins) else jnp.asarray(x, jnp.float32)
    y = jnp.asarray(y, jnp.float32)
    weights = None if weights is None else jnp.asarray(weights, jnp.float32)
    held = None
    if evaluation is not None:
        ex, ey, *ew = evaluation
        check(config, ex, ey, ew[0] if ew else None, goal, x.shape[1])
        ew = ew[0] if ew else np.ones(len(ey), np.float32)
        held = tuple(jnp.asarray(part, jnp.float32) for part in (ex, ey, ew))
    if config.early_stopping_rounds and held is None:
        raise ValueError("early_stopping_rounds must come with `evaluation`")
    if base_margin is not None:
        base_margin = jnp.asarray(base_margin, jnp.float32).reshape(len(y), -1)
    # Dense features need half the program: worth a look, where values can be looked at.
    known = not isinstance(x, jax.core.Tracer | Bins)
    has_missing = bool(jnp.isnan(x).any()) if known else True
    return _fit(x, y, config, key, weights, base_margin, held, has_missing)


@partial(jax.jit, static_argnames="has_missing")
def _fit(
    x: Array | Bins,
    y: Array,
    config: Config,
    key: PRNGKeyArray,
    weights: Array | None,
    base_margin: Array | None,
    held: tuple[Array, Array, Array] | None,
    has_missing: bool,
) -> Model:
    goal = config.resolved_objective()
    if config.base_score is None:
        spoken, rescaled = goal, weights
        if config.scale_pos_weight != 1:  # then XGBoost takes a Newton step
            spoken, scale = replace(goal, start="newton"), config.scale_pos_weight
            rescaled = jnp.where(y == 1, jnp.float32(scale), 1)
            rescaled = rescaled if weights is None else rescaled * weights
        prediction = initial_prediction(spoken, y, rescaled, config.axis_name)
    else:
        prediction = jnp.asarray(config.base_score, jnp.float32)
        prediction = jnp.broadcast_to(prediction, (goal.num_outputs,))
    start = goal.to_margin(prediction)
    if base_margin is None:
        base_margin = jnp.broadcast_to(start[None, :], (len(y), goal.num_outputs))
    rows = Rows(y, weights, base_margin)
    evaluation = None
    if held is not None:
        base = jnp.broadcast_to(start[None, :], (len(held[0]), goal.num_outputs))
        evaluation = Evaluation(*held, base)
    eta = jnp.asarray(config.step(), jnp.float32)
    if config.booster == "gblinear":
        return _fit_linear(x, rows, config, goal, start, prediction)
    dart = Dart(
        config.rate_drop,
        config.skip_drop,
        config.one_drop,
        config.sample_type,
        config.normalize_type,
    )
    boosted = boost(
        _grower(x, config, weights, has_missing),
        goal,
        rows,
        eta,
        config.num_boost_round,
        Sampling(config.subsample, config.colsample_bytree, config.axis_name),
        x.shape[1],
        config.num_parallel_tree,
        jnp.asarray(config.scale_pos_weight, jnp.float32),
        key,
        evaluation,
        config.early_stopping_rounds,
        dart if config.booster == "dart" else None,
    )
    outputs, parallel = goal.num_outputs, config.num_parallel_tree
    output = jnp.repeat(jnp.arange(outputs, dtype=jnp.int32), parallel)
    return Model(
        trees=boosted.trees,
        group=jnp.tile(output, config.num_boost_round),
        weight=boosted.weight,
        start=start,
        base_score=prediction,
        eta=eta / parallel,
        losses=boosted.losses,
        objective=goal,
        num_features=x.shape[1],
        trees_per_round=outputs * parallel,
        booster=config.booster,
    )


def _fit_linear(
    x: Array,
    rows: Rows,
    config: Config,
    goal: Objective,
    start: Array,
    prediction: Array,
) -> Model:
    weights = descend(
        x,
        rows.label,
        rows.weight,
        rows.base,
        goal,
        config.num_boost_round,
        config.step(),
        config.ridge(),
        config.reg_alpha,
    )
    return no_trees(
        linear=weights,
        losses=jnp.full(config.num_boost_round, jnp.nan, jnp.float32),
        start=start,
        base_score=prediction,
        eta=jnp.float32(1),
        objective=goal,
        num_features=x.shape[1],
        booster="gblinear",
    )


def _grower(
    x: Array | Bins, config: Config, weights: Array | None, has_missing: bool
) -> Grow:
    """How this configuration grows one tree."""
    rule = newton(
        config.ridge(),
        config.reg_alpha,
        config.delta_step(),
        config.min_child_weight,
    )
    use = Columns(
        config.monotone_constraints,
        config.interaction_constraints,
        config.colsample_bylevel,
        config.colsample_bynode,
    )
    if config.tree_method == "exact":
        columns = exact.presort(x, has_missing=has_missing)

        def grow_exact(channels: Array, available: Array, key: PRNGKeyArray) -> Any:
            return exact.grow(
                columns,
                channels,
                rule,
                config.max_depth,
                gamma=config.gamma,
                use=use,
                available=available,
                key=key,
            )

        return grow_exact
    binned = x if isinstance(x, Bins) else None
    if binned is None and config.tree_method == "hist":
        binned = make_bins(
            x, config.max_bin, weights, config.axis_name, has_missing=has_missing
        )

    def grow_binned(channels: Array, available: Array, key: PRNGKeyArray) -> Any:
        found = binned
        if found is None:  # cuts anew, where the Hessian is
            found = make_bins(
                x,
                config.max_bin,
                channels[1],
                config.axis_name,
                has_missing=has_missing,
            )
        return histogram.grow(
            found,
            channels,
            rule,
            config.max_depth,
            gamma=config.gamma,
            use=use,
            available=available,
            key=key,
            axis_name=config.axis_name,
        )

    return grow_binned


@export("trees.xgboost.predict", since="0.1")
def predict(
    model: Model,
    x: Float[Array, "rows columns"],
    *,
    output_margin: bool = False,
    iteration_range: tuple[int, int] | None = None,
    base_margin: Array | None = None,
) -> Array:
    """Predictions [rows], or [rows, outputs] where there are several.

    Args:
        model: a fitted or loaded model.
        x: features, as many as the model was fitted to; NaN is missing.
        output_margin: margins instead of what the objective makes of them.
        iteration_range: first round and the one after the last; all of them, or all up to
            the best held-out loss if early stopping was asked for.
        base_margin: where each row starts instead of the model's start.

    Raises:
        ValueError: if x has another number of columns than the model was fitted to.
    """
    margin = _margins(model, x, iteration_range, base_margin)
    told = margin if output_margin else _link(model.objective, margin)
    many = model.objective.outputs is not None and told.ndim == 2
    return told if many else told.reshape(len(x))


@export("trees.xgboost.predict_proba", since="0.1")
def predict_proba(
    model: Model, x: Float[Array, "rows columns"], **options: Any
) -> Float[Array, "rows classes"]:
    """Class probabilities of a logistic or softmax model; options as for `predict`.

    Raises:
        ValueError: if the objective is no classifier's.
    """
    name = model.objective.name
    if name.startswith("multi:"):
        return jax.nn.softmax(predict(model, x, output_margin=True, **options))
    if name not in ("binary:logistic", "binary:logitraw", "reg:logistic"):
        raise ValueError(f"the objective must be logistic or softmax, got {name}")
    p = jax.nn.sigmoid(predict(model, x, output_margin=True, **options))
    return jnp.stack((1 - p, p), axis=1)


@export("trees.xgboost.staged_predict", since="0.1")
def staged_predict(
    model: Model, x: Float[Array, "rows columns"], *, output_margin: bool = False
) -> Array:
    """Predictions after every round: [rounds, rows] or [rounds, rows, outputs].

    Raises:
        ValueError: if x has another number of columns than the model was fitted to.
    """
    _check_width(model, x)
    margins = _staged(model, jnp.asarray(x, jnp.float32))
    told = margins if output_margin else _link(model.objective, margins)
    many = model.objective.outputs is not None and told.ndim == 3
    return told if many else told.reshape(len(margins), len(x))


@jax.jit
def _staged(model: Model, x: Array) -> Float[Array, "rounds rows outputs"]:
    rounds = jax.tree.map(
        lambda leaf: leaf.reshape(
            model.num_rounds, model.trees_per_round, *leaf.shape[1:]
        ),
        (model.trees, model.group, model.weight),
    )

    def step(margin: Array, one: tuple) -> tuple[Array, Array]:
        zero = jnp.zeros_like(model.start)
        margin = margin + predict_sum(one[0], x, one[1], one[2], zero)
        return margin, margin

    start = jnp.broadcast_to(model.start[None, :], (len(x), len(model.start)))
    return jax.lax.scan(step, start, rounds)[1]


def _margins(
    model: Model,
    x: Array,
    iteration_range: tuple[int, int] | None = None,
    base_margin: Array | None = None,
) -> Float[Array, "rows outputs"]:
    _check_width(model, x)
    x = jnp.asarray(x, jnp.float32)
    start = model.start
    if base_margin is not None:
        base_margin = jnp.asarray(base_margin, jnp.float32).reshape(len(x), -1)
        start = jnp.zeros_like(start)
    if model.linear is not None:
        margin = _linear(model.linear, x, start)
    else:
        if iteration_range is not None:
            model = model[slice(*iteration_range)]
        elif model.best_iteration is not None:
            model = model.up_to_best()
        margin = _predict_sum(model.trees, x, model.group, model.weight, start)
    return margin if base_margin is None else margin + base_margin


_predict_sum = jax.jit(predict_sum)


@jax.jit
def _linear(weights: Array, x: Array, start: Array) -> Float[Array, "rows outputs"]:
    """Missing features count as zero."""
    x = jnp.where(jnp.isnan(x), 0, x)
    product = jnp.matmul(x, weights[:-1], precision="highest")
    return product + (weights[-1] + start)[None, :]


def _link(goal: Objective, margin: Array) -> Array:
    return goal.predict(margin)


def _check_width(model: Model, x: Array) -> None:
    if np.ndim(x) != 2 or x.shape[1] != model.num_features:
        raise ValueError(
            f"x must be [rows, {model.num_features}], as many features as the model was "
            f"fitted to, got {np.shape(x)}"
        )


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
    if np.shape(y) != (x.shape[0],):
        raise ValueError(f"y must be [{x.shape[0]}], one per row, got {np.shape(y)}")
    if weights is not None and np.shape(weights) != np.shape(y):
        raise ValueError(f"weights must be {np.shape(y)}, got {np.shape(weights)}")
    _check_config(config, x.shape[1])
    if isinstance(x, Bins) and config.booster == "gblinear":
        raise ValueError("x must be features, not bins, for a linear model")
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
    if config.axis_name is not None and config.tree_method == "exact":
        raise ValueError("tree_method must be 'hist' for rows split over devices")
