"""How the experiments of this family train and are judged: one protocol for all methods.

The features of the **last** step are frozen; nothing was selected on the test split. Two
classifiers read them: the weighted vote of the nearest neighbours among all training
samples, and a linear probe that knows only a few labels per class, its regularisation
chosen on held-out training samples. Beside the trained encoder stand the raw pixels and
the same encoder before training: what a method is worth is what it adds to those.

During training the monitors of `jaxml.metrics` watch the features, and `fit` says what they
find. With them goes a vote of neighbours among training samples alone: it tells how learning
goes, and nothing is chosen by it.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from jaxml import data, draw, ops, parallel, train
from jaxml.method import Batch, Method
from jaxml.metrics import collapse_metrics, few_labels, knn_probe, linear_probe
from jaxml.ops import to_float, unit
from jaxml.ops.views import Views
from jaxml.typing import Array, Float, PRNGKeyArray

Split = Mapping[str, np.ndarray]
Results = dict[str, float]
Pictures = Callable[[Path, train.TrainState, Split], object]
"""Draws into a folder what is a method's own, given the last state and the test split."""
MAY_CHANGE = ("out", "seeds", "save_every", "data_dir", "distributed")
"""Fields of a configuration that do not change what a run computes."""


def garment_view(
    key: PRNGKeyArray, image: Float[Array, "height width 1"]
) -> Float[Array, "height width 1"]:
    """A view for Fashion-MNIST: small gray pictures, which may also face the other way.

    Crops as small as those for photographs cut away what tells the classes apart.
    """
    flip_key, view_key = jax.random.split(key)
    return ops.digit_view(view_key, ops.random_horizontal_flip(flip_key, image))


def run_seeds(config: Any, run_one: Callable[[Any], Results]) -> Mapping[str, float]:
    """Runs consecutive seeds; prints, writes and returns the accuracies.

    With one seed the run lies in `config.out` itself, with several in folders below it.

    Returns:
        Means over the seeds as `<features>/<classifier>`.
    """
    if config.seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {config.seeds}")
    parallel.initialize(config.distributed)
    configs = [config]
    if config.seeds > 1:
        configs = [
            replace(config, seed=config.seed + i, out=config.out / f"seed{i}")
            for i in range(config.seeds)
        ]
    rows = [run_one(c) for c in configs]
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    if jax.process_index() == 0:
        print(table(rows))
        text = json.dumps({"mean": means, "seeds": rows}, indent=2)
        (config.out / "results.json").write_text(text + "\n")
        print(f"\npictures and reports: {config.out}")
    return means


