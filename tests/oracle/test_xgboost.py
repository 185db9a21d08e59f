"""Parity with XGBoost 3.2: trees node by node, margins, files, and contributions."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import sklearn.datasets

from jaxml.trees.bins import from_cuts
from jaxml.trees.ranking import make_groups, mean_average_precision, ndcg
from jaxml.trees.text_dump import text_dump
from jaxml.trees.tree import compact
from jaxml.trees.xgboost import (
    Config,
    fit,
    load_json,
    load_ubj,
    predict,
    save_json,
    save_ubj,
    shap_values,
)

xgb = pytest.importorskip("xgboost", reason="needs xgboost")
pytestmark = pytest.mark.oracle
KEY = jax.random.key(0)


def dataset(name, missing=0.0):
    """One of scikit-learn's datasets, with a share of the features taken out."""
    x, y = getattr(sklearn.datasets, f"load_{name}")(return_X_y=True)
    x = x.astype(np.float32)
    holes = np.random.default_rng(0).random(x.shape) < missing
    return np.where(holes, np.float32(np.nan), x), y.astype(np.float32)


def options(config):
    """The parameters of XGBoost that a configuration differs in from the default."""
    chosen = {
        field.name: value
        for field in dataclasses.fields(config)
        if (value := getattr(config, field.name)) != field.default
    }
    if "interaction_constraints" in chosen:
        sets = [list(members) for members in config.interaction_constraints]
        chosen["interaction_constraints"] = json.dumps(sets)
    return {"nthread": 1, "tree_method": "hist", **chosen, "num_boost_round": None}


def train(config, data, rounds):
    chosen = {k: v for k, v in options(config).items() if k != "num_boost_round"}
    return xgb.train(chosen, data, rounds)


def assert_same_trees(model, booster, path):
    """Features, float32 thresholds, default directions: all nodes; values nearly."""
    booster.save_model(path / "theirs.json")
    theirs = load_json(path / "theirs.json")
    assert len(theirs.group) == len(model.group)
    nodes = 0
    for i in range(len(model.group)):
        a, b = (
            compact(jax.tree.map(lambda leaf, i=i: leaf[i], m.trees))
            for m in (model, theirs)
        )
        for field in ("left", "feature", "threshold", "default_left"):
            np.testing.assert_array_equal(getattr(a, field), getattr(b, field), field)
        leaf = a.left == 0
        # Leaves near zero are what is left of sums of much larger gradients.
        atol = 1e-6 * max(1, np.abs(b.value[leaf]).max())
        np.testing.assert_allclose(a.value[leaf], b.value[leaf], rtol=2e-5, atol=atol)
        np.testing.assert_allclose(a.cover, b.cover, rtol=1e-5)
        # A split that was pruned leaves its gain behind in XGBoost.
        np.testing.assert_allclose(a.gain[~leaf], b.gain[~leaf], rtol=1e-3, atol=1e-3)
        nodes += len(a.left)
    np.testing.assert_allclose(
        model.base_score, theirs.base_score, rtol=1e-6, atol=1e-6
    )
    assert nodes > 3 * len(model.group), "the trees must be worth comparing"


EXACT = {
    "logistic": ("breast_cancer", {"objective": "binary:logistic", "max_depth": 4}),
    "squared": ("diabetes", {"max_depth": 5}),
    "softprob": (
        "digits",
        {"objective": "multi:softprob", "num_class": 10, "max_depth": 4},
    ),
    "poisson": ("counts", {"objective": "count:poisson", "max_depth": 4}),
    "regularised": (
        "breast_cancer",
        {
            "objective": "binary:logistic",
            "max_depth": 3,
            "reg_lambda": 3.0,
            "reg_alpha": 0.5,
            "gamma": 0.5,
            "min_child_weight": 5.0,
            "max_delta_step": 0.5,
            "scale_pos_weight": 2.0,
        },
    ),
    "monotone": (
        "diabetes",
        {"max_depth": 4, "monotone_constraints": (1, -1, 0, 0, 1, 1, 1, 1, -1, -1)},
    ),
    "interaction": (
        "diabetes",
        {
            "max_depth": 4,
            "interaction_constraints": ((0, 1, 2), (2, 3, 8), (4, 5, 6, 7)),
        },
    ),
    "gamma deviance": ("diabetes", {"objective": "reg:gamma", "max_depth": 3}),
    "tweedie": ("diabetes", {"objective": "reg:tweedie", "max_depth": 3}),
    "huber": ("scaled", {"objective": "reg:pseudohubererror", "max_depth": 3}),
    "squared log": ("scaled", {"objective": "reg:squaredlogerror", "max_depth": 3}),
    "absolute": ("scaled", {"objective": "reg:absoluteerror", "max_depth": 3}),
    "quantiles": (
        "scaled",
        {
            "objective": "reg:quantileerror",
            "quantile_alpha": (0.2, 0.7),
            "max_depth": 3,
        },
    ),
}


