"""Model files there and back, and hostile ones."""

import json
from dataclasses import replace

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.trees.model import Model
from jaxml.trees.model_files import load_json, load_ubj, no_trees, save_json, save_ubj
from jaxml.trees.objectives import Objective, objective
from jaxml.trees.ranking import Ranking
from jaxml.trees.tree import stack
from jaxml.trees.xgboost import predict
from tests.trees.test_tree import random_tree

FORMATS = {"json": (save_json, load_json), "ubj": (save_ubj, load_ubj)}


def forest(rng, name="reg:squarederror", words=0, count=6, **options):
    goal = objective(name, **options)
    outputs = goal.num_outputs
    prediction = jnp.asarray(rng.uniform(0.2, 0.8, outputs), jnp.float32)
    return Model(
        trees=stack([random_tree(rng, 15, 4, words) for _ in range(count)]),
        group=jnp.arange(count, dtype=jnp.int32) % outputs,
        weight=jnp.ones(count),
        start=goal.to_margin(prediction),
        base_score=prediction,
        eta=jnp.float32(0.3),
        losses=jnp.full(count // outputs, jnp.nan),
        objective=goal,
        num_features=4,
        trees_per_round=outputs,
    )


def linear_model(rng, name="reg:squarederror", **options):
    goal = objective(name, **options)
    prediction = jnp.full(goal.num_outputs, 0.25)
    return no_trees(
        linear=jnp.asarray(rng.normal(size=(5, goal.num_outputs)), jnp.float32),
        losses=jnp.full(3, jnp.nan),
        start=goal.to_margin(prediction),
        base_score=prediction,
        eta=jnp.float32(1),
        objective=goal,
        num_features=4,
        booster="gblinear",
    )


MODELS = {
    "squared": {},
    "logistic": {"name": "binary:logistic"},
    "softmax": {"name": "multi:softprob", "num_class": 3},
    "quantile": {"name": "reg:quantileerror", "quantile_alpha": (0.25, 0.5)},
    "tweedie": {"name": "reg:tweedie", "tweedie_variance_power": 1.2},
    "huber": {"name": "reg:pseudohubererror", "huber_slope": 1.5},
    "poisson": {"name": "count:poisson", "max_delta_step": 0.5},
    "absolute": {"name": "reg:absoluteerror"},
    "categories": {"words": 2},
    "ranks": {
        "name": "rank:ndcg",
        "ranking": Ranking("ndcg", "mean", 3, True, False, False),
    },
    "many ranks": {"name": "rank:ndcg", "ranking": Ranking(normalize=False)},
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("form", FORMATS)
def test_models_come_back(rng, tmp_path, name, form):
    model = forest(rng, **MODELS[name])
    save, load = FORMATS[form]
    save(model, tmp_path / "model")
    back = load(tmp_path / "model")
    x = np.round(20 * rng.normal(size=(50, 4))).astype(np.float32)
    x[rng.random(x.shape) < 0.2] = np.nan
    chex.assert_trees_all_equal(predict(back, x), predict(model, x))
    assert back.objective.settings == model.objective.settings
    assert back.objective.hessian_scale == model.objective.hessian_scale
    assert back.objective.ranking == model.objective.ranking
    save(back, tmp_path / "again")
    chex.assert_trees_all_equal(load(tmp_path / "again").trees, back.trees)


@pytest.mark.parametrize("form", FORMATS)
def test_dart_linear_and_best_round_come_back(rng, tmp_path, form):
    save, load = FORMATS[form]
    x = rng.normal(size=(20, 4)).astype(np.float32)
    model = forest(rng)
    dart = Model(
        **{**vars(model), "weight": jnp.linspace(0.1, 1, 6), "booster": "dart"}
    )
    save(dart, tmp_path / "dart")
    chex.assert_trees_all_equal(predict(load(tmp_path / "dart"), x), predict(dart, x))
    linear = linear_model(rng)
    save(linear, tmp_path / "linear")
    chex.assert_trees_all_equal(
        predict(load(tmp_path / "linear"), x), predict(linear, x)
    )
    best = Model(**{**vars(model), "best_iteration": 2})
    save(best, tmp_path / "best")
    back = load(tmp_path / "best")
    assert back.best_iteration == 2
    chex.assert_trees_all_equal(predict(back, x), predict(model[:3], x))


def saved(model, path):
    save_json(model, path)
    return json.loads(path.read_text())["learner"]


@pytest.mark.parametrize(
    ("options", "classes", "targets"),
    [
        ({}, "0", "1"),
        ({"name": "multi:softprob", "num_class": 3}, "3", "1"),
        ({"name": "reg:quantileerror", "quantile_alpha": (0.25, 0.5)}, "0", "2"),
    ],
)
def test_what_xgboost_counts_is_written(rng, tmp_path, options, classes, targets):
    learner = saved(forest(rng, **options), tmp_path / "model")
    params = learner["learner_model_param"]
    assert (params["num_class"], params["num_target"]) == (classes, targets)
    assert params["num_feature"] == "4"
    body = learner["gradient_booster"]["model"]
    assert body["gbtree_model_param"] == {"num_parallel_tree": "1", "num_trees": "6"}
    width = max(int(classes), int(targets))
    assert body["iteration_indptr"] == list(range(0, 7, width))
    assert [tree["id"] for tree in body["trees"]] == list(range(6))


def test_forests_come_back_in_rounds(rng, tmp_path):
    model = replace(forest(rng), trees_per_round=3, losses=jnp.full(2, jnp.nan))
    learner = saved(model, tmp_path / "model")
    body = learner["gradient_booster"]["model"]
    assert body["gbtree_model_param"]["num_parallel_tree"] == "3"
    assert body["iteration_indptr"] == [0, 3, 6]
    back = load_json(tmp_path / "model")
    assert (back.trees_per_round, back.num_rounds, len(back.losses)) == (3, 2, 2)


def test_the_best_round_is_that_of_the_losses_unless_it_is_known(rng, tmp_path):
    losses = jnp.array([3.0, 2.0, jnp.nan, 1.0, 5.0, 6.0])
    model = replace(forest(rng), losses=losses)
    assert saved(model, tmp_path / "model")["attributes"] == {"best_iteration": "3"}
    known = replace(model, best_iteration=1)
    assert saved(known, tmp_path / "model")["attributes"] == {"best_iteration": "1"}
    linear = replace(linear_model(rng), losses=losses)
    assert saved(linear, tmp_path / "model")["attributes"] == {}


def test_linear_classes_start_from_the_first_one(rng, tmp_path):
    model = linear_model(rng, "multi:softprob", num_class=3)
    save_json(model, tmp_path / "model")
    document = json.loads((tmp_path / "model").read_text())
    document["learner"]["learner_model_param"]["base_score"] = "[1,2,3]"
    (tmp_path / "model").write_text(json.dumps(document))
    back = load_json(tmp_path / "model")
    assert back.start.tolist() == [1, 1, 1]
    assert back.base_score.tolist() == [1, 2, 3]
    assert len(back.losses) == 3


def test_slices_are_of_rounds(rng):
    model = forest(rng, "multi:softprob", num_class=3)
    assert model.num_rounds == 2
    assert model[1:].group.tolist() == [0, 1, 2]
    assert model[-1:].num_rounds == 1
    assert model[1:1].num_rounds == 0
    with pytest.raises(IndexError, match="step 1"):
        model[::2]


def test_a_loss_of_ones_own_cannot_be_saved(rng, tmp_path):
    model = forest(rng)
    own = Model(**{**vars(model), "objective": Objective(lambda m, y: m)})
    with pytest.raises(ValueError, match="only XGBoost's objectives"):
        save_json(own, tmp_path / "model")


def test_leaves_of_vectors_cannot_be_saved(rng, tmp_path):
    model = forest(rng)
    value = jnp.repeat(model.trees.value, 2, axis=-1)
    with pytest.raises(ValueError, match="one output each"):
        save_ubj(
            replace(model, trees=model.trees._replace(value=value)), tmp_path / "m"
        )


@pytest.mark.parametrize(
    ("kind", "where", "what", "message"),
    [
        ("gblinear", ("model", "weights"), [1.0] * 4, "weights must be 5 by 1"),
        ("gblinear", ("model", "boosted_rounds"), -1, "not be negative"),
        ("gblinear", ("model", "boosted_rounds"), 2**24, "or vast"),
        ("dart", ("weight_drop",), [1.0], "weight_drop must be of 6 trees"),
        ("dart", ("gbtree", "model", "trees"), [], "tree_info must be"),
    ],
)
def test_other_boosters_are_checked_too(rng, tmp_path, kind, where, what, message):
    model = replace(forest(rng), booster="dart")
    save_json(linear_model(rng) if kind == "gblinear" else model, tmp_path / "model")
    document = json.loads((tmp_path / "model").read_text())
    target = document["learner"]["gradient_booster"]
    for name in where[:-1]:
        target = target[name]
    target[where[-1]] = what
    (tmp_path / "model").write_text(json.dumps(document))
    with pytest.raises(ValueError, match=message):
        load_json(tmp_path / "model")


def test_rounds_must_be_whole_and_there(rng, tmp_path):
    save_json(forest(rng), tmp_path / "model")
    for parallel, keep, message in (("4", 6, "4 a round, got 6"), ("1", 0, "got none")):
        document = json.loads((tmp_path / "model").read_text())
        body = document["learner"]["gradient_booster"]["model"]
        body["gbtree_model_param"]["num_parallel_tree"] = parallel
        body["trees"], body["tree_info"] = body["trees"][:keep], [0] * keep
        (tmp_path / "other").write_text(json.dumps(document))
        with pytest.raises(ValueError, match=message):
            load_json(tmp_path / "other")


@pytest.mark.parametrize("data", [b"[" * 200_000, b"\xff", b"{"])
def test_what_is_no_json_is_told(tmp_path, data):
    (tmp_path / "model").write_bytes(data)
    with pytest.raises(ValueError, match="must be JSON"):
        load_json(tmp_path / "model")


def edits():
    """What can be wrong with a file: where, what to, and the message."""
    tree = ("learner", "gradient_booster", "model", "trees", 0)
    model = tree[:3]
    return {
        "no learner": (("learner",), None, "must have the entry 'learner'"),
        "a list": ((), [], "structure"),
        "objective": (("learner", "objective", "name"), "x", "objective must be one"),
        "booster": (("learner", "gradient_booster", "name"), "x", "booster must be"),
        "base_score": (
            ("learner", "learner_model_param", "base_score"),
            "[1,2]",
            "one number",
        ),
        "text": (("learner", "learner_model_param", "base_score"), "abc", "Expecting"),
        "tree_info": ((*model, "tree_info"), [0], "all 6 trees"),
        "group": ((*model, "tree_info"), [0, 0, 0, 0, 0, 7], "below 1 outputs"),
        "cycle": ((*tree, "left_children"), "cycle", "must be a tree's"),
        "out": ((*tree, "right_children"), "out", "must be a tree's"),
        "twice": ((*tree, "right_children"), "twice", "must be a tree's"),
        "short": ((*tree, "left_children"), [1], "left_children must be"),
        "strings": ((*tree, "sum_hessian"), "strings", "sum_hessian must be"),
        "feature": (
            (*tree, "split_indices"),
            "feature",
            "split_indices must be below 4",
        ),
        "leaf": ((*tree, "split_conditions"), "nan", "must be finite"),
        "vectors": ((*tree, "tree_param", "size_leaf_vector"), "3", "one output each"),
        "num_nodes": ((*tree, "tree_param", "num_nodes"), "99999999999", "must be"),
    }


@pytest.mark.parametrize("name", edits())
def test_hostile_files_are_told(rng, tmp_path, name):
    save_json(forest(rng), tmp_path / "model")
    document = json.loads((tmp_path / "model").read_text())
    where, what, message = edits()[name]
    if not where:
        document = what
    elif what is None:
        del document[where[0]]
    else:
        target = document
        for key in where[:-1]:
            target = target[key]
        old = target[where[-1]]
        target[where[-1]] = {
            "cycle": lambda: [0, *old[1:]],
            "out": lambda: [10**6, *old[1:]],
            "twice": lambda: [1, *old[1:]],
            "strings": lambda: ["x"] * len(old),
            "feature": lambda: [4] * len(old),
            "nan": lambda: [float("nan")] * len(old),
        }.get(what if isinstance(what, str) else "", lambda: what)()
    (tmp_path / "model").write_text(json.dumps(document))
    with pytest.raises(ValueError, match=message):
        load_json(tmp_path / "model")


@pytest.mark.parametrize("form", FORMATS)
def test_noise_is_told(rng, tmp_path, form):
    save, load = FORMATS[form]
    save(forest(rng), tmp_path / "model")
    data = bytearray((tmp_path / "model").read_bytes())
    (tmp_path / "cut").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError):
        load(tmp_path / "cut")
    for _ in range(
        60
    ):  # whatever a changed byte does, nothing but ValueError comes of it
        changed = data.copy()
        changed[rng.integers(len(data))] = rng.integers(256)
        (tmp_path / "changed").write_bytes(changed)
        try:
            load(tmp_path / "changed")
        except ValueError:
            continue


def test_files_of_older_versions_have_one_base_score(rng, tmp_path):
    save_json(forest(rng, "multi:softprob", num_class=3), tmp_path / "model")
    document = json.loads((tmp_path / "model").read_text())
    document["learner"]["learner_model_param"]["base_score"] = "5E-1"
    (tmp_path / "model").write_text(json.dumps(document))
    assert load_json(tmp_path / "model").start.tolist() == [0.5] * 3
