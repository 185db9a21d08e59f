"""XGBoost's model files, JSON and UBJSON, read and written.

A model written here predicts in XGBoost what it predicts here, explains itself there too
(covers and the weights of inner nodes are real), and comes back unchanged; a model of
XGBoost's (gbtree, dart or gblinear, one output per tree, numeric and categorical splits)
predicts here what it predicts there.

The trap is `base_score`: files hold a prediction, not a margin, as text, one number or a
list. Files are not trusted: sizes, indices, cycles and numbers are checked.

Reference: Chen and Guestrin, "XGBoost: A Scalable Tree Boosting System", KDD 2016,
https://arxiv.org/abs/1603.02754; schema at
https://xgboost.readthedocs.io/en/stable/tutorials/saving_model.html.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxml.export import export
from jaxml.trees import ubjson
from jaxml.trees.linear import one_start
from jaxml.trees.model import Model
from jaxml.trees.objectives import NAMES, Objective, objective
from jaxml.trees.ranking import Ranking
from jaxml.trees.tree import Tree, compact, stack
from jaxml.trees.tree_files import read_tree, tree_document

VERSION = [3, 2, 0]
File = str | os.PathLike[str]


@export("trees.model_files.save_json", since="0.1")
def save_json(model: Model, path: File) -> None:
    """Writes a model as XGBoost's JSON.

    Raises:
        ValueError: if the objective is none of XGBoost's.
    """
    Path(path).write_text(json.dumps(_plain(_document(model))), "utf-8")


@export("trees.model_files.save_ubj", since="0.1")
def save_ubj(model: Model, path: File) -> None:
    """Writes a model as XGBoost's UBJSON; raises as `save_json` does."""
    Path(path).write_bytes(ubjson.dumps(_document(model)))


