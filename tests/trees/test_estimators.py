"""Estimators: scikit-learn's own checks, in a process that compiles quickly, and its tools.

All sixteen are checked where JAXML_ALL_ESTIMATORS is set; otherwise those of `QUICK`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from jaxml.trees import estimators

ROOT = Path(__file__).parents[2]
QUICK = ("DecisionTreeRegressor", "GradientBoostingRegressor")
EVERY = [
    f"{name}{kind}"
    for name in (
        "DecisionTree",
        "RandomForest",
        "ExtraTrees",
        "AdaBoost",
        "GradientBoosting",
        "Bagging",
        "Stacking",
    )
    for kind in ("Classifier", "Regressor")
] + ["XGBClassifier", "XGBRegressor"]
CHECKED = EVERY if os.environ.get("JAXML_ALL_ESTIMATORS") else QUICK
DRAWS = "a row of weight two is drawn as often as one row, not as two"
WEIGHTS = "check_sample_weight_equivalence_on_dense_data"
EXPECTED = {  # checks that fail, and why
    "RandomForestClassifier": {WEIGHTS: DRAWS},
    "RandomForestRegressor": {WEIGHTS: DRAWS},
    "BaggingClassifier": {WEIGHTS: DRAWS},
    "BaggingRegressor": {WEIGHTS: DRAWS},
    "StackingClassifier": {WEIGHTS: "folds are drawn by row"},
    "StackingRegressor": {WEIGHTS: "folds are drawn by row"},
    "XGBClassifier": {WEIGHTS: "three times a gradient is rounded to float32"},
}
PROGRAM = """
import json, sys, warnings
warnings.simplefilter("ignore")
import jax
from sklearn.utils.estimator_checks import check_estimator
from jaxml.trees import ensemble_estimators, estimators
for name in sys.argv[1:]:
    jax.clear_caches()
    kind = getattr(estimators, name, None) or getattr(ensemble_estimators, name)
    small = {"n_estimators": 5} if hasattr(kind, "n_estimators") else {}
    found = check_estimator(kind(**small), on_fail=None, on_skip=None)
    failed = {r["check_name"]: repr(r["exception"])[:400] for r in found
              if r["status"] == "failed"}
    print(json.dumps([name, len(found), failed]), flush=True)
"""
FLAGS = "--xla_backend_optimization_level=0"
if jax.__version_info__ < (0, 11):  # later ones do not know it, and end at once
    FLAGS += " --xla_cpu_use_fusion_emitters=false"


@pytest.fixture(scope="module")
def verdicts():
    environment = {**os.environ, "XLA_FLAGS": FLAGS}
    command = [sys.executable, "-c", PROGRAM, *CHECKED]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = (json.loads(line) for line in done.stdout.splitlines() if line[:1] == "[")
    return {name: (count, failed) for name, count, failed in lines}


@pytest.mark.parametrize("name", CHECKED)
def test_scikit_learn_has_no_objections(verdicts, name):
    count, failed = verdicts[name]
    assert count > 50
    assert set(failed) == set(EXPECTED.get(name, {})), failed


def problem():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 4)).astype(np.float32)
    return x, np.where(x[:, 0] + x[:, 1] > 0, "yes", "no")


def test_trees_work_in_pipelines_searches_and_cross_validation():
    x, y = problem()
    x[::7, 3] = np.nan
    tree = estimators.DecisionTreeClassifier(random_state=0)
    pipe = make_pipeline(StandardScaler(), tree)
    grid = {"decisiontreeclassifier__max_depth": [1, 3]}
    search = GridSearchCV(pipe, grid, cv=3).fit(x, y)
    assert search.best_params_ == {"decisiontreeclassifier__max_depth": 3}
    assert set(search.predict(x)) == {"yes", "no"}
    assert cross_val_score(clone(pipe), x, y, cv=3).mean() > 0.7
    importances = search.best_estimator_[-1].feature_importances_
    assert set(importances.argsort()[-2:]) == {0, 1}


def test_several_targets_have_their_own_labels():
    x, y = problem()
    both = np.stack([y, np.where(x[:, 2] > 0.5, "up", "down")], axis=1)
    tree = estimators.DecisionTreeClassifier().fit(x, both)
    assert (tree.predict(x) == both).all()
    assert [p.shape for p in tree.predict_proba(x)] == [(60, 2), (60, 2)]


def test_forests_judge_themselves_and_trees_tell_their_path():
    x, y = problem()
    forest = estimators.RandomForestClassifier(
        n_estimators=20, oob_score=True, random_state=0
    ).fit(x, y)
    assert 0.6 < forest.oob_score_ < forest.score(x, y)
    again = clone(forest).fit(x, y)
    np.testing.assert_array_equal(forest.predict_proba(x), again.predict_proba(x))
    tree = estimators.DecisionTreeClassifier()
    path = tree.cost_complexity_pruning_path(x, y)
    assert (np.diff(path.alpha) >= 0).all()
    jax.block_until_ready(path)