def pretrain(
    config: Any,
    *,
    dataset: str,
    method: Method,
    views: Views,
    optimizer: optax.GradientTransformation,
    with_index: bool = False,
    pictures: Pictures | None = None,
) -> Results:
    """Trains one seed (or continues it), judges it, and draws its pictures.

    `with_index` tells the method each sample's place in the split, for a memory bank.
    """
    source = {"name": dataset, "data_dir": config.data_dir}
    train_split = data.load_arrays(split="train", **source)
    test_split = data.load_arrays(split="test", **source)
    batches = data.load(
        split="train",
        batch_size=config.batch_size,
        seed=config.seed,
        with_index=with_index,
        **source,
    )
    run = train.Run(config.out, config, ignore=MAY_CHANGE)
    mesh = parallel.data_mesh()
    init_key, run_key = jax.random.split(jax.random.key(config.seed))
    state = train.init_state(method, optimizer, init_key, next(iter(batches)))
    state = parallel.replicate(state, mesh)
    judged = partial(judge, config, method, train_split, test_split)
    results = judged("pixels", None) | judged("untrained", state)
    step = train.gradient_step(method, optimizer, run_key, "data")
    watched = _first(train_split, 1500)
    state = train.fit(
        parallel.data_parallel(step, mesh),
        state,
        batches,
        config.num_steps,
        run=run,
        save_every=config.save_every,
        evaluate=lambda state: monitor(embed(method, state, watched), watched["label"]),
        evaluate_every=max(config.num_steps // 4, 1),
    )
    results |= judged("trained", state)
    known, asked = (_first(split, 2000) for split in (train_split, test_split))
    near, far = embed(method, state, known), embed(method, state, asked)
    if jax.process_index() == 0:
        labels = asked["label"]
        draw.save_embedding(run.path / "embedding.png", far, labels, method="tsne")
        picture_views(run.path / "views.png", views, train_split["image"][:8])
        if pictures is not None:
            pictures(run.path, jax.device_get(state), test_split)
        picture_neighbours(
            run.path / "neighbours.png", near, known["image"], far[:8], asked["image"]
        )
    return results


def monitor(features: np.ndarray, labels: np.ndarray) -> Mapping[str, float]:
    """The state of features, for `jaxml.metrics.diagnose`, and the neighbours' vote.

    Two thirds of the samples vote on the others.
    """
    cut = len(features) * 2 // 3
    vote = knn_probe(
        features[:cut], labels[:cut], features[cut:], labels[cut:], k=min(20, cut)
    )
    values = {**collapse_metrics(features), "online_knn": vote}
    return {name: float(value) for name, value in values.items()}


def judge(
    config: Any,
    method: Method,
    train_split: Split,
    test_split: Split,
    name: str,
    state: train.TrainState | None,
) -> Results:
    """Accuracies of the features of `state`, or of the pixels where it is None."""
    if state is None:
        known, asked = _pixels(train_split), _pixels(test_split)
    else:
        known, asked = (embed(method, state, s) for s in (train_split, test_split))
    labels, answers = train_split["label"], test_split["label"]
    few = few_labels(labels, config.labels_per_class, jax.random.key(config.seed))
    scores = {
        "knn": knn_probe(known, labels, asked, answers, k=config.neighbours),
        f"linear_{config.labels_per_class}": linear_probe(
            known[few], labels[few], asked, answers
        ),
    }
    return {f"{name}/{probe}": float(score) for probe, score in scores.items()}


def embed(method: Method, state: train.TrainState, split: Split) -> np.ndarray:
    """The features of a whole split, in order."""
    return train.predict(method, state, _slices(split["image"]))


def _slices(images: np.ndarray, size: int = 500) -> Iterable[Batch]:
    for i in range(0, len(images), size):
        yield {"image": images[i : i + size]}


def _first(split: Split, count: int) -> Split:
    return {name: array[:count] for name, array in split.items()}


def _pixels(split: Split) -> np.ndarray:
    images = np.asarray(to_float(split["image"]))
    return images.reshape(len(images), -1)


def table(rows: list[Results]) -> str:
    """One line for each kind of features, in percent: mean (lowest to highest)."""
    names = dict.fromkeys(name.partition("/")[0] for name in rows[0])
    probes = dict.fromkeys(name.partition("/")[2] for name in rows[0])
    lines = [
        "\naccuracy on the test split, %",
        f"{'':<10}" + "".join(f"{probe:>24}" for probe in probes),
    ]
    for name in names:
        cells = []
        for probe in probes:
            values = [100 * row[f"{name}/{probe}"] for row in rows]
            spread = f" ({min(values):.1f} to {max(values):.1f})"
            cells.append(f"{np.mean(values):.1f}" + spread * (len(rows) > 1))
        lines.append(f"{name:<10}" + "".join(f"{cell:>24}" for cell in cells))
    return "\n".join(lines)


def picture_views(path: Path, views: Views, images: np.ndarray) -> None:
    """An augmentation sheet: each row an image and what views were drawn of it."""
    images = to_float(images)
    keys = jax.random.split(jax.random.key(0), (4, len(images)))
    drawn = [jax.vmap(views)(row, images) for row in keys]
    crops = [_as_images(v, images) for d in drawn for v in d.values() if _is_image(v)]
    rows = np.concatenate([images[:, None], *crops], axis=1)
    sheet = rows.reshape(-1, *rows.shape[2:])
    draw.save_image_sheet(path, sheet, columns=rows.shape[1])


def picture_neighbours(
    path: Path, known: np.ndarray, images: np.ndarray, asked: np.ndarray, of: np.ndarray
) -> None:
    """Each row an image and those whose features point its way, the nearest first."""
    nearest = np.argsort(-np.asarray(unit(asked)) @ np.asarray(unit(known)).T)[:, :8]
    rows = np.stack([[of[i], *images[row]] for i, row in enumerate(nearest)])
    sheet = np.asarray(to_float(rows.reshape(-1, *rows.shape[2:])))
    ranks = [f"nearest {i + 1}" for i in range(nearest.shape[1])]
    draw.save_image_sheet(path, sheet, column_titles=["image", *ranks])


def _is_image(view: jax.Array) -> bool:
    return view.ndim >= 4 and view.shape[-1] in (1, 3)


def _as_images(view: jax.Array, images: jax.Array) -> np.ndarray:
    """One view, or several crops, as [batch, views, ...] of the size of the images."""
    crops = view.reshape(len(view), -1, *view.shape[-3:])
    shape = (*crops.shape[:2], *images.shape[1:3], view.shape[-1])
    resized = np.asarray(jax.image.resize(crops, shape, "nearest")).clip(0, 1)
    return np.broadcast_to(resized, (*shape[:-1], images.shape[-1]))
