"""The boxes of many images in one array, as evaluators want them.

Rows are sorted by image and class, so that those of one image and class are neighbours,
and the detections among them by score, the highest first, ties as they stood. Overlaps are
computed in float64 for just the pairs of one image and class.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Flat:
    """Boxes of all images.

    Attributes:
        boxes: [n, 4] xyxy pixels; with masks all zeros.
        labels: [n].
        group: [n], rising: one number for each image and class.
        scores: [n], detections only.
        rank: [n], position within the image and class.
        area: [n] square pixels.
        crowd: [n], objects only.
        ignored: [n], objects only.
        image: [n].
        masks: of each image, [boxes, pixels], or None.
        row: [n], which one of its image.
    """

    boxes: np.ndarray
    labels: np.ndarray
    group: np.ndarray
    scores: np.ndarray
    rank: np.ndarray
    area: np.ndarray
    crowd: np.ndarray
    ignored: np.ndarray
    image: np.ndarray
    masks: list[np.ndarray] | None
    row: np.ndarray

    def __getitem__(self, index: np.ndarray) -> "Flat":
        """Some of the rows."""
        whole = ("masks",)
        parts = {k: v if k in whole else v[index] for k, v in vars(self).items()}
        return Flat(**parts)

    def best(self, most: int) -> "Flat":
        """At most so many of each image and class."""
        return self[self.rank < most]

    def pairs(self, real: "Flat") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Numbers of a detection and of an object of its image and class, and their IoU.

        Of a crowd it is the intersection over the area of the detection.
        """
        low = np.searchsorted(real.group, self.group, "left")
        number = np.searchsorted(real.group, self.group, "right") - low
        detection = np.repeat(np.arange(len(number)), number)
        first = np.cumsum(number) - number
        thing = np.arange(number.sum()) + np.repeat(low - first, number)
        inter = self._intersections(real, detection, thing)
        own = self._own_area()[detection]
        union = own + real._own_area()[thing] - inter
        whole = np.where(real.crowd[thing], own, union)
        iou = np.divide(inter, whole, out=np.zeros_like(inter), where=inter > 0)
        return detection, thing, iou

    def _own_area(self) -> np.ndarray:
        """Of the box or the mask, which need not be what the ranges go by."""
        if self.masks is None:
            return (self.boxes[:, 2] - self.boxes[:, 0]) * (
                self.boxes[:, 3] - self.boxes[:, 1]
            )
        sizes = [mask.sum(axis=1, dtype=float) for mask in self.masks]
        start = np.cumsum([0, *map(len, sizes)])
        return np.concatenate([*sizes, []])[start[self.image] + self.row]

    def _intersections(
        self, real: "Flat", detection: np.ndarray, thing: np.ndarray
    ) -> np.ndarray:
        if self.masks is None or real.masks is None:
            a, b = self.boxes[detection].T, real.boxes[thing].T
            width = np.minimum(a[2], b[2]) - np.maximum(a[0], b[0])
            height = np.minimum(a[3], b[3]) - np.maximum(a[1], b[1])
            return np.maximum(width, 0) * np.maximum(height, 0)
        inter = np.zeros(len(detection))
        image = self.image[detection]
        bounds = np.searchsorted(image, np.arange(len(self.masks) + 1))
        for i, (mine, others) in enumerate(zip(self.masks, real.masks, strict=True)):
            part = slice(bounds[i], bounds[i + 1])
            if bounds[i] < bounds[i + 1]:
                # Counts up to 2**24 are exact in float32.
                both = mine.astype(np.float32) @ others.astype(np.float32).T
                inter[part] = both[self.row[detection[part]], real.row[thing[part]]]
        return inter


