"""How the experiments of this family are judged: frozen features, simple classifiers.

The features of the **last** step are frozen; nothing was selected on the test split. Two
classifiers read them: the weighted vote of the nearest neighbours among all training
samples, and a linear probe that knows only a few labels per class, its regularisation
chosen on held-out training samples. Beside the trained encoder stand the raw pixels and
the same encoder before training: what a method is worth is what it adds to those.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxml import draw
from jaxml.method import Batch, Method
from jaxml.metrics import few_labels, knn_probe, linear_probe
from jaxml.ops.augment import to_float
from jaxml.train import TrainState, predict
from jaxml.train.log import interactive

Split = Mapping[str, np.ndarray]
Results = dict[str, float]


def judge(
    encoders: Mapping[str, tuple[Method, TrainState]],
    train: Split,
    test: Split,
    *,
    labels_per_class: int,
    seed: int,
    batch_size: int = 500,
) -> Results:
    """Accuracies of the pixels and of every encoder, as `<what>/<classifier>`."""
    features = {"pixels": (_pixels(train), _pixels(test))}
    for name, (method, state) in encoders.items():
        features[name] = (
            embed(method, state, train, batch_size),
            embed(method, state, test, batch_size),
        )
    few = few_labels(train["label"], labels_per_class, jax.random.key(seed))
    results = {}
    for name, (known, asked) in features.items():
        results[f"{name}/knn"] = knn_probe(
            known, train["label"], asked, test["label"], k=min(200, len(known))
        )
        results[f"{name}/linear_{labels_per_class}"] = linear_probe(
            known[few], train["label"][few], asked, test["label"]
        )
    return {name: float(value) for name, value in results.items()}


def embed(
    method: Method, state: TrainState, split: Split, batch_size: int = 500
) -> np.ndarray:
    """The features of a whole split, in order."""
    return predict(method, state, _slices(split, batch_size))


def _slices(split: Split, size: int) -> Iterable[Batch]:
    for i in range(0, len(split["image"]), size):
        yield {"image": split["image"][i : i + size]}


def _pixels(split: Split) -> np.ndarray:
    images = np.asarray(to_float(split["image"]))
    return images.reshape(len(images), -1)


def over_seeds(
    config: Any, train: Callable[[Any], Results], num_seeds: int
) -> Mapping[str, float]:
    """Runs `train` for consecutive seeds, prints and writes mean and spread.

    With one seed the run lies in `config.out` itself, with several in folders below it.
    """
    if num_seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {num_seeds}")
    runs = [config]
    if num_seeds > 1:
        runs = [
            replace(config, seed=config.seed + i, out=config.out / f"seed{i}")
            for i in range(num_seeds)
        ]
    rows = [train(run) for run in runs]
    results = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    show(rows)
    write_json(config.out / "results.json", {"mean": results, "seeds": rows})
    return results


def show(rows: list[Results]) -> None:
    """Prints one line per encoder: accuracies in percent, mean (lowest to highest)."""
    names = dict.fromkeys(name.partition("/")[0] for name in rows[0])
    columns = dict.fromkeys(name.partition("/")[2] for name in rows[0])
    print("\naccuracy on the test split, %")
    print(f"{'':<12}" + "".join(f"{column:>22}" for column in columns))
    for name in names:
        cells = []
        for column in columns:
            values = [100 * row[f"{name}/{column}"] for row in rows]
            spread = (
                f" ({min(values):.1f} to {max(values):.1f})" if len(rows) > 1 else ""
            )
            cells.append(f"{np.mean(values):.1f}{spread}")
        print(f"{name:<12}" + "".join(f"{cell:>22}" for cell in cells))


def picture_views(path: Path, views: Callable[..., Any], images: np.ndarray) -> None:
    """An augmentation sheet: each row an image and the views drawn of it."""
    keys = jax.random.split(jax.random.key(0), (4, len(images)))
    images = to_float(images)
    drawn = [jax.vmap(views)(row, images) for row in keys]
    columns = [images] + [np.asarray(view) for d in drawn for view in d.values()]
    sheet = np.stack([np.asarray(c) for c in columns], axis=1)
    draw.save_image_sheet(
        path, sheet.reshape(-1, *sheet.shape[2:]), columns=sheet.shape[1]
    )


def write_json(path: Path, value: Any) -> None:
    """Writes readable JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n")
