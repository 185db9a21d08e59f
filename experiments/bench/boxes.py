"""Suppression of boxes and average precision: jaxml, torchvision, NumPy, pycocotools.

    python -m experiments.bench.boxes --torchvision <folder>

Greedy suppression at IoU 0.5 of many boxes, spread evenly or in clusters: all that are kept,
or the first thousand, which is what proposals are cut to; by class; and eight images at
once. The folder holds torchvision with its operators, see `torchvision_operators.py`; without
it the peer is the usual loop of NumPy, box by box with one vector of overlaps. Both peers
always find all, for they cannot stop early. Then COCO's twelve numbers of 1000 images with
100 detections each, from arrays of Python's and NumPy's, beside pycocotools from its own
dictionaries. Every row is checked: both keep the same boxes, or agree to 1e-9.

Rounds alternate, medians count; "core" is processor time, on all cores together. "jaxml is"
says how many times as fast as the peer on the clock. 2 CPU cores with nothing else to do,
jax 0.10.2, torchvision 0.28.0, pycocotools 2.0.11, seed 0, two minutes:

                             by              ms   core ms   jaxml is
    uniform    all           jaxml         27.2      37.5       1.0x
                             torchvision  298.9     298.9      11.0x
               first 1000    jaxml          3.3       3.6       1.0x
                             torchvision  255.6     255.6      78.0x
               80 classes    jaxml         13.5      23.3       1.0x
                             torchvision   23.6      23.5       1.8x
    clustered  all           jaxml          9.0      14.2       1.0x
                             torchvision   42.2      42.2       4.7x
               first 1000    jaxml          7.7      12.0       1.0x
                             torchvision   41.5      41.3       5.4x
               80 classes    jaxml         11.8      18.7       1.0x
                             torchvision   19.7      19.7       1.7x
    8 images, first 1000     8 images      13.3      18.4       1.0x
                             1 image        2.5       3.3       0.2x
    COCO AP, 1000 images     jaxml          457       457       1.0x
                             pycocotools  15734     15199      34.4x

The floor of the first row is the number of pairs: 6937 boxes are kept, and a box is
compared with all that were kept before it, 35 million pairs of a dozen operations. The clustered
899 do not fill the thousand, so that nothing can stop early there. torchvision compares as
many pairs, one at a time.
"""

import contextlib
import io
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.bench.torchvision_operators import load_operators
from jaxml.metrics import coco_average_precision
from jaxml.ops import batched_nms, nms

Run = Callable[[], Any]
THRESHOLD = 0.5


@dataclass(frozen=True)
class Config:
    """What is measured, and how often."""

    boxes: int = 10_000
    """Of an image, in suppression."""
    top: int = 1000
    """How many the short runs keep."""
    classes: int = 80
    """Of suppression by class, and of average precision."""
    images: int = 1000
    """Of average precision, with 100 detections each; 0 leaves it out."""
    rounds: int = 9
    """Repetitions, of which the median is taken."""
    torchvision: str = ""
    """Folder of a torchvision whose compiled operators load; empty: NumPy is the peer."""
    seed: int = 0
    """Of the boxes."""


SMOKE = Config(boxes=300, top=50, classes=3, images=10, rounds=1)


def main(config: Config) -> Mapping[str, float]:
    """Prints a table, and returns how many times as fast jaxml is, row by row."""
    rng = np.random.default_rng(config.seed)
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    print("| what | by | ms | core ms | jaxml is |\n|---|---|---|---|---|")
    ratios: dict[str, float] = {}
    peer_name, peer, peer_by_class = peers(config.torchvision)
    for kind, draw in (("uniform", uniform), ("clustered", clustered)):
        boxes, scores = draw(rng, config.boxes)
        labels = rng.integers(0, config.classes, config.boxes)
        for most in (config.boxes, config.top):
            runs = {
                "jaxml": suppression(boxes, scores, most),
                peer_name: partial(peer, boxes, scores),
            }
            check(runs, most)
            ratios |= report(f"{kind}, first {most}", runs, config.rounds)
        runs = {
            "jaxml": suppression(boxes, scores, config.boxes, labels),
            peer_name: partial(peer_by_class, boxes, scores, labels),
        }
        check(runs, config.boxes)
        ratios |= report(f"{kind}, {config.classes} classes", runs, config.rounds)
    eight = [uniform(rng, config.boxes) for _ in range(8)]
    runs = {
        "8 images": several(eight, config.top),
        "1 image": suppression(*eight[0], config.top),
    }
    ratios |= report(f"8 images, first {config.top}", runs, config.rounds)
    if config.images:
        detections, truths = scene(rng, config.images, config.classes)
        runs = evaluations(detections, truths, config.classes)
        values = [list(run().values()) for run in runs.values()]
        for other in values[1:]:
            np.testing.assert_allclose(values[0], other, rtol=0, atol=1e-9)
        name = f"COCO AP, {config.images} images"
        ratios |= report(name, runs, min(config.rounds, 3))
    return ratios


