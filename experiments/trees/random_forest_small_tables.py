r"""Trees and their ensembles on small tables, beside scikit-learn's, and in the plane.

    python -m experiments.trees.random_forest_small_tables --tables breast_cancer diabetes
    python -m experiments.trees.random_forest_small_tables \
        --tables digits binary agaricus --methods random_forest extra_trees

5 folds, and of binary and agaricus their own split, 100 trees, seeds 0 to 2, mean and
standard deviation over folds, beside scikit-learn 1.9.1 on the same folds. AdaBoost has
stumps for two classes, depth 3 for numbers; forests look at a third of the columns for
numbers, the root of them for classes; stacking learns from a tree of depth 4, a full one and
a linear model. In parentheses scikit-learn.

    breast cancer    cross-entropy       accuracy, %            AUC
    cart             2.68  (2.64)        92.6 +- 1.7 (92.7)     0.922 (0.923)
    bagging          0.197 (0.177)       95.2 +- 2.1 (95.4)     0.988 (0.989)
    random forest    0.154 (0.171)       96.1 +- 1.9 (96.0)     0.990 (0.991)
    extra trees      0.130 (0.147)       96.6 +- 1.7 (96.8)     0.992 (0.993)
    adaboost         0.416 (0.416)       96.8 +- 0.8 (96.8)     0.994 (0.994)
    gbdt             0.132 (0.129)       95.6 +- 1.7 (95.6)     0.991 (0.991)
    stacking         0.130 (0.142)       95.5 +- 1.6 (95.5)     0.991 (0.991)

    diabetes         root mean square
    cart             82.3 +- 5.5 (81.2)
    bagging          59.2 +- 3.2 (58.9)
    random forest    57.8 +- 2.7 (57.6)
    extra trees      56.8 +- 2.0 (56.7)
    adaboost         58.7 +- 2.4 (58.6)
    gbdt             58.9 +- 3.3 (58.8)
    stacking         55.4 +- 2.0 (55.3)

    digits           cross-entropy       accuracy, %
    random forest    0.304 (0.303)       97.5 +- 0.7 (97.5)
    extra trees      0.281 (0.279)       98.3 +- 0.6 (98.3)

    binary           cross-entropy       accuracy, %            AUC
    random forest    0.548 (0.548)       74.5 +- 0.7 (73.6)     0.818 (0.816)
    extra trees      0.597 (0.593)       69.2 +- 0.8 (70.2)     0.770 (0.777)

    agaricus         cross-entropy       accuracy, %
    random forest    0.0004 (0.0002)     100 (100)

Nowhere is jaxml worse by as much as the standard error of the difference, but for the
accuracy of extra trees on binary and the cross-entropy of the forest on agaricus, of which
there are three draws. 2 CPU cores, shared and busy, jax 0.10.2. The other ensembles on
digits, binary and agaricus have not been run.

Writes metrics.jsonl, results.json, for each table bars of the held-out errors and a picture
of all scores, and the regions of each ensemble on two half moons (boundaries.png).

Reference: Hastie, Tibshirani and Friedman, "The Elements of Statistical Learning", 2009,
https://doi.org/10.1007/978-0-387-84858-7 (chapters 8, 9, 10, 15).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import sklearn.ensemble
import sklearn.tree
import tyro
from sklearn.datasets import make_moons
from sklearn.linear_model import LogisticRegression, Ridge

from experiments.trees.beside import Tell, compare
from experiments.trees.tables import CLASSES, Split
from jaxml import draw, train
from jaxml.trees import (
    adaboost,
    bagging,
    cart,
    extra_trees,
    gbdt,
    random_forest,
    stacking,
)
from jaxml.trees.learner import Learner, logistic, ridge


@dataclass(frozen=True)
class Config:
    """Which tables and ensembles, and how many trees."""

    tables: tuple[str, ...] = ("breast_cancer", "digits", "diabetes")
    """Of scikit-learn, or "binary" and "agaricus" of the folder of data."""
    methods: tuple[str, ...] = (
        "cart",
        "bagging",
        "random_forest",
        "random_forest_log2",
        "extra_trees",
        "adaboost",
        "adaboost_deep",
        "gbdt",
        "stacking",
    )
    """Ensembles that are compared."""
    trees: int = 100
    """Of every ensemble."""
    folds: int = 5
    """Parts of each table, each held out once."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of folds and draws."""
    data_dir: Path | None = None
    """Folder of the original files; by default the one JAXML_DATA_DIR names."""
    peers: bool = True
    """Whether to run scikit-learn's on the same folds."""
    out: Path = Path("runs/random_forest_small_tables")
    """Where everything is written."""


SMOKE = Config(
    tables=("diabetes",), methods=("cart",), trees=2, folds=2, seeds=(0,), peers=False
)

Predict = Callable[[np.ndarray], Any]


def main(config: Config) -> Mapping[str, float]:
    """Cross-validates every ensemble on every table; returns mean held-out scores."""

    def tell(fit: Callable[..., Predict]) -> Tell:
        def of(table: str, method: str, split: Split, seed: int) -> np.ndarray:
            x, y, held, _ = split
            return np.asarray(
                fit(method, x, y, CLASSES[table], config.trees, seed)(held)
            )

        return of

    libraries = {"jaxml": tell(ours)}
    if config.peers:
        libraries["scikit-learn"] = tell(theirs)
    run = train.Run(config.out, config)
    rows = compare(run, config, libraries)
    boundaries(run.path / "boundaries.png", config)
    return {f"{name}_{k}": v for name, row in rows.items() for k, v in row.items()}


