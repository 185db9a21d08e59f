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

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from experiments.trees.tables import CLASSES, LOWER, Split, judge, mean, splits
from jaxml import draw, train
from jaxml.trees import xgboost

OPTIONS: dict[str, dict[str, Any]] = {
    "breast_cancer": {"objective": "binary:logistic"},
    "digits": {"objective": "multi:softprob", "num_class": 10, "max_bin": 32},
    "diabetes": {"objective": "reg:squarederror", "max_depth": 3},
    "binary": {"objective": "binary:logistic"},
    "agaricus": {"objective": "binary:logistic", "max_bin": 8},
}


FOLDED = ("breast_cancer", "digits", "diabetes")
"""Tables without a split of their own."""
LOSS = ("rmse", "loss")
"""The score that the bars show, of numbers and of classes."""


@dataclass(frozen=True)
class Config:
    """Which tables, and how often."""

    tables: tuple[str, ...] = ("breast_cancer", "digits", "diabetes")
    """Of scikit-learn, or "binary" and "agaricus" of the folder of data."""
    methods: tuple[str, ...] = ("exact", "hist")
    """Tree methods that are compared."""
    num_rounds: int = 100
    """Trees of every model and class."""
    folds: int = 5
    """Parts of a table, each held out once."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the folds."""
    data_dir: Path | None = None
    """Folder of the original files; by default the one JAXML_DATA_DIR names."""
    peers: bool = True
    """Whether to run XGBoost, if it is installed."""
    out: Path = Path("runs/xgboost_tabular")
    """Where everything is written."""


SMOKE = Config(
    ("diabetes",), methods=("hist",), num_rounds=2, folds=2, seeds=(0,), peers=False
)


def main(config: Config) -> Mapping[str, float]:
    """Trains on all splits of all tables; returns mean held-out scores."""
    run = train.Run(config.out, config)
    rows: dict[str, dict[str, float]] = {}
    bars: dict[str, dict[str, list[float]]] = {}
    for table in config.tables:
        options = {"max_depth": 6, "eta": 0.1, **OPTIONS[table]}
        for method in config.methods:
            scores: dict[str, list[dict[str, float]]] = {}
            seeds = config.seeds if table in FOLDED else (0,)
            losses: dict[str, dict[int, list[float]]] = {}
            for seed, split in splits(table, config.folds, seeds, config.data_dir):
                told = {
                    "jaxml": ours(split, {**options, "tree_method": method}, config)
                }
                if config.peers:
                    told["XGBoost"] = theirs(
                        split, {**options, "tree_method": method}, config
                    )
                for name, p in told.items():
                    p = np.stack((1 - p, p), axis=1) if CLASSES[table] == 2 else p
                    scored = judge(p, split[3])
                    scores.setdefault(name, []).append(scored)
                    of_seed = losses.setdefault(name, {}).setdefault(seed, [])
                    of_seed.append(scored[LOSS[CLASSES[table] > 0]])
            for name, found in scores.items():
                row = rows[f"{table} {method} {name}"] = mean(found)
                run.log(
                    len(rows),
                    {f"{table}/{method}/{name}/{k}": v for k, v in row.items()},
                )
                line = ", ".join(f"{k} {v:.4f}" for k, v in row.items())
                print(f"{table} {method} {name}: {line}", flush=True)
                each = [float(np.mean(of)) for of in losses[name].values()]
                bars.setdefault(table, {})[f"{method}, {name}"] = each
    report(run.path, rows, bars)
    return {f"{row}_{k}": v for row, each in rows.items() for k, v in each.items()}


def report(
    path: Path,
    rows: Mapping[str, Mapping[str, float]],
    bars: Mapping[str, Mapping[str, list[float]]],
) -> None:
    """Writes results and pictures."""
    (path / "results.json").write_text(json.dumps(rows, indent=2) + "\n")
    measures = {name for row in rows.values() for name in row}
    draw.save_table(
        path / "table.png",
        {name.replace("_", " "): row for name, row in rows.items()},
        title="Held out",
        lower_is_better=tuple(sorted(measures & set(LOWER))),
    )
    for table, values in bars.items():
        draw.save_bars(
            path / f"{table}.png",
            values,
            title=f"{table.replace('_', ' ').capitalize()}, held out",
            xlabel="cross-entropy, nats" if CLASSES[table] else "root mean square",
            highlight=[name for name in values if "jaxml" in name],
        )


def ours(split: Split, options: dict[str, Any], config: Config) -> np.ndarray:
    """Held-out predictions of jaxml."""
    x, y, held, _ = split
    settings = xgboost.Config(num_boost_round=config.num_rounds, **options)
    model = xgboost.fit(x, y, settings, jax.random.key(0))
    return np.asarray(xgboost.predict(model, held))


def theirs(split: Split, options: dict[str, Any], config: Config) -> np.ndarray:
    """Held-out predictions of XGBoost."""
    import xgboost as peer

    x, y, held, _ = split
    data = peer.DMatrix(x, y)
    booster = peer.train({**options, "nthread": 1}, data, config.num_rounds)
    return booster.predict(peer.DMatrix(held))


if __name__ == "__main__":
    main(tyro.cli(Config))
