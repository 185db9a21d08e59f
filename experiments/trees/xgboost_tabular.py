r"""XGBoost's accuracy on small tables, beside XGBoost itself where it is installed.

    python -m experiments.trees.xgboost_tabular --methods hist --tables diabetes breast_cancer
    python -m experiments.trees.xgboost_tabular --tables binary agaricus

5 folds of breast cancer, digits (both stratified) and diabetes, 100 trees, eta 0.1; from the data
folder also LightGBM's binary example (7,000 rows to train, 500 held out) and agaricus (6,513
and 1,611). What the commands above print, held out, means over seeds 0 to 2 where
there are folds:

    table          trees   library   cross-entropy   accuracy    AUC     root mean square
    diabetes       hist    jaxml                                             58.48
    diabetes       hist    XGBoost                                           58.66
    breast cancer  hist    jaxml        0.0999       96.25 %    0.9921
    breast cancer  hist    XGBoost      0.0992       96.31 %    0.9926
    binary         exact   jaxml        0.5070        74.4 %    0.8316
    binary         exact   XGBoost      0.5070        74.4 %    0.8316
    binary         hist    jaxml        0.5120        74.4 %    0.8264
    binary         hist    XGBoost      0.5130        74.4 %    0.8235
    agaricus       both    jaxml        0.00095        100 %    1.0000
    agaricus       both    XGBoost      0.00095        100 %    1.0000

2 CPU cores, shared and busy, jax 0.10.2; the second command takes 56 CPU-seconds, both
libraries and the compilations together. Digits have not been run.

Writes metrics.jsonl, results.json, a table (table.png) and bars of the losses (one picture
for each table).

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
