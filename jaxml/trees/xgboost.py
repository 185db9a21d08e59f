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
XGBoost's own: no factor 1/2 in the gain, a Hessian for losses without curvature, leaves of
absolute and quantile losses renewed in "hist" and "approx" alone. Of ours: random draws
have XGBoost's distribution, not its generator.
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
from jaxml.trees.boosting import Dart, Evaluation, Grow, Plan, Rows, Sampling, boost
from jaxml.trees.growth import Columns
from jaxml.trees.linear import descend, one_start
from jaxml.trees.model import Model as Model
from jaxml.trees.model_files import load_json as load_json
from jaxml.trees.model_files import load_ubj as load_ubj
from jaxml.trees.model_files import no_trees
from jaxml.trees.model_files import save_json as save_json
from jaxml.trees.model_files import save_ubj as save_ubj
from jaxml.trees.objectives import Objective, initial_prediction
from jaxml.trees.prediction import predict as predict
from jaxml.trees.prediction import predict_proba as predict_proba
from jaxml.trees.prediction import staged_predict as staged_predict
from jaxml.trees.ranking import Groups, make_groups
from jaxml.trees.rule import newton
from jaxml.trees.shap import shap_values as shap_values
from jaxml.trees.vector_leaves import newton_diagonal, newton_whole
from jaxml.trees.xgboost_config import Config as Config
from jaxml.trees.xgboost_config import check
from jaxml.typing import Array, Float, PRNGKeyArray


@export("trees.xgboost.fit", since="0.1")
def fit(
    x: Float[Array, "rows columns"] | Bins,
    y: Array,
    config: Config,
    key: PRNGKeyArray,
    weights: Float[Array, " weights"] | None = None,
    *,
    base_margin: Array | None = None,
    evaluation: tuple[Array, ...] | None = None,
    query: Array | None = None,
) -> Model:
    """Trains a model; the whole run is one compiled program.

    Args:
        x: features, compared as float32; NaN is missing. Or `Bins` of them, whose cuts are
            then kept.
        y: labels: numbers, or class indices for a softmax.
        config: what to train.
        key: for the draws of rows, columns and dropped trees; ignored where nothing is
            drawn.
        weights: of the rows, not negative; with queries, of the queries.
        base_margin: where each row starts, instead of `config.base_score`.
        evaluation: held-out (x, y) or (x, y, weights) to watch: `Model.losses`.
        query: for the "rank:" objectives, the query of every row; rows of one query stand
            together.

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
    if (query is None) != (goal.ranking is None) or (query is not None and evaluation):
        raise ValueError(
            f"query must come with a ranking objective and without `evaluation`, got "
            f"{goal.name}"
        )
    groups = None if query is None else make_groups(np.asarray(query), weights)
    weights = weights if query is None else None
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
    model = _fit(x, y, config, key, weights, base_margin, held, groups, has_missing)
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
    groups: Groups | None,
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
    if config.booster == "gblinear":
        start = one_start(start)
    if base_margin is None:
        base_margin = jnp.broadcast_to(start[None, :], (len(y), goal.num_outputs))
        if config.axis_name is not None:
            base_margin = jax.lax.pcast(base_margin, config.axis_name, to="varying")
    rows = Rows(y, weights, base_margin, groups)
    evaluation = None
    if held is not None:
        base = jnp.broadcast_to(start[None, :], (len(held[0]), goal.num_outputs))
        evaluation = Evaluation(*held, base)
    eta = jnp.asarray(config.step(), jnp.float32)
    if config.booster == "gblinear":
        return _fit_linear(x, rows, config, goal, start, prediction)
    plan = Plan(
        Sampling(config.subsample, config.colsample_bytree, config.axis_name),
        x.shape[1],
        config.num_parallel_tree,
        config.leaves(),
        jnp.asarray(config.scale_pos_weight, jnp.float32),
    )
    dart = Dart(
        config.rate_drop,
        config.skip_drop,
        config.one_drop,
        config.sample_type,
        config.normalize_type,
    )
    boosted = boost(
        _grower(x, config, weights, has_missing),
        replace(goal, quantiles=()) if config.tree_method == "exact" else goal,
        rows,
        eta,
        config.num_boost_round,
        plan,
        key,
        evaluation,
        config.early_stopping_rounds,
        dart if config.booster == "dart" else None,
    )
    outputs = goal.num_outputs if config.leaves() == "scalar" else 1
    parallel = config.num_parallel_tree
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
    outputs, least = config.resolved_objective().num_outputs, config.min_child_weight
    if config.leaves() == "whole":
        rule = newton_whole(outputs, config.ridge(), least)
    else:
        given = config.ridge(), config.reg_alpha, config.delta_step(), least
        vector = config.leaves() == "diagonal"
        rule = newton_diagonal(outputs, *given) if vector else newton(*given)
    use = Columns(
        config.monotone_constraints,
        config.interaction_constraints,
        config.colsample_bylevel,
        config.colsample_bynode,
        config.categorical,
        config.max_cat_to_onehot,
        config.max_cat_threshold,
    )
    how = {
        "rule": rule,
        "max_depth": config.max_depth,
        "gamma": config.gamma,
        "use": use,
    }
    if config.tree_method == "exact":
        columns = exact.presort(x, has_missing=has_missing)

        def grow_exact(channels: Array, available: Array, key: PRNGKeyArray) -> Any:
            return exact.grow(columns, channels, available=available, key=key, **how)

        return grow_exact
    cut = partial(
        make_bins,
        x,
        config.max_bin,
        axis_name=config.axis_name,
        has_missing=has_missing,
        categorical=config.categorical,
    )
    binned = x if isinstance(x, Bins) else None
    if binned is None and config.tree_method == "hist":
        binned = cut(weights=weights)

    def grow_binned(channels: Array, available: Array, key: PRNGKeyArray) -> Any:
        # "approx" cuts anew, where the Hessian is.
        found = cut(weights=channels[1]) if binned is None else binned
        return histogram.grow(
            found,
            channels,
            available=available,
            key=key,
            axis_name=config.axis_name,
            max_leaves=config.max_leaves,
            best_first=config.grow_policy == "lossguide",
            implementation=config.implementation,
            **how,
        )

    return grow_binned