def named(name, missing):
    if name not in ("counts", "scaled"):
        x, y = dataset(name, missing)
        return (x[:300], y[:300]) if name == "digits" else (x, y)
    x, y = dataset("diabetes", missing)
    return x, np.round(y / 20) if name == "counts" else y / 100


@pytest.mark.parametrize("missing", [0.0, 0.2])
@pytest.mark.parametrize("name", EXACT)
def test_exact_trees_are_xgboosts(name, missing, tmp_path):
    data, chosen = EXACT[name]
    rounds = {"softprob": 4}.get(name, 20)
    config = Config(tree_method="exact", num_boost_round=rounds, **chosen)
    x, y = named(data, missing)
    theirs = train(config, xgb.DMatrix(x, y), rounds)
    model = fit(x, y, config, KEY)
    assert_same_trees(model, theirs, tmp_path)
    expected = theirs.predict(xgb.DMatrix(x), output_margin=True)
    np.testing.assert_allclose(
        predict(model, x, output_margin=True), expected, rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(
        predict(model, x), theirs.predict(xgb.DMatrix(x)), rtol=1e-5, atol=1e-6
    )


HIST = {
    "logistic": ("breast_cancer", 0.0, {"objective": "binary:logistic"}),
    "squared": ("diabetes", 0.2, {}),
    "gamma": ("diabetes", 0.0, {"gamma": 5000.0}),
    "absolute": ("diabetes", 0.2, {"objective": "reg:absoluteerror"}),
    "quantiles": (
        "diabetes",
        0.0,
        {"objective": "reg:quantileerror", "quantile_alpha": (0.1, 0.5, 0.9)},
    ),
    "monotone": (
        "diabetes",
        0.2,
        {"monotone_constraints": (0, 0, 1, 1, 0, 0, -1, 0, 1, 0)},
    ),
}


@pytest.mark.parametrize("name", HIST)
def test_hist_trees_are_xgboosts_given_its_cuts(name, tmp_path):
    data, missing, chosen = HIST[name]
    config = Config(max_bin=32, num_boost_round=10, max_depth=4, **chosen)
    x, y = dataset(data, missing)
    quantiles = xgb.QuantileDMatrix(x, y, max_bin=32)
    theirs = train(config, quantiles, 10)
    ends, values = quantiles.get_quantile_cut()
    bins = from_cuts(x, np.split(values, ends[1:-1].astype(int)))
    model = fit(bins, y, config, KEY)
    assert_same_trees(model, theirs, tmp_path)
    expected = theirs.predict(xgb.DMatrix(x), output_margin=True)
    np.testing.assert_allclose(
        predict(model, x, output_margin=True), expected, rtol=1e-5, atol=2e-5
    )


FILES = {
    "gbtree": {"objective": "binary:logistic", "max_depth": 3},
    "dart": {"booster": "dart", "rate_drop": 0.5, "max_depth": 3},
    "gblinear": {"booster": "gblinear", "objective": "count:poisson"},
    "linear classes": {
        "booster": "gblinear",
        "objective": "multi:softprob",
        "num_class": 3,
    },
    "softprob": {"objective": "multi:softprob", "num_class": 3, "max_depth": 3},
    "forest": {"num_parallel_tree": 3, "subsample": 0.5, "max_depth": 2},
    "quantiles": {"objective": "reg:quantileerror", "quantile_alpha": [0.2, 0.8]},
    "pruned": {"tree_method": "exact", "gamma": 0.2, "objective": "binary:logistic"},
}


def labels(name, y):
    if "quantile" in name or name in ("dart", "forest", "gblinear"):
        return y * 3 + np.arange(len(y)) % 5
    return y


@pytest.mark.parametrize("name", FILES)
def test_models_of_xgboost_predict_and_explain_here(name, tmp_path):
    x, y = dataset("wine", 0.1)
    y = np.minimum(y, 1) if "binary" in FILES[name].get("objective", "") else y
    data = xgb.DMatrix(x, labels(name, y))
    theirs = xgb.train({"nthread": 1, **FILES[name]}, data, 5)
    margin = theirs.predict(data, output_margin=True)
    parts = theirs.predict(data, pred_contribs=True)
    for suffix, load, save in (
        ("json", load_json, save_json),
        ("ubj", load_ubj, save_ubj),
    ):
        theirs.save_model(tmp_path / f"theirs.{suffix}")
        model = load(tmp_path / f"theirs.{suffix}")
        np.testing.assert_allclose(
            predict(model, x, output_margin=True), margin, rtol=1e-5, atol=1e-5
        )
        np.testing.assert_allclose(
            predict(model, x), theirs.predict(data), rtol=1e-5, atol=1e-5
        )
        save(model, tmp_path / f"back.{suffix}")
        back = xgb.Booster(model_file=tmp_path / f"back.{suffix}")
        np.testing.assert_allclose(
            back.predict(data, output_margin=True), margin, rtol=1e-6, atol=1e-6
        )
    if name not in ("gblinear", "linear classes", "pruned"):
        for stats in (False, True):
            assert text_dump(model, with_stats=stats) == theirs.get_dump(
                with_stats=stats
            )
    told = np.asarray(shap_values(model, x))
    np.testing.assert_allclose(told.reshape(parts.shape), parts, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    "goal", ["reg:squarederror", "count:poisson", "multi:softprob"]
)
def test_linear_models_are_xgboosts(goal):
    x, y = dataset("wine", 0.1)
    x = (x - np.nanmean(x, axis=0)) / np.nanstd(x, axis=0)
    config = Config(
        booster="gblinear",
        objective=goal,
        reg_lambda=0.01,
        reg_alpha=0.005,
        num_boost_round=8,
        num_class=3 if goal == "multi:softprob" else 0,
    )
    data = xgb.DMatrix(x, y)
    chosen = {k: v for k, v in options(config).items() if v is not None}
    chosen.pop("tree_method")
    theirs = xgb.train({**chosen, "updater": "coord_descent"}, data, 8)
    np.testing.assert_allclose(
        predict(fit(x, y, config, KEY), x, output_margin=True),
        theirs.predict(data, output_margin=True),
        rtol=1e-4,
        atol=2e-5,
    )


RANKED = {
    "ndcg": {"objective": "rank:ndcg"},
    "ndcg of few": {
        "objective": "rank:ndcg",
        "lambdarank_num_pair_per_sample": 3,
        "lambdarank_score_normalization": False,
        "ndcg_exp_gain": False,
    },
    "pairs": {"objective": "rank:pairwise", "lambdarank_pair_method": "mean"},
    "many pairs": {
        "objective": "rank:ndcg",
        "lambdarank_pair_method": "mean",
        "lambdarank_num_pair_per_sample": 4,
    },
    "map": {"objective": "rank:map"},
}


@pytest.mark.parametrize("name", RANKED)
def test_ranked_queries_are_xgboosts(name, tmp_path):
    rng = np.random.default_rng(1)
    query = np.repeat(np.arange(24), rng.integers(1, 12, 24))
    x = rng.normal(size=(len(query), 4)).astype(np.float32)
    y = np.clip(np.round(x[:, 0] + rng.normal(size=len(query)) + 1), 0, 4)
    y = np.minimum(y, 1) if name == "map" else y
    weights = rng.uniform(0.5, 2, 24).astype(np.float32)
    config = Config(num_boost_round=4, max_depth=3, tree_method="exact", **RANKED[name])
    data = xgb.DMatrix(x, y, qid=query, weight=weights)
    theirs = train(config, data, 4)
    model = fit(x, y, config, KEY, weights, query=query)
    margin = predict(model, x, output_margin=True)
    expected = theirs.predict(data, output_margin=True)
    np.testing.assert_allclose(margin, expected, rtol=1e-4, atol=2e-5)
    # Without weights: XGBoost weighs queries without a relevant document by one.
    groups, even = make_groups(query), xgb.DMatrix(x, y, qid=query)
    metric = "map" if name == "map" else "ndcg"
    judge = mean_average_precision if name == "map" else ndcg
    for k in (3, None) if name in ("ndcg", "map") else ():
        at = metric if k is None else f"{metric}@{k}"
        booster = xgb.Booster({"eval_metric": at}, model_file=theirs.save_raw("ubj"))
        told = float(booster.eval(even).split(":")[1])
        assert float(judge(expected, y, groups, k)) == pytest.approx(told, abs=1e-5)
    save_json(model, tmp_path / "model.json")
    assert load_json(tmp_path / "model.json").objective == model.objective
    back = xgb.Booster(model_file=tmp_path / "model.json")
    np.testing.assert_allclose(back.predict(data), margin, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("policy", ["lossguide", "depthwise"])
def test_trees_of_few_leaves_are_xgboosts(policy, tmp_path):
    x, y = dataset("diabetes", 0.1)
    config = Config(max_bin=16, max_depth=5, max_leaves=7, grow_policy=policy)
    quantiles = xgb.QuantileDMatrix(x, y, max_bin=16)
    theirs = train(config, quantiles, 3)
    ends, values = quantiles.get_quantile_cut()
    bins = from_cuts(x, np.split(values, ends[1:-1].astype(int)))
    model = fit(bins, y, dataclasses.replace(config, num_boost_round=3), KEY)
    np.testing.assert_allclose(
        predict(model, x), theirs.predict(xgb.DMatrix(x)), rtol=1e-5, atol=2e-5
    )
    trees = [compact(jax.tree.map(lambda a, i=i: a[i], model.trees)) for i in range(3)]
    assert all((tree.left == 0).sum() == 7 for tree in trees)


def test_categories_are_split_as_in_xgboost(tmp_path):
    rng = np.random.default_rng(0)
    code, few = rng.integers(0, 40, 400), rng.integers(0, 3, 400)
    other = np.round(3 * rng.normal(size=400)) / 3
    y = rng.normal(size=40)[code] + (few == 1) * other + 0.1 * rng.normal(size=400)
    x = np.stack((code, other, few), axis=1).astype(np.float32)
    x[rng.random(x.shape) < 0.2] = np.nan
    config = Config(categorical=(0, 2), max_cat_threshold=6, max_depth=3, max_bin=64)
    kinds = {"feature_types": ["c", "q", "c"], "enable_categorical": True}
    data = xgb.DMatrix(x, y, **kinds)
    chosen = {"max_depth": 3, "max_bin": 64, "max_cat_threshold": 6, "nthread": 1}
    theirs = xgb.train(chosen, data, 3)
    theirs.save_model(tmp_path / "theirs.json")
    model = fit(x, y, dataclasses.replace(config, num_boost_round=3), KEY)
    expected = theirs.predict(data)
    np.testing.assert_allclose(predict(model, x), expected, rtol=1e-5, atol=1e-6)
    other = load_json(tmp_path / "theirs.json")
    for i in range(3):
        a, b = (
            compact(jax.tree.map(lambda leaf, i=i: leaf[i], m.trees))
            for m in (model, other)
        )
        for field in ("left", "feature", "default_left"):
            np.testing.assert_array_equal(getattr(a, field), getattr(b, field), field)
        words = b.categories.shape[1]
        np.testing.assert_array_equal(a.categories[:, :words], b.categories)
    save_json(model, tmp_path / "ours.json")
    back = xgb.Booster(model_file=tmp_path / "ours.json")
    np.testing.assert_allclose(back.predict(data), expected, rtol=1e-5, atol=1e-6)


def test_models_of_jaxml_predict_and_explain_in_xgboost(tmp_path):
    x, y = dataset("wine", 0.1)
    config = Config(objective="multi:softprob", num_class=3, max_depth=3, max_bin=16)
    model = fit(x, y, config, KEY)
    margin = np.asarray(predict(model, x, output_margin=True))
    for suffix, save in (("json", save_json), ("ubj", save_ubj)):
        save(model, tmp_path / f"model.{suffix}")
        theirs = xgb.Booster(model_file=tmp_path / f"model.{suffix}")
        data = xgb.DMatrix(x)
        np.testing.assert_allclose(
            theirs.predict(data, output_margin=True), margin, rtol=1e-5, atol=1e-5
        )
        parts = theirs.predict(data, pred_contribs=True)
        np.testing.assert_allclose(parts.sum(axis=-1), margin, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(shap_values(model, x), parts, rtol=1e-4, atol=1e-5)


def test_categories_of_xgboost_are_read(tmp_path):
    pandas = pytest.importorskip(
        "pandas", reason="XGBoost takes categories from pandas"
    )
    rng = np.random.default_rng(0)
    code = rng.integers(0, 40, 300)
    y = (rng.normal(size=40)[code] + 0.1 * rng.normal(size=300)).astype(np.float32)
    other = rng.normal(size=300).astype(np.float32)
    frame = pandas.DataFrame({"c": pandas.Categorical(code, range(40)), "x": other})
    data = xgb.DMatrix(frame, y, enable_categorical=True)
    theirs = xgb.train({"nthread": 1, "max_depth": 3, "max_cat_to_onehot": 4}, data, 5)
    theirs.save_model(tmp_path / "model.ubj")
    x = np.stack((code, other), axis=1).astype(np.float32)
    margin = theirs.predict(data, output_margin=True)
    model = load_ubj(tmp_path / "model.ubj")
    assert model.trees.categories.any()
    np.testing.assert_allclose(predict(model, x, output_margin=True), margin, rtol=1e-5)
    parts = theirs.predict(data, pred_contribs=True)
    np.testing.assert_allclose(shap_values(model, x)[:, 0], parts, rtol=1e-3, atol=1e-5)
