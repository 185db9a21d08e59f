r"""XGBoost's accuracy on small tables, beside XGBoost itself where it is installed.

    python -m experiments.trees.xgboost_tabular --methods hist \
        --tables diabetes breast_cancer binary --data DATA

5 folds of breast cancer, digits (both stratified) and diabetes, 100 trees, eta 0.1; with
`--data` also LightGBM's binary example (7,000 rows to train, 500 held out) and agaricus.
What the command above prints, held out, CPU, means over seeds 0 to 2 where there are folds:

    table           library   cross-entropy   accuracy    AUC     root mean square
    diabetes        jaxml                                              58.48
    diabetes        XGBoost                                            58.66
    breast cancer   jaxml        0.0999       96.25 %    0.9921
    breast cancer   XGBoost      0.0992       96.31 %    0.9926
    binary          jaxml        0.5120        74.4 %    0.8264
    binary          XGBoost      0.5130        74.4 %    0.8235

Writes metrics.jsonl, results.json and a table (table.png).

Reference: Chen and Guestrin, "XGBoost: A Scalable Tree Boosting System", KDD 2016,
https://arxiv.org/abs/1603.02754.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import sklearn.datasets
import tyro
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.model_selection import KFold, StratifiedKFold

from jaxml import draw, train
from jaxml.trees import xgboost

OPTIONS: dict[str, dict[str, Any]] = {
    "breast_cancer": {"objective": "binary:logistic"},
    "digits": {"objective": "multi:softprob", "num_class": 10, "max_bin": 32},
    "diabetes": {"objective": "reg:squarederror", "max_depth": 3},
    "binary": {"objective": "binary:logistic"},
    "agaricus": {"objective": "binary:logistic", "max_bin": 8},
}


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
    data: Path | None = None
    """Folder with tabular_lightgbm/ and agaricus/."""
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
    for table in config.tables:
        options = {"max_depth": 6, "eta": 0.1, **OPTIONS[table]}
        for method in config.methods:
            scores: dict[str, list[dict[str, float]]] = {}
            for split in splits(table, config):
                told = {
                    "jaxml": ours(split, {**options, "tree_method": method}, config)
                }
                if config.peers:
                    told["XGBoost"] = theirs(
                        split, {**options, "tree_method": method}, config
                    )
                for name, p in told.items():
                    scores.setdefault(name, []).append(judge(p, split[3]))
            for name, found in scores.items():
                mean = {k: float(np.mean([s[k] for s in found])) for k in found[0]}
                rows[f"{table} {method} {name}"] = mean
                run.log(
                    len(rows),
                    {f"{table}/{method}/{name}/{k}": v for k, v in mean.items()},
                )
                line = ", ".join(f"{k} {v:.4f}" for k, v in mean.items())
                print(f"{table} {method} {name}: {line}", flush=True)
    (run.path / "results.json").write_text(json.dumps(rows, indent=2) + "\n")
    measures = {name for row in rows.values() for name in row}
    draw.save_table(
        run.path / "table.png",
        rows,
        title="Held out",
        lower_is_better=tuple(sorted(measures & {"loss", "rmse"})),
    )
    return {f"{row}_{k}": v for row, each in rows.items() for k, v in each.items()}


Split = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def splits(table: str, config: Config) -> Iterator[Split]:
    """(x, y, held-out x, held-out y) of every seed and fold, or of the two files."""
    if table in ("binary", "agaricus"):
        if config.data is None:
            raise ValueError(f"{table} needs --data, the folder of its files")
        yield from_files(table, config.data)
        return
    x, y = getattr(sklearn.datasets, f"load_{table}")(return_X_y=True)
    x, y = x.astype(np.float32), y.astype(np.float32)
    for seed in config.seeds:
        kind = KFold if table == "diabetes" else StratifiedKFold
        folds = kind(config.folds, shuffle=True, random_state=seed)
        for inside, outside in folds.split(x, y):
            yield x[inside], y[inside], x[outside], y[outside]


def from_files(table: str, folder: Path) -> Split:
    """The two files of a table with a split of its own."""
    if table == "binary":
        parts = [
            np.loadtxt(folder / "tabular_lightgbm" / f"binary.{part}", dtype=np.float32)
            for part in ("train", "test")
        ]
        return (parts[0][:, 1:], parts[0][:, 0], parts[1][:, 1:], parts[1][:, 0])
    parts = [
        sklearn.datasets.load_svmlight_file(
            str(folder / "agaricus" / f"agaricus.txt.{part}"), n_features=127
        )
        for part in ("train", "test")
    ]
    (x, y), (held, label) = parts
    dense = [m.toarray().astype(np.float32) for m in (x, held)]
    return dense[0], y.astype(np.float32), dense[1], label.astype(np.float32)


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


def judge(p: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Cross-entropy in nats and accuracy, or the root of the mean squared error."""
    if p.ndim == 2:
        loss = log_loss(y, p.astype(np.float64), labels=range(p.shape[1]))
        return {"loss": float(loss), "accuracy": float((p.argmax(1) == y).mean())}
    if set(np.unique(y)) == {0.0, 1.0}:
        return {
            "loss": float(log_loss(y, np.clip(p.astype(np.float64), 1e-7, 1 - 1e-7))),
            "accuracy": float(((p > 0.5) == y).mean()),
            "auc": float(roc_auc_score(y, p)),
        }
    return {"rmse": float(np.sqrt(np.mean((p - y) ** 2)))}


if __name__ == "__main__":
    main(tyro.cli(Config))
