r"""Trees and their ensembles on small tables, beside scikit-learn's, and in the plane.

    python -m experiments.trees.random_forest_small_tables \
        --tables breast_cancer diabetes binary agaricus
    python -m experiments.trees.random_forest_small_tables --tables digits --methods \
        cart random_forest random_forest_log2 extra_trees adaboost adaboost_deep \
        gbdt stacking

5 folds, and of binary and agaricus their own split, 100 trees, seeds 0 to 2, beside
scikit-learn 1.9.1. AdaBoost has stumps for classes and depth 3 for numbers, the deep one
depth 5; forests look at a third of the columns for numbers, at the root or log2 of them for
classes; stacking learns from a tree of depth 4, a full one and a linear model. What the
commands print (accuracy in percent, the loss cross-entropy in nats), held out, means over
folds and seeds; `beside` says what the verdicts mean, and the first seed is 0. Of agaricus
only the loss is written here: every accuracy is 100 %, every AUC 1.0000.

    breast cancer                   ours    peer   ahead by                   first seed
    cart               loss       2.7034  2.6394 -0.0640 +- 0.1423 met    2.6609  2.5333
    cart               accuracy    92.50   92.68   -0.18 +- 0.39   met     92.62   92.97
    cart               auc        0.9208  0.9225 -0.0017 +- 0.0039 met    0.9220  0.9248
    bagging            loss       0.1970  0.1769 -0.0202 +- 0.0187 worse  0.1736  0.1710
    bagging            accuracy    94.96   95.37   -0.41 +- 0.26   worse   95.26   95.61
    bagging            auc        0.9879  0.9888 -0.0009 +- 0.0007 worse  0.9899  0.9900
    random forest      loss       0.1543  0.1706 +0.0163 +- 0.0185 met    0.1743  0.1695
    random forest      accuracy    96.08   95.96   +0.12 +- 0.26   met     96.14   96.14
    random forest      auc        0.9904  0.9905 -0.0001 +- 0.0006 met    0.9899  0.9909
    random forest log2 loss       0.1716  0.1553 -0.0163 +- 0.0325 met    0.2298  0.1734
    random forest log2 accuracy    96.08   95.73   +0.35 +- 0.19   ahead   96.14   95.79
    random forest log2 auc        0.9905  0.9909 -0.0003 +- 0.0013 met    0.9887  0.9912
    extra trees        loss       0.1296  0.1465 +0.0170 +- 0.0189 met    0.1673  0.2245
    extra trees        accuracy    96.60   96.84   -0.23 +- 0.29   met     96.66   97.01
    extra trees        auc        0.9924  0.9926 -0.0002 +- 0.0008 met    0.9912  0.9897
    adaboost           loss       0.4159  0.4159 -0.0000 +- 0.0000 met    0.4155  0.4155
    adaboost           accuracy    96.84   96.84   +0.00 +- 0.00   met     97.19   97.19
    adaboost           auc        0.9938  0.9938 +0.0000 +- 0.0000 met    0.9951  0.9951
    adaboost deep      loss       0.2178  0.2218 +0.0040 +- 0.0066 met    0.2047  0.2060
    adaboost deep      accuracy    95.72   95.78   -0.06 +- 0.47   met     97.01   97.37
    adaboost deep      auc        0.9794  0.9834 -0.0040 +- 0.0043 met    0.9924  0.9920
    gbdt               loss       0.1253  0.1287 +0.0034 +- 0.0020 ahead  0.1030  0.1103
    gbdt               accuracy    95.84   95.60   +0.23 +- 0.10   ahead   96.49   96.31
    gbdt               auc        0.9915  0.9912 +0.0003 +- 0.0002 met    0.9934  0.9926
    stacking           loss       0.1306  0.1400 +0.0093 +- 0.0052 ahead  0.1268  0.1389
    stacking           accuracy    95.43   95.67   -0.24 +- 0.35   met     95.43   95.61
    stacking           auc        0.9915  0.9909 +0.0007 +- 0.0010 met    0.9922  0.9895

    diabetes                        ours    peer   ahead by                   first seed
    cart               rmse        82.32   81.22   -1.10 +- 0.80   worse   83.01   82.59
    bagging            rmse        59.12   58.95   -0.17 +- 0.25   met     58.66   57.91
    random forest      rmse        57.77   57.64   -0.12 +- 0.25   met     57.32   57.35
    random forest log2 rmse        57.77   57.64   -0.12 +- 0.25   met     57.32   57.35
    extra trees        rmse        56.77   56.66   -0.11 +- 0.25   met     56.18   56.06
    adaboost           rmse        58.39   58.60   +0.22 +- 0.32   met     57.83   58.11
    adaboost deep      rmse        58.02   58.40   +0.38 +- 0.39   met     57.65   58.26
    gbdt               rmse        58.83   58.82   -0.02 +- 0.06   met     57.89   57.84
    stacking           rmse        55.35   55.36   +0.00 +- 0.16   met     54.63   54.53

    digits                          ours    peer   ahead by                   first seed
    cart               loss       5.1083  5.1281 +0.0198 +- 0.1077 met    5.3755  5.3954
    cart               accuracy    85.83   85.77   +0.05 +- 0.30   met     85.09   85.03
    random forest      loss       0.3039  0.3033 -0.0006 +- 0.0013 met    0.3029  0.3040
    random forest      accuracy    97.48   97.50   -0.02 +- 0.13   met     97.22   97.33
    random forest log2 loss       0.3271  0.3236 -0.0035 +- 0.0021 worse  0.3277  0.3229
    random forest log2 accuracy    97.44   97.51   -0.07 +- 0.15   met     97.44   97.50
    extra trees        loss       0.2807  0.2789 -0.0018 +- 0.0014 worse  0.2812  0.2791
    extra trees        accuracy    98.29   98.29   -0.00 +- 0.13   met     98.16   98.39
    adaboost           loss       2.2929  2.2929 +0.0000 +- 0.0000 met    2.2929  2.2929
    adaboost           accuracy    82.23   82.23   +0.00 +- 0.00   met     82.36   82.36
    adaboost deep      loss       2.2581  2.2581 +0.0001 +- 0.0001 met    2.2580  2.2583
    adaboost deep      accuracy    97.16   97.18   -0.02 +- 0.16   met     96.77   97.05
    gbdt               loss       0.1195  0.1188 -0.0007 +- 0.0013 met    0.1146  0.1159
    gbdt               accuracy    96.40   96.29   +0.11 +- 0.06   ahead   96.66   96.49
    stacking           loss       0.1470  0.1707 +0.0237 +- 0.0042 ahead  0.1491  0.1738
    stacking           accuracy    96.81   96.35   +0.46 +- 0.16   ahead   96.55   96.05

    binary                          ours    peer   ahead by                   first seed
    cart               loss      14.8019 14.7058 -0.0961 +- 0.2758 met   14.5616 14.8500
    cart               accuracy    58.93   59.20   -0.27 +- 0.77   met     59.60   58.80
    cart               auc        0.5898  0.5924 -0.0026 +- 0.0077 met    0.5971  0.5880
    bagging            loss       0.5333  0.5377 +0.0044 +- 0.0038 ahead  0.5333  0.5370
    bagging            accuracy    73.47   74.47   -1.00 +- 0.74   worse   73.20   73.60
    bagging            auc        0.8157  0.8088 +0.0069 +- 0.0046 ahead  0.8147  0.8090
    random forest      loss       0.5477  0.5480 +0.0003 +- 0.0030 met    0.5498  0.5536
    random forest      accuracy    74.47   73.60   +0.87 +- 0.96   met     74.40   74.00
    random forest      auc        0.8179  0.8161 +0.0018 +- 0.0066 met    0.8147  0.8059
    random forest log2 loss       0.5552  0.5548 -0.0004 +- 0.0026 met    0.5564  0.5572
    random forest log2 accuracy    73.13   74.07   -0.93 +- 1.04   met     73.00   74.00
    random forest log2 auc        0.8128  0.8159 -0.0031 +- 0.0056 met    0.8131  0.8102
    extra trees        loss       0.5970  0.5930 -0.0040 +- 0.0051 met    0.5982  0.6000
    extra trees        accuracy    69.20   70.20   -1.00 +- 1.20   met     69.40   70.60
    extra trees        auc        0.7698  0.7774 -0.0076 +- 0.0113 met    0.7642  0.7622
    adaboost           loss       0.6284  0.6284 +0.0000 +- 0.0000 met    0.6284  0.6284
    adaboost           accuracy    69.80   69.80   +0.00 +- 0.00   met     69.80   69.80
    adaboost           auc        0.7887  0.7887 +0.0000 +- 0.0000 met    0.7887  0.7887
    adaboost deep      loss       0.6400  0.6406 +0.0006 +- 0.0009 met    0.6412  0.6441
    adaboost deep      accuracy    72.27   72.07   +0.20 +- 0.56   met     71.80   71.40
    adaboost deep      auc        0.7992  0.8000 -0.0008 +- 0.0058 met    0.7945  0.7880
    gbdt               loss       0.5223  0.5223 -0.0000 +- 0.0000 met    0.5222  0.5223
    gbdt               accuracy    74.20   74.20   +0.00 +- 0.00   met     74.20   74.20
    gbdt               auc        0.8266  0.8266 -0.0000 +- 0.0001 met    0.8266  0.8265
    stacking           loss       0.5832  0.5837 +0.0005 +- 0.0015 met    0.5833  0.5842
    stacking           accuracy    68.33   66.73   +1.60 +- 0.43   ahead   68.20   67.80
    stacking           auc        0.7567  0.7563 +0.0004 +- 0.0026 met    0.7567  0.7555

    agaricus                        ours    peer   ahead by                   first seed
    cart               loss       0.0000  0.0000 -0.0000 +- 0.0000 met    0.0000  0.0000
    bagging            loss       0.0000  0.0000 -0.0000 +- 0.0000 met    0.0000  0.0000
    random forest      loss       0.0004  0.0002 -0.0002 +- 0.0000 worse  0.0004  0.0002
    random forest log2 loss       0.0005  0.0006 +0.0001 +- 0.0000 met    0.0005  0.0005
    extra trees        loss       0.0001  0.0001 -0.0000 +- 0.0000 met    0.0001  0.0000
    adaboost           loss       0.4852  0.4852 +0.0000 +- 0.0000 met    0.4852  0.4852
    adaboost deep      loss       0.1492  0.1492 -0.0000 +- 0.0000 met    0.1492  0.1492
    gbdt               loss       0.0006  0.0006 -0.0000 +- 0.0000 met    0.0006  0.0006
    stacking           loss       0.0009  0.0165 +0.0156 +- 0.0033 ahead  0.0008  0.0336

And of seed 0 alone, with the standard error over five folds,

    python -m experiments.trees.random_forest_small_tables \
        --tables digits --methods bagging --seeds 0

    digits                          ours    peer   ahead by                   first seed
    bagging            loss       0.2757  0.2755 -0.0001 +- 0.0031 met    0.2757  0.2755
    bagging            accuracy    94.94   95.21   -0.28 +- 0.18   worse   94.94   95.21

AdaBoost of stumps and, on continuous columns, boosting are scikit-learn's but for the last
digits. Where columns tie, both draw which one wins, level by level here and node by node
there. The forest's loss on agaricus hangs on a few rows and few draws: over ten other seeds
it is 0.0003 in both,

    python -m experiments.trees.random_forest_small_tables --tables agaricus \
        --methods random_forest --seeds 3 4 5 6 7 8 9 10 11 12

2 CPU cores, shared and busy, jax 0.10.2; the first three commands take 8, 12 and 2
CPU-minutes, both libraries and compilations together, without forests and extra trees on
digits, binary and agaricus, which ran apart.

Writes metrics.jsonl, results.json, table.txt (as above), for each table bars of the held-out
errors and a picture of all scores, and the regions of each ensemble on two half moons
(boundaries.png).

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
