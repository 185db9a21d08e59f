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
https://arxiv.org/abs/1603.02754 (equations 2 to 7, algorithms 1 and 3). Deviations of
XGBoost's own: no factor 1/2 in the gain, a Hessian for losses without curvature. Of ours:
absolute and quantile losses renew their leaves in exact mode too; "gblinear" with several
outputs has other weights; random draws have XGBoost's distribution, not its generator.
"""

from dataclasses import replace
from functools import partial
from typing import Any

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
from jaxml.trees.objectives import Objective, initial_prediction
from jaxml.trees.rule import newton
from jaxml.trees.shap import shap_values as shap_values
from jaxml.trees.tree import predict_sum
from jaxml.trees.xgboost_config import Config as Config
from jaxml.trees.xgboost_config import check
from jaxml.typing import Array, Float, PRNGKeyArray


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
        mass = ew[0] if ew else np.ones(len(ey), np.float32)
        held = tuple(jnp.asarray(part, jnp.float32) for part in (ex, ey, mass))
    if config.early_stopping_rounds and held is None:
        raise ValueError("early_stopping_rounds must come with `evaluation`")
    if base_margin is not None:
        base_margin = jnp.asarray(base_margin, jnp.float32).reshape(len(y), -1)
    # Dense features need half the program: worth a look, where values can be looked at.
    known = not isinstance(x, jax.core.Tracer | Bins)
    has_missing = bool(jnp.isnan(x).any()) if known else True
    model = _fit(x, y, config, key, weights, base_margin, held, has_missing)
    if config.early_stopping_rounds and not isinstance(model.losses, jax.core.Tracer):
        return replace(model, best_iteration=int(np.nanargmin(model.losses)))
    return model


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
        if config.axis_name is not None:
            base_margin = jax.lax.pcast(base_margin, config.axis_name, to="varying")
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
        linear=None,
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
    told = margin if output_margin else model.objective.predict(margin)
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
    told = margins if output_margin else model.objective.predict(margins)
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


def _check_width(model: Model, x: Array) -> None:
    if np.ndim(x) != 2 or x.shape[1] != model.num_features:
        raise ValueError(
            f"x must be [rows, {model.num_features}], as many features as the model was "
            f"fitted to, got {np.shape(x)}"
        )