def ours(
    method: str, x: np.ndarray, y: np.ndarray, classes: int, trees: int, seed: int
) -> Predict:
    """Predictions of one of jaxml's: class shares, or numbers."""
    key = jax.random.key(seed)
    y = y.astype(np.int32) if classes else y
    full = cart.Config("gini" if classes else "squared_error", num_classes=classes)
    few = replace(full, max_features=features_of(method, classes))
    if method == "cart":
        tree = cart.fit(x, y, full, key)
        return lambda x: (cart.predict_proba if classes else cart.predict)(tree, x)
    if method in ("random_forest", "random_forest_log2", "extra_trees"):
        forest = random_forest.Config(few, trees)
        module: Any = random_forest
        if method == "extra_trees":
            forest, module = extra_trees.config(few, trees), extra_trees
        grown = module.fit(x, y, forest, key)
        tell = module.predict_proba if classes else module.predict
        return lambda x: tell(grown, x)
    if method == "gbdt":
        loss: Any = "logistic" if classes else "squared"
        friedman = gbdt.fit(x, y, gbdt.Config(loss, classes, trees), key)
        tell = gbdt.predict_proba if classes else gbdt.predict
        return lambda x: tell(friedman, x)
    return meta(method, x, y, full, trees, key)


def meta(
    method: str, x: np.ndarray, y: np.ndarray, full: cart.Config, trees: int, key: Any
) -> Predict:
    """Those that are made of any learner."""
    classes = full.num_classes
    learner = cart.learner(full)
    if method == "bagging":
        bag = bagging.Config(trees, num_classes=classes)
        bags = bagging.fit(x, y, learner, bag, key)
        return lambda x: bagging.predict(bags, learner, x)
    if method in ("adaboost", "adaboost_deep"):
        weak = cart.learner(replace(full, max_depth=depth_of(method, classes)))
        boosted = adaboost.fit(x, y, weak, adaboost.Config(classes, trees), key)
        tell = adaboost.predict_proba if classes else adaboost.predict
        return lambda x: tell(boosted, weak, x)
    linear = linear_of(classes)
    first = (cart.learner(replace(full, max_depth=4)), learner, linear)
    how = stacking.Config(num_classes=classes)
    stack = stacking.fit(x, y, first, linear, how, key)
    return lambda x: stacking.predict(stack, first, linear, how, x)


@cache  # one learner, one compilation
def linear_of(classes: int) -> Learner:
    """Softmax regression, or least squares."""
    return logistic(classes) if classes else ridge()


def depth_of(method: str, classes: int) -> int:
    """Of AdaBoost's trees: stumps of classes, unless they are to be deep."""
    if method == "adaboost_deep":
        return 5
    return 1 if classes else 3


def features_of(method: str, classes: int) -> Any:
    """Columns that a node of a forest looks at."""
    if method == "random_forest_log2":
        return "log2"
    return "sqrt" if classes else 1 / 3


def theirs(
    method: str, x: np.ndarray, y: np.ndarray, classes: int, trees: int, seed: int
) -> Predict:
    """Predictions of the same of scikit-learn's."""
    kind = "Classifier" if classes else "Regressor"
    tree = getattr(sklearn.tree, f"DecisionTree{kind}")
    both = {"n_estimators": trees, "random_state": seed}
    few = {**both, "max_features": features_of(method, classes)}
    weak = {**both, "estimator": tree(max_depth=depth_of(method, classes))}
    linear = LogisticRegression(solver="newton-cholesky") if classes else Ridge(1e-3)
    first = [("tree", tree(max_depth=4)), ("full", tree()), ("linear", linear)]
    named: dict[str, tuple[str, dict[str, Any]]] = {
        "bagging": ("Bagging", both),
        "random_forest": ("RandomForest", few),
        "random_forest_log2": ("RandomForest", few),
        "extra_trees": ("ExtraTrees", few),
        "adaboost": ("AdaBoost", weak),
        "adaboost_deep": ("AdaBoost", weak),
        "gbdt": ("GradientBoosting", both),
        "stacking": ("Stacking", {"estimators": first, "final_estimator": linear}),
    }
    if method == "cart":
        model = tree(random_state=seed)
    else:
        name, options = named[method]
        model = getattr(sklearn.ensemble, f"{name}{kind}")(**options)
    model.fit(x, y)
    return model.predict_proba if classes else model.predict


def boundaries(path: Path, config: Config) -> None:
    """Draws where each ensemble parts two classes of the plane."""
    x, y = make_moons(200, noise=0.3, random_state=0)
    x = x.astype(np.float32)

    def side(method: str) -> Predict:
        told = ours(method, x, y, 2, config.trees, 0)
        return lambda x: np.asarray(told(x))[:, 1] - 0.5

    draw.save_boundary(
        path,
        x,
        y,
        {method.replace("_", " "): side(method) for method in config.methods},
        title="Two half moons, noise 0.3",
    )


if __name__ == "__main__":
    main(tyro.cli(Config))