def uniform(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes anywhere in 1000 x 1000 pixels, 5 to 100 a side, and their scores."""
    corner, size = rng.uniform(0, 1000, (n, 2)), rng.uniform(5, 100, (n, 2))
    boxes = np.concatenate([corner, corner + size], axis=1)
    return boxes.astype(np.float32), distinct(rng, n)


def clustered(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes about 300 objects, as a detector finds them."""
    middle, size = rng.uniform(0, 1000, (300, 2)), rng.uniform(20, 120, (300, 2))
    of = rng.integers(0, 300, n)
    middle = middle[of] + 6 * rng.normal(size=(n, 2))
    half = size[of] * np.exp(0.15 * rng.normal(size=(n, 2))) / 2
    boxes = np.concatenate([middle - half, middle + half], axis=1)
    return boxes.astype(np.float32), distinct(rng, n)


def distinct(rng: np.random.Generator, n: int) -> np.ndarray:
    """Scores in (0, 1], no two equal."""
    return ((rng.permutation(n) + 1) / n).astype(np.float32)


def suppression(
    boxes: np.ndarray, scores: np.ndarray, most: int, labels: np.ndarray | None = None
) -> Run:
    """Of jaxml, compiled: the boxes that it keeps."""
    if labels is None:
        args = [jnp.asarray(x) for x in (boxes, scores)]
        keep = jax.jit(lambda b, s: nms(b, s, THRESHOLD, most))
    else:
        args = [jnp.asarray(x) for x in (boxes, scores, labels)]
        keep = jax.jit(lambda b, s, c: batched_nms(b, s, c, THRESHOLD, most))

    def run() -> np.ndarray:
        indices, valid = map(np.asarray, keep(*args))
        return indices[valid]

    return run


def several(images: list[tuple[np.ndarray, np.ndarray]], most: int) -> Run:
    """The same for images at once."""
    boxes, scores = (jnp.stack(x) for x in zip(*images, strict=True))
    keep = jax.jit(jax.vmap(lambda b, s: nms(b, s, THRESHOLD, most)))
    return lambda: jax.block_until_ready(keep(boxes, scores))


def peers(folder: str) -> tuple[str, Callable[..., Any], Callable[..., Any]]:
    """The name of the peer, its suppression, and that by class."""
    if not folder:
        return "NumPy", numpy_nms, partial(by_class, numpy_nms)
    import torch

    ops = load_operators(Path(folder))

    def keep(*arrays: np.ndarray) -> np.ndarray:
        tensors = [torch.from_numpy(x) for x in arrays]
        f = ops.nms if len(arrays) == 2 else ops.batched_nms
        return f(*tensors, THRESHOLD).numpy()

    return "torchvision", keep, keep


def numpy_nms(boxes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The usual loop: take the best, drop what overlaps it, again."""
    left, top, right, bottom = boxes.T
    area = (right - left) * (bottom - top)
    order, kept = np.argsort(-scores, kind="stable"), []
    while order.size:
        i, order = order[0], order[1:]
        kept.append(i)
        width = np.minimum(right[i], right[order]) - np.maximum(left[i], left[order])
        height = np.minimum(bottom[i], bottom[order]) - np.maximum(top[i], top[order])
        inter = np.maximum(width, 0) * np.maximum(height, 0)
        order = order[inter / (area[i] + area[order] - inter) <= THRESHOLD]
    return np.array(kept)


def by_class(
    keep: Callable[..., Any], boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """Class after class, and the kept ones by score."""
    parts = []
    for label in np.unique(labels):
        (mine,) = np.nonzero(labels == label)
        parts.append(mine[keep(boxes[mine], scores[mine])])
    kept = np.concatenate(parts)
    return kept[np.argsort(-scores[kept], kind="stable")]


def check(runs: Mapping[str, Run], most: int) -> None:
    """All must keep the same boxes in the same order."""
    first, *others = (np.asarray(run())[:most] for run in runs.values())
    for other in others:
        np.testing.assert_array_equal(first, other)


def scene(
    rng: np.random.Generator, images: int, classes: int
) -> tuple[list[dict[str, np.ndarray]], list[dict[str, np.ndarray]]]:
    """About 7 objects an image and 100 detections, most of them near an object."""
    detections, truths = [], []
    for _ in range(images):
        n = 1 + rng.poisson(6)
        size = np.exp(rng.uniform(np.log(8), np.log(300), (n, 2)))
        corner = rng.uniform(0, 640, (n, 2))
        boxes = np.round(4 * np.concatenate([corner, corner + size], 1)) / 4
        labels, of = rng.integers(0, classes, n), rng.integers(0, n, 100)
        side = np.tile(boxes[of, 2:] - boxes[of, :2], 2)
        noise = rng.normal(size=(100, 4)) * rng.choice([0.03, 0.1, 0.3], (100, 1))
        found = np.round(4 * (boxes[of] + side * noise)) / 4
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 0.25)
        other = rng.integers(0, classes, 100)
        detections.append(
            {
                "boxes": found,
                "scores": rng.random(100),
                "labels": np.where(rng.random(100) < 0.7, labels[of], other),
            }
        )
        crowd = rng.random(n) < 0.02
        truths.append({"boxes": boxes, "labels": labels, "is_crowd": crowd})
    return detections, truths


def evaluations(detections: Any, truths: Any, classes: int) -> dict[str, Run]:
    """The twelve numbers by jaxml, and by pycocotools if it is installed."""
    runs: dict[str, Run] = {
        "jaxml": lambda: (
            coco_average_precision(detections, truths, num_classes=classes).summary
        )
    }
    with contextlib.suppress(ImportError):
        runs["pycocotools"] = coco_run(detections, truths, classes)
    return runs


def coco_run(detections: Any, truths: Any, classes: int) -> Run:
    """From lists of dictionaries, as files of COCO are read."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def rows(images: Any) -> list[dict[str, Any]]:
        found = []
        for image, row in enumerate(images):
            for i, (left, top, right, bottom) in enumerate(row["boxes"].tolist()):
                entry = {
                    "id": len(found) + 1,
                    "image_id": image,
                    "category_id": int(row["labels"][i]),
                    "bbox": [left, top, right - left, bottom - top],
                    "area": (right - left) * (bottom - top),
                }
                if "scores" in row:
                    entry["score"] = float(row["scores"][i])
                else:
                    entry["iscrowd"] = int(row["is_crowd"][i])
                found.append(entry)
        return found

    real = COCO()
    real.dataset = {
        "info": {},
        "images": [{"id": i} for i in range(len(truths))],
        "categories": [{"id": c} for c in range(classes)],
        "annotations": rows(truths),
    }
    found = rows(detections)

    def run() -> dict[str, float]:
        with contextlib.redirect_stdout(io.StringIO()):
            real.createIndex()
            evaluation = COCOeval(real, real.loadRes(found), "bbox")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        values = np.where(evaluation.stats < 0, np.nan, evaluation.stats)
        return dict(enumerate(values))  # type: ignore[arg-type]

    return run


def report(what: str, runs: Mapping[str, Run], rounds: int) -> dict[str, float]:
    """Prints the rows of one comparison; returns the peer's time over that of the first."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for run in runs.values():
        run()  # compiles, warms up
    for _ in range(rounds):
        for name, run in runs.items():
            wall, core = time.perf_counter(), time.process_time()
            run()
            core = time.process_time() - core
            times[name].append((time.perf_counter() - wall, core))
    middle = {n: tuple(map(median, zip(*t, strict=True))) for n, t in times.items()}
    first, *_ = middle.values()
    ratios = {}
    for name, (wall, core) in middle.items():
        ratio = wall / first[0]
        if len(ratios) or name != next(iter(middle)):
            ratios[f"{what}: {name}"] = ratio
        print(
            f"| {what} | {name} | {1e3 * wall:.1f} | {1e3 * core:.1f} | {ratio:.2f}x |",
            flush=True,
        )
    return ratios


if __name__ == "__main__":
    main(tyro.cli(Config))
