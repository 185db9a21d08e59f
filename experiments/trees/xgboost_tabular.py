r"""XGBoost's accuracy on small tables, beside XGBoost itself where it is installed.

    python -m experiments.trees.xgboost_tabular \
        --tables breast_cancer diabetes binary agaricus
    python -m experiments.trees.xgboost_tabular \
        --tables digits --methods hist hist_depth_4 gblinear

5 folds of breast cancer, digits (both stratified) and diabetes; from the data folder also
LightGBM's binary example (7,000 rows to train, 500 held out) and agaricus (6,513 and
1,611). 100 trees of depth 6 (3 for diabetes), eta 0.1; "exact depth 3" has 300 of them,
"hist depth 4" eta 0.3, "dart" drops a tenth in half of the rounds, "gblinear" is linear, eta
0.5. What the commands above print (accuracy in percent, the loss cross-entropy in nats),
held out, means over folds and seeds 0 to 2, beside XGBoost 3.2; `beside` says what the
verdicts mean, and the first seed is 0. Of agaricus only the loss is written here: every
accuracy is 100 %, every AUC 1.0000.

    breast cancer                   ours    peer   ahead by                   first seed
    exact              loss       0.1011  0.1011 +0.0001 +- 0.0001 met    0.0843  0.0843
    exact              accuracy    96.02   96.02   +0.00 +- 0.00   met     96.66   96.66
    exact              auc        0.9920  0.9919 +0.0001 +- 0.0001 met    0.9941  0.9941
    exact depth 3      loss       0.0960  0.0960 +0.0000 +- 0.0000 met    0.0856  0.0856
    exact depth 3      accuracy    96.60   96.60   +0.00 +- 0.00   met     97.54   97.54
    exact depth 3      auc        0.9933  0.9933 +0.0000 +- 0.0000 met    0.9943  0.9943
    hist               loss       0.0999  0.0992 -0.0007 +- 0.0022 met    0.0854  0.0800
    hist               accuracy    96.25   96.31   -0.06 +- 0.16   met     97.36   97.36
    hist               auc        0.9921  0.9926 -0.0005 +- 0.0004 worse  0.9941  0.9951
    hist depth 4       loss       0.0963  0.0946 -0.0016 +- 0.0025 met    0.0887  0.0842
    hist depth 4       accuracy    96.31   96.72   -0.41 +- 0.22   worse   97.19   97.54
    hist depth 4       auc        0.9931  0.9935 -0.0004 +- 0.0003 worse  0.9938  0.9945
    dart               loss       0.1051  0.1026 -0.0025 +- 0.0023 worse  0.0922  0.0861
    dart               accuracy    95.72   95.84   -0.12 +- 0.21   met     97.01   97.01
    dart               auc        0.9910  0.9918 -0.0008 +- 0.0003 worse  0.9927  0.9943
    gblinear           loss       0.1118  0.1118 -0.0000 +- 0.0000 met    0.1142  0.1142
    gblinear           accuracy    96.72   96.72   +0.00 +- 0.00   met     96.49   96.49
    gblinear           auc        0.9893  0.9893 +0.0000 +- 0.0000 met    0.9894  0.9894

    diabetes                        ours    peer   ahead by                   first seed
    exact              rmse        58.59   58.59   +0.00 +- 0.00   met     57.82   57.82
    exact depth 3      rmse        62.02   61.97   -0.05 +- 0.05   met     60.91   60.76
    hist               rmse        58.48   58.66   +0.17 +- 0.13   ahead   57.65   58.00
    hist depth 4       rmse        63.37   62.70   -0.67 +- 0.30   worse   63.10   61.88
    dart               rmse        57.73   57.85   +0.12 +- 0.17   met     57.13   57.34
    gblinear           rmse        54.97   54.97   -0.00 +- 0.00   met     54.51   54.51

    binary                          ours    peer   ahead by                   first seed
    exact              loss       0.5070  0.5070 -0.0000 +- 0.0000 met    0.5070  0.5070
    exact              accuracy    74.40   74.40   +0.00 +- 0.00   met     74.40   74.40
    exact              auc        0.8316  0.8316 +0.0000 +- 0.0000 met    0.8316  0.8316
    exact depth 3      loss       0.5077  0.5077 +0.0000 +- 0.0000 met    0.5077  0.5077
    exact depth 3      accuracy    74.00   74.00   +0.00 +- 0.00   met     74.00   74.00
    exact depth 3      auc        0.8306  0.8306 +0.0000 +- 0.0000 met    0.8306  0.8306
    hist               loss       0.5120  0.5130 +0.0010 +- 0.0015 met    0.5120  0.5130
    hist               accuracy    74.40   74.40   +0.00 +- 0.24   met     74.40   74.40
    hist               auc        0.8264  0.8235 +0.0029 +- 0.0013 ahead  0.8264  0.8235
    hist depth 4       loss       0.5072  0.5163 +0.0090 +- 0.0028 ahead  0.5072  0.5163
    hist depth 4       accuracy    74.40   75.00   -0.60 +- 0.50   worse   74.40   75.00
    hist depth 4       auc        0.8264  0.8227 +0.0037 +- 0.0021 ahead  0.8264  0.8227
    dart               loss       0.5132  0.5141 +0.0009 +- 0.0029 met    0.5185  0.5170
    dart               accuracy    74.87   75.00   -0.13 +- 0.85   met     74.20   74.00
    dart               auc        0.8260  0.8256 +0.0004 +- 0.0040 met    0.8193  0.8212
    gblinear           loss       0.6373  0.6373 -0.0000 +- 0.0000 met    0.6373  0.6373
    gblinear           accuracy    64.20   64.20   +0.00 +- 0.00   met     64.20   64.20
    gblinear           auc        0.6724  0.6724 +0.0000 +- 0.0000 met    0.6724  0.6724

    agaricus                        ours    peer   ahead by                   first seed
    exact              loss       0.0010  0.0010 +0.0000 +- 0.0000 met    0.0010  0.0010
    exact depth 3      loss       0.0006  0.0006 +0.0000 +- 0.0000 met    0.0006  0.0006
    hist               loss       0.0010  0.0010 -0.0000 +- 0.0000 met    0.0010  0.0010
    hist depth 4       loss       0.0005  0.0005 +0.0000 +- 0.0000 met    0.0005  0.0005
    dart               loss       0.0026  0.0022 -0.0005 +- 0.0001 worse  0.0024  0.0023
    gblinear           loss       0.0000  0.0000 +0.0000 +- 0.0000 met    0.0000  0.0000

    digits                          ours    peer   ahead by                   first seed
    hist               loss       0.1313  0.1314 +0.0000 +- 0.0000 met    0.1303  0.1303
    hist               accuracy    96.07   96.07   +0.00 +- 0.00   met     96.05   96.05
    hist depth 4       loss       0.1032  0.1032 -0.0000 +- 0.0000 met    0.1026  0.1026
    hist depth 4       accuracy    96.70   96.70   +0.00 +- 0.00   met     96.88   96.88
    gblinear           loss       0.3277  0.3277 -0.0000 +- 0.0001 met    0.2874  0.2873
    gblinear           accuracy    95.38   95.38   +0.00 +- 0.00   met     95.66   95.66

And of seed 0 alone, with the standard error over five folds,

    python -m experiments.trees.xgboost_tabular \
        --tables digits --methods exact exact_depth_3 dart --seeds 0

    digits                          ours    peer   ahead by                   first seed
    exact              loss       0.1304  0.1304 -0.0000 +- 0.0000 met    0.1304  0.1304
    exact              accuracy    96.10   96.10   +0.00 +- 0.00   met     96.10   96.10
    exact depth 3      loss       0.1003  0.1002 -0.0001 +- 0.0000 met    0.1003  0.1002
    exact depth 3      accuracy    96.77   96.77   +0.00 +- 0.00   met     96.77   96.77
    dart               loss       0.1855  0.1775 -0.0081 +- 0.0064 worse  0.1855  0.1775
    dart               accuracy    95.94   95.94   +0.00 +- 0.18   met     95.94   95.94

Exact trees and linear models are XGBoost's own, but for gains that agree to the last bits.
Binned ones have other cuts where a column has more than 256 values (here from a sort, there
from a sketch), and are worse and ahead by turns; on digits, where every value has its bin,
they agree. The trees that dart drops are drawn by another generator, three times on binary
and agaricus. 2 CPU cores, shared and busy, jax 0.10.2; 6.4, 1.3 and 5 CPU-minutes, both
libraries and compilations together.

Writes metrics.jsonl, results.json, table.txt (as above), for each table a picture of all
scores and bars of the held-out errors.

Reference: Chen and Guestrin, "XGBoost: A Scalable Tree Boosting System", KDD 2016,
https://arxiv.org/abs/1603.02754.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from experiments.trees.beside import compare
from experiments.trees.tables import CLASSES, Split
from jaxml import train
from jaxml.trees import xgboost

TABLES: dict[str, dict[str, Any]] = {
    "breast_cancer": {"objective": "binary:logistic"},
    "digits": {"objective": "multi:softprob", "num_class": 10, "max_bin": 32},
    "diabetes": {"objective": "reg:squarederror", "max_depth": 3},
    "binary": {"objective": "binary:logistic"},
    "agaricus": {"objective": "binary:logistic", "max_bin": 8},
}
"""Options of each table, beside XGBoost's defaults, depth 6 and eta 0.1."""
METHODS: dict[str, dict[str, Any]] = {
    "exact": {"tree_method": "exact"},
    "exact_depth_3": {"tree_method": "exact", "max_depth": 3, "num_boost_round": 300},
    "hist": {"tree_method": "hist"},
    "hist_depth_4": {"tree_method": "hist", "max_depth": 4, "eta": 0.3},
    "dart": {"booster": "dart", "rate_drop": 0.1, "skip_drop": 0.5},
    "gblinear": {"booster": "gblinear", "eta": 0.5},
}
"""What differs between the rows."""


