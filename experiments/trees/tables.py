"""Tables of numbers that experiments with trees share: splits of them, and scores.

Five tables: breast cancer, digits and diabetes of scikit-learn, cross-validated, and
LightGBM's binary example and agaricus, which come as two files each.

Reference: Pedregosa et al., "Scikit-learn: Machine Learning in Python", JMLR 2011,
https://arxiv.org/abs/1201.0490.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import sklearn.datasets
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.model_selection import KFold, StratifiedKFold

from jaxml.data.catalog import data_folder

Split = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""(x, y, held-out x, held-out y), the features as float32."""
CLASSES = {"breast_cancer": 2, "digits": 10, "diabetes": 0, "binary": 2, "agaricus": 2}
"""Of the labels of each table, 0 for numbers."""
FOLDERS = {"binary": "tabular_lightgbm", "agaricus": "agaricus"}
"""Where tables lie that are files."""
Scores = dict[str, float]
"""What `judge` tells."""
LOWER = ("loss", "rmse")
"""Scores that are better when they are lower."""


def splits(
    table: str, folds: int, seeds: Sequence[int], data_dir: Path | None = None
) -> Iterator[tuple[int, Split]]:
    """The seed and the split of every fold; of two files only one of each seed.

    Raises:
        ValueError: if the table is unknown, or one of files whose folder is not there.
    """
    if table not in CLASSES:
        raise ValueError(f"table must be one of {sorted(CLASSES)}, got {table!r}")
    if table in FOLDERS:
        folder = (data_folder(data_dir) or Path()) / FOLDERS[table]
        if not folder.is_dir():
            raise ValueError(
                f"{table} needs the folder {FOLDERS[table]} in --data-dir or "
                f"JAXML_DATA_DIR, got {folder}"
            )
        split = _from_files(table, folder)
        yield from ((seed, split) for seed in seeds)
        return
    x, y = getattr(sklearn.datasets, f"load_{table}")(return_X_y=True)
    x, y = x.astype(np.float32), y.astype(np.float32)
    for seed in seeds:
        kind = StratifiedKFold if CLASSES[table] else KFold
        parts = kind(folds, shuffle=True, random_state=seed)
        for inside, outside in parts.split(x, y):
            yield seed, (x[inside], y[inside], x[outside], y[outside])


def _from_files(table: str, folder: Path) -> Split:
    if table == "binary":
        parts = [
            np.loadtxt(folder / f"binary.{part}", dtype=np.float32)
            for part in ("train", "test")
        ]
        return (parts[0][:, 1:], parts[0][:, 0], parts[1][:, 1:], parts[1][:, 0])
    parts = [
        sklearn.datasets.load_svmlight_file(
            str(folder / f"agaricus.txt.{part}"), n_features=127
        )
        for part in ("train", "test")
    ]
    (x, y), (held, label) = parts
    dense = [m.toarray().astype(np.float32) for m in (x, held)]
    return dense[0], y.astype(np.float32), dense[1], label.astype(np.float32)


def parts(y: np.ndarray, number: int) -> list[np.ndarray]:
    """The positions of held-out rows in so many parts of the same mix of classes."""
    folds = StratifiedKFold(number, shuffle=True, random_state=0)
    return [part for _, part in folds.split(y, y)]


def judge(told: np.ndarray, y: np.ndarray) -> Scores:
    """Scores of predictions: class shares [rows, classes], or numbers [rows].

    Returns:
        Cross-entropy in nats, accuracy, and of two classes the area under the ROC curve;
        or the root of the mean squared error.
    """
    told = np.asarray(told, np.float64)
    if told.ndim == 1:
        return {"rmse": float(np.sqrt(np.mean((told - y) ** 2)))}
    share = told / told.sum(axis=1, keepdims=True)
    scores = {
        "loss": float(log_loss(y, share, labels=range(share.shape[1]))),
        "accuracy": float((share.argmax(axis=1) == y).mean()),
    }
    if share.shape[1] == 2:
        scores["auc"] = float(roc_auc_score(y, share[:, 1]))
    return scores


def mean(scores: Sequence[Scores]) -> Scores:
    """The mean of each score."""
    return {name: float(np.mean([s[name] for s in scores])) for name in scores[0]}