@export("trees.model_files.load_json", since="0.1")
def load_json(path: File) -> Model:
    """Reads a model from XGBoost's JSON.

    Raises:
        ValueError: if the file is not one of a model that can stand here.
    """
    try:
        document = json.loads(Path(path).read_text("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} must be JSON: {error}") from None
    return _checked(document, path)


@export("trees.model_files.load_ubj", since="0.1")
def load_ubj(path: File) -> Model:
    """Reads a model from XGBoost's UBJSON; raises as `load_json` does."""
    return _checked(ubjson.loads(Path(path).read_bytes()), path)


# Writing.


def _document(model: Model) -> dict[str, Any]:
    goal = model.objective
    if goal.name not in NAMES:
        raise ValueError(f"only XGBoost's objectives can be saved, got {goal.name!r}")
    if model.trees.value.shape[-1] > 1:
        raise ValueError("trees must have one output each to be saved")
    model = jax.tree.map(np.asarray, model)
    group, entries = goal.settings
    is_class = goal.name.startswith("multi:")
    attributes = {}
    best = model.best_iteration
    if best is None and not np.isnan(model.losses).all():
        best = int(np.nanargmin(model.losses))
    if best is not None and model.booster != "gblinear":
        attributes["best_iteration"] = str(best)
    scores = ",".join(np.format_float_scientific(s, trim="-") for s in model.base_score)
    return {
        "learner": {
            "attributes": attributes,
            "feature_names": [],
            "feature_types": [],
            "gradient_booster": _booster(model),
            "learner_model_param": {
                "base_score": f"[{scores}]",
                "boost_from_average": "1",
                "num_class": str(goal.num_outputs if is_class else 0),
                "num_feature": str(model.num_features),
                "num_target": str(1 if is_class else goal.num_outputs),
            },
            "objective": {
                "name": goal.name,
                **({group: dict(entries)} if group else {}),
            },
        },
        "version": VERSION,
    }


def _booster(model: Model) -> dict[str, Any]:
    if model.linear is not None:
        weights = np.ravel(model.linear).astype(np.float32)
        rounds = {"boosted_rounds": len(model.losses), "weights": weights}
        return {"model": rounds, "name": "gblinear"}
    count, outputs = len(model.group), model.objective.num_outputs
    forest = [
        jax.tree.map(lambda leaf, i=i: leaf[i], model.trees) for i in range(count)
    ]
    indptr = list(range(0, count + 1, model.trees_per_round))
    gbtree = {
        "model": {
            "cats": {"enc": [], "feature_segments": [], "sorted_idx": []},
            "gbtree_model_param": {
                "num_parallel_tree": str(model.trees_per_round // outputs),
                "num_trees": str(count),
            },
            "iteration_indptr": indptr,
            "tree_info": [int(g) for g in model.group],
            "trees": [
                tree_document(i, compact(tree), float(model.eta), model.num_features)
                for i, tree in enumerate(forest)
            ],
        },
        "name": "gbtree",
    }
    if model.booster != "dart":
        return gbtree
    weights = [float(w) for w in model.weight]
    return {"gbtree": gbtree, "name": "dart", "weight_drop": weights}


def _plain(value: Any) -> Any:
    """NumPy arrays as lists; float32 with the digits that it needs and no more."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        if value.dtype == np.float32:
            return [float(str(item)) for item in value]
        return value.tolist()
    return value


# Reading.


def _checked(document: Any, path: File) -> Model:
    try:
        return _model(document)
    except KeyError as error:
        raise ValueError(f"{path} must have the entry {error} of XGBoost's") from None
    except (TypeError, IndexError, OverflowError, AttributeError) as error:
        raise ValueError(f"{path} must have XGBoost's structure: {error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _model(document: Mapping[str, Any]) -> Model:
    learner = document["learner"]
    params = learner["learner_model_param"]
    columns = int(params["num_feature"])
    goal = _read_objective(learner["objective"], params)
    scores = np.array(json.loads(f"[{params['base_score'].strip('[]')}]"), np.float32)
    if scores.ndim != 1 or len(scores) not in (1, goal.num_outputs):
        raise ValueError(
            f"base_score must be one number or {goal.num_outputs}, got {scores.tolist()}"
        )
    scores = jnp.asarray(np.broadcast_to(scores, (goal.num_outputs,)))
    best = learner.get("attributes", {}).get("best_iteration")
    booster = learner["gradient_booster"]
    name = booster["name"]
    common = {
        "start": goal.to_margin(scores),
        "base_score": scores,
        "eta": jnp.float32(1),
        "objective": goal,
        "num_features": columns,
        "booster": name,
    }
    if name == "gblinear":
        common["start"] = one_start(common["start"])
        return _read_linear(booster["model"], columns, goal, common)
    weight = None
    if name == "dart":
        weight = np.asarray(booster["weight_drop"], np.float32)
        booster = booster["gbtree"]
    elif name != "gbtree":
        raise ValueError(f"booster must be gbtree, dart or gblinear, got {name!r}")
    body = booster["model"]
    group = np.asarray(body["tree_info"], np.int32)
    if len(group) != len(body["trees"]) or group.ndim != 1:
        raise ValueError(f"tree_info must be of all {len(body['trees'])} trees")
    if len(group) and not 0 <= group.min() <= group.max() < goal.num_outputs:
        raise ValueError(f"tree_info must be below {goal.num_outputs} outputs")
    if not len(group):
        raise ValueError("the model must have a tree, got none")
    parallel = int(body["gbtree_model_param"].get("num_parallel_tree", 1) or 1)
    per_round = goal.num_outputs * max(parallel, 1)
    if len(group) % per_round:
        raise ValueError(f"trees must come {per_round} a round, got {len(group)}")
    weight = np.ones(len(group), np.float32) if weight is None else weight
    if weight.shape != group.shape:
        raise ValueError(
            f"weight_drop must be of {len(group)} trees, got {weight.shape}"
        )
    return Model(
        trees=stack([read_tree(tree, columns) for tree in body["trees"]]),
        group=jnp.asarray(group),
        weight=jnp.asarray(weight),
        losses=jnp.full(len(group) // per_round, jnp.nan, jnp.float32),
        trees_per_round=per_round,
        best_iteration=None if best is None else int(best),
        **common,
    )


def _read_objective(entry: Mapping[str, Any], params: Mapping[str, Any]) -> Objective:
    name, settings = entry["name"], dict[str, Any]()
    for group in entry.values():
        settings.update(group if isinstance(group, Mapping) else {})
    options: dict[str, Any] = {}
    if name.startswith("multi:"):
        options["num_class"] = int(params["num_class"])
    for key in ("tweedie_variance_power", "huber_slope", "max_delta_step"):
        if key in settings:
            options[key] = float(settings[key])
    if "quantile_alpha" in settings:
        text = settings["quantile_alpha"].strip("[]()").replace(" ", "")
        options["quantile_alpha"] = tuple(float(a) for a in text.split(",") if a)
    if "lambdarank_pair_method" in settings:
        pairs = int(settings["lambdarank_num_pair_per_sample"])
        options["ranking"] = Ranking(
            pair_method=settings["lambdarank_pair_method"],
            num_pair=None if pairs >= 2**32 - 1 else pairs,
            normalize=settings["lambdarank_normalization"] == "1",
            score_normalize=settings["lambdarank_score_normalization"] == "1",
            exp_gain=settings["ndcg_exp_gain"] == "1",
        )
    return objective(name, **options)


def _read_linear(
    body: Mapping[str, Any], columns: int, goal: Objective, common: dict[str, Any]
) -> Model:
    weights = np.asarray(body["weights"], np.float32)
    if weights.shape != ((columns + 1) * goal.num_outputs,):
        raise ValueError(
            f"weights must be {columns + 1} by {goal.num_outputs}, got {weights.shape}"
        )
    rounds = int(body.get("boosted_rounds", 0))
    if not 0 <= rounds < 2**24:
        raise ValueError(f"boosted_rounds must not be negative or vast, got {rounds}")
    return no_trees(
        linear=jnp.asarray(weights.reshape(columns + 1, goal.num_outputs)),
        losses=jnp.full(rounds, jnp.nan, jnp.float32),
        **common,
    )


def no_trees(**fields: Any) -> Model:
    """A model without trees, from the fields that are its own."""
    integer, real = jnp.zeros((0, 1), jnp.int32), jnp.zeros((0, 1), jnp.float32)
    empty = Tree(
        feature=integer,
        threshold=real,
        default_left=jnp.zeros((0, 1), bool),
        left=integer,
        value=real[..., None],
        gain=real,
        cover=real,
        categories=jnp.zeros((0, 1, 0), jnp.uint32),
    )
    return Model(
        trees=empty,
        group=jnp.zeros(0, jnp.int32),
        weight=jnp.zeros(0, jnp.float32),
        trees_per_round=1,
        **fields,
    )