@dataclass(frozen=True)
class Config:
    """Which tables, and how often."""

    tables: tuple[str, ...] = ("breast_cancer", "digits", "diabetes")
    """Of scikit-learn, or "binary" and "agaricus" of the folder of data."""
    methods: tuple[str, ...] = tuple(METHODS)
    """Boosters that are compared."""
    num_rounds: int = 100
    """Trees of every model and class, but 300 for "exact_depth_3"."""
    folds: int = 5
    """Parts of a table, each held out once."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the folds and draws."""
    data_dir: Path | None = None
    """Folder of the original files; by default the one JAXML_DATA_DIR names."""
    peers: bool = True
    """Whether to run XGBoost on the same folds."""
    out: Path = Path("runs/xgboost_tabular")
    """Where everything is written."""


SMOKE = Config(
    ("diabetes",), methods=("hist",), num_rounds=2, folds=2, seeds=(0,), peers=False
)


def main(config: Config) -> Mapping[str, float]:
    """Trains on all splits of all tables; returns mean held-out scores."""

    def options(table: str, method: str) -> dict[str, Any]:
        shared = {"max_depth": 6, "eta": 0.1, "num_boost_round": config.num_rounds}
        return {**shared, **TABLES[table], **METHODS[method]}

    def tell(fit: Any) -> Any:
        return lambda table, method, split, seed: shares(
            fit(split, options(table, method), seed), CLASSES[table]
        )

    libraries = {
        "jaxml": tell(ours),
        **({"XGBoost": tell(theirs)} if config.peers else {}),
    }
    rows = compare(train.Run(config.out, config), config, libraries)
    return {f"{row}_{k}": v for row, each in rows.items() for k, v in each.items()}


def shares(told: np.ndarray, classes: int) -> np.ndarray:
    """What a booster tells, with both of two classes."""
    return np.stack((1 - told, told), axis=1) if classes == 2 else told


def ours(split: Split, options: dict[str, Any], seed: int) -> np.ndarray:
    """Held-out predictions of jaxml."""
    x, y, held, _ = split
    model = xgboost.fit(x, y, xgboost.Config(**options), jax.random.key(seed))
    return np.asarray(xgboost.predict(model, held))


def theirs(split: Split, options: dict[str, Any], seed: int) -> np.ndarray:
    """Held-out predictions of XGBoost."""
    import xgboost as peer

    x, y, held, _ = split
    rounds = options["num_boost_round"]
    told = {name: value for name, value in options.items() if name != "num_boost_round"}
    if told.get("booster") == "gblinear":  # one column after the other, as ours
        told = {**told, "updater": "coord_descent"}
    told = {**told, "nthread": 1, "seed": seed, "verbosity": 0}
    booster = peer.train(told, peer.DMatrix(x, y), rounds)
    return booster.predict(peer.DMatrix(held))


if __name__ == "__main__":
    main(tyro.cli(Config))