def flat_boxes(
    detections: Sequence[Mapping[str, Any]],
    truths: Sequence[Mapping[str, Any]],
    num_classes: int | None,
    use_masks: bool = False,
) -> tuple[Flat, Flat, int]:
    """The detections, the objects, and the number of classes.

    Raises:
        ValueError: as `coco_average_precision` says.
    """
    if len(detections) != len(truths):
        raise ValueError(
            "detections and truths must have one entry for each image, "
            f"got {len(detections)} and {len(truths)}"
        )
    found = _gather("detections", detections, use_masks, ("scores",))
    real = _gather("truths", truths, use_masks, ("area", "is_crowd", "is_ignored"))
    labels = np.concatenate([found["labels"], real["labels"]])
    classes = num_classes or int(labels.max(initial=0)) + 1
    if len(labels) and not (labels.min() >= 0 and labels.max() < classes):
        raise ValueError(
            f"labels must be in [0, {classes}), got {labels.min()} to {labels.max()}"
        )
    if use_masks:
        for i, (mine, others) in enumerate(
            zip(found["masks"], real["masks"], strict=True)
        ):
            if len(mine) and len(others) and mine.shape[1] != others.shape[1]:
                raise ValueError(f"the masks of image {i} must have one size")
    return _flat(found, classes), _flat(real, classes), classes


def _gather(
    what: str,
    images: Sequence[Mapping[str, Any]],
    use_masks: bool,
    extra: Sequence[str],
) -> dict[str, Any]:
    """All images in one array each, padding left out."""
    needed = ["masks" if use_masks else "boxes", "labels"]
    needed += ["scores"] if "scores" in extra else []
    columns: dict[str, list[np.ndarray]] = {}
    for i, image in enumerate(images):
        missing = [name for name in needed if name not in image]
        if missing:
            raise ValueError(f"{what} must have {missing[0]}, image {i} has none")
        row = {name: np.asarray(image[name]) for name in needed}
        n = len(row["labels"])
        for name in extra:
            if name in image and image[name] is not None:
                row[name] = np.asarray(image[name])
        for name, value in row.items():
            wanted = (n, 4) if name == "boxes" else (n,)
            is_fitting = value.ndim == 3 if name == "masks" else value.shape == wanted
            if not (is_fitting or value.size == n == 0) or len(value) != n:
                raise ValueError(
                    f"{name} of image {i} of {what} must be of {n} boxes, as labels "
                    f"are, got shape {value.shape}"
                )
        keep = np.asarray(image.get("mask", np.ones(n)), bool)
        if use_masks:
            pixels = int(np.prod(row["masks"].shape[1:]))
            row["masks"] = row["masks"].reshape(n, pixels).astype(bool)
            row["boxes"] = np.zeros((n, 4))
        row["boxes"] = row["boxes"].reshape(n, 4)
        for name in extra:
            row.setdefault(name, np.full(n, np.nan if name == "area" else 0.0))
        row["image"] = np.full(n, i)
        for name, value in row.items():
            columns.setdefault(name, []).append(value if keep.all() else value[keep])
    found: dict[str, Any] = {
        name: values if name == "masks" else np.concatenate(values)
        for name, values in columns.items()
    }
    empty = {"boxes": np.zeros((0, 4)), "masks": []}
    for name in (*needed, "boxes", *extra, "image"):
        found.setdefault(name, empty.get(name, np.zeros(0)))
    for name in ("boxes", "scores"):
        if not np.isfinite(found.get(name, 0.0)).all():
            raise ValueError(f"{name} of {what} must be finite, got NaN or infinity")
    return found


def _flat(columns: Mapping[str, Any], classes: int) -> Flat:
    labels, image = columns["labels"].astype(int), columns["image"].astype(int)
    boxes, n = columns["boxes"].astype(float), len(labels)
    masks = columns.get("masks")
    starts = np.flatnonzero(np.append(True, image[1:] != image[:-1])[:n])
    row = np.arange(n) - np.repeat(starts, np.diff(np.append(starts, n)))
    group = image * classes + labels
    flat = Flat(
        boxes=boxes,
        labels=labels,
        group=group,
        scores=columns.get("scores", np.zeros(n)).astype(float),
        rank=np.zeros(n, int),
        area=columns.get("area", np.full(n, np.nan)).astype(float),
        crowd=columns.get("is_crowd", np.zeros(n)).astype(bool),
        ignored=columns.get("is_ignored", np.zeros(n)).astype(bool),
        image=image,
        masks=masks,
        row=row,
    )
    area = np.where(np.isnan(flat.area), flat._own_area(), flat.area)
    flat = replace(flat, area=area)[np.lexsort((-flat.scores, group))]
    low = np.searchsorted(flat.group, flat.group, "left")
    return replace(flat, rank=np.arange(n) - low)
