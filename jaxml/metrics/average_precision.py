"""Average precision of detections as COCO and PASCAL VOC compute it, in arrays of NumPy.

COCO. In each image and class, detections take objects from the highest score down. One takes
the free object that it overlaps most, if by as much as a threshold. Taken objects give true
positives, what takes nothing is a false one, and with TP and FP counted in the order of
scores over all images,

    AP = mean over 101 recalls r of max { precision at any recall >= r },
    precision = TP / (TP + FP),  recall = TP / objects,

averaged over the thresholds 0.5, 0.55, ... 0.95 and the classes that have objects.

The traps are the rules of what does not count. Crowds, and objects outside a range of
areas, are ignored: they take a detection only if no counted object does, it is then neither
true nor false, and a crowd may be taken again and again (by the share of the detection that
it covers). An untaken detection outside the range is ignored as well. Of objects that are
overlapped alike the last is taken. Ties of scores stay in the order of images.

Detections that overlap no object by half never take one, and few objects compete for one
detection. What is left is settled for all images, classes, areas and thresholds together,
one detection of each image and class at a time.

VOC. Every detection claims the one object of its image and class that it overlaps most. It
is right if it does so by the threshold and is the best-scored to claim it: one whose object
is taken is wrong, even where it would have had another to take, unlike in COCO. Claims of
objects marked difficult do not count, and such objects need not be found. Over the classes,

    2007:  AP = mean over r = 0, 0.1, ... 1 of max { precision at any recall >= r }
    2012:  AP = the area under that curve at all recalls.

Reference: Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014,
https://arxiv.org/abs/1405.0312 (the numbers: https://cocodataset.org/#detection-eval).
Everingham et al., "The Pascal Visual Object Classes (VOC) Challenge", IJCV 2010,
https://doi.org/10.1007/s11263-009-0275-4 (section 4.2); "The PASCAL Visual Object Classes
Challenge 2012 Development Kit", http://host.robots.ox.ac.uk/pascal/VOC/voc2012/
(section 3.4.1: the area). Deviations: where no object is, numbers are NaN in place of -1;
VOC's kit counts the pixel at the end of a box as one more, here coordinates are continuous.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxml.export import export
from jaxml.metrics.labelled_boxes import Flat, flat_boxes
from jaxml.ops.color import Number

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
AREAS = {
    "all": (0.0, 1e10),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e10),
}
MAX_DETECTIONS = (1, 10, 100)
_ELEVEN = np.arange(11) / 10  # of which 3 / 10 objects reach the fourth


@export("metrics.CocoResult", since="0.1")
class CocoResult(NamedTuple):
    """What `coco_average_precision` finds, in [0, 1], NaN where there is no object.

    Attributes:
        summary: the twelve numbers, by name: `AP`, `AP_50`, `AP_75`, `AP_small`,
            `AP_medium`, `AP_large`, `AR_1`, `AR_10`, `AR_100`, `AR_small`, `AR_medium`,
            `AR_large`.
        per_class: AP of each class.
        precision: [threshold, recall, class, area], the precision that can be had at that
            recall or a higher one.
        recall: [threshold, class, area, detections], with all, small, medium, large, and
            at most 1, 10 and 100 detections per image and class.
    """

    summary: dict[str, float]
    per_class: np.ndarray
    precision: np.ndarray
    recall: np.ndarray


@export("metrics.coco_average_precision", since="0.1")
def coco_average_precision(
    detections: Sequence[Mapping[str, Any]],
    truths: Sequence[Mapping[str, Any]],
    *,
    num_classes: int | None = None,
    use_masks: bool = False,
) -> CocoResult:
    """COCO's average precision and recall of boxes, or of masks.

    Args:
        detections: one mapping per image: `boxes` [n, 4] xyxy pixels, `scores` [n],
            `labels` [n] from 0 up; `mask` [n], False for padding, if there is any; with
            `use_masks` also `masks` [n, height, width] of bool, and boxes are not needed.
        truths: one mapping per image, in the same order: `boxes`, `labels`, `mask`,
            `masks` as above; `is_crowd` [n] and `is_ignored` [n], if there are any; `area`
            [n], which the ranges go by, by default that of the box or the mask.
        num_classes: by default one more than the largest label.
        use_masks: overlaps are of masks.

    Raises:
        ValueError: if images, boxes, scores or labels disagree in number, a label is
            negative or too large, or a score or a coordinate is not finite.

    >>> box = np.array([[0.0, 0.0, 50.0, 50.0]])
    >>> truth = {"boxes": box, "labels": [0]}
    >>> found = {"boxes": box + 5, "scores": [0.9], "labels": [0]}
    >>> coco_average_precision([found], [truth]).summary["AP_50"]
    1.0
    """
    found, real, classes = flat_boxes(detections, truths, num_classes, use_masks)
    area = np.array(list(AREAS.values()))
    outside = (real.area[:, None] < area[:, 0]) | (real.area[:, None] > area[:, 1])
    ignored = outside | (real.crowd | real.ignored)[:, None]
    found = found.best(MAX_DETECTIONS[-1])
    taken, is_ignored = match(found, real, ignored)
    outside = (found.area[:, None] < area[:, 0]) | (found.area[:, None] > area[:, 1])
    is_ignored |= ~taken & outside[:, None]
    objects = np.zeros((classes, len(area)), int)
    np.add.at(objects, real.labels, ~ignored)
    return summarize(found.scores, found.labels, found.rank, taken, is_ignored, objects)


def match(
    found: Flat, real: Flat, ignored: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Which detections took an object, and which took one that is ignored.

    Args:
        found: the detections, by image and class, the best first.
        real: the objects, by image and class.
        ignored: [objects, areas].

    Returns:
        Two of bool [detections, thresholds, areas].
    """
    thresholds = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)
    shape = (len(thresholds), ignored.shape[1])
    is_matched = np.zeros((len(found.scores), *shape), bool)
    is_ignored = np.zeros_like(is_matched)
    detection, thing, iou = found.pairs(real)
    close = iou >= thresholds[0]
    detection, thing, iou = detection[close], thing[close], iou[close]
    if not len(detection):
        return is_matched, is_ignored
    # Each detection's objects, the most overlapped first, of equal ones the last.
    order = np.lexsort((-thing, -iou, detection))
    thing, iou = thing[order], iou[order]
    hopeful, start, number = np.unique(
        detection[order], return_index=True, return_counts=True
    )
    turn = position_in_group(found.group[hopeful])
    free = np.ones((len(real.labels), *shape), bool)
    by_turn = np.argsort(turn, kind="stable")
    for now in np.split(by_turn, np.cumsum(np.bincount(turn))[:-1]):
        now = now[np.argsort(-number[now], kind="stable")]
        choice = _choose(start[now], number[now], thing, iou, thresholds, free, ignored)
        is_chosen = choice >= 0
        row, t, a = np.nonzero(is_chosen)
        chosen = choice[row, t, a]
        is_matched[hopeful[now]] = is_chosen
        is_ignored[hopeful[now[row]], t, a] = ignored[chosen, a]
        single = ~real.crowd[chosen]
        free[chosen[single], t[single], a[single]] = False
    return is_matched, is_ignored


def _choose(
    start: np.ndarray,
    number: np.ndarray,
    thing: np.ndarray,
    iou: np.ndarray,
    thresholds: np.ndarray,
    free: np.ndarray,
    ignored: np.ndarray,
) -> np.ndarray:
    """The object that each detection takes, or -1: [detections, thresholds, areas].

    Args:
        start: of its objects in `thing` and `iou`.
        number: of them, falling, so that fewer and fewer detections have another one.
        thing: numbers of objects, the most overlapped first.
        iou: with them.
        thresholds: of the overlap.
        free: [objects, thresholds, areas].
        ignored: [objects, areas].
    """
    choice = np.full((len(start), *free.shape[1:]), -1)
    second = choice.copy()  # among the ignored
    for k in range(number[0]):
        m = np.searchsorted(-number, -k, "left")  # those with more than k
        at = start[:m] + k
        can = free[thing[at]] & (iou[at, None] >= thresholds)[..., None]
        skip = ignored[thing[at]][:, None]
        this = np.broadcast_to(thing[at, None, None], can.shape)
        for place, fits in ((choice[:m], can & ~skip), (second[:m], can & skip)):
            np.copyto(place, this, where=fits & (place < 0))
    return np.where(choice >= 0, choice, second)


def summarize(
    scores: np.ndarray,
    labels: np.ndarray,
    rank: np.ndarray,
    is_matched: np.ndarray,
    is_ignored: np.ndarray,
    objects: np.ndarray,
) -> CocoResult:
    """From what happened to each detection to the twelve numbers.

    Args:
        scores: [n], of images in their order.
        labels: [n].
        rank: [n], how many better ones of its class are in the image.
        is_matched: [n, thresholds, areas].
        is_ignored: [n, thresholds, areas].
        objects: [classes, areas], how many count.
    """
    classes, areas = objects.shape
    thresholds = is_matched.shape[1]
    precision = np.full((thresholds, len(RECALLS), classes, areas), np.nan)
    recall = np.full((thresholds, classes, areas, len(MAX_DETECTIONS)), np.nan)
    order = np.lexsort((-scores, labels))
    bounds = np.searchsorted(labels[order], np.arange(classes + 1))
    for c in range(classes):
        mine = order[bounds[c] : bounds[c + 1]]
        true = is_matched[mine] & ~is_ignored[mine]
        false = np.cumsum(~is_matched[mine] & ~is_ignored[mine], axis=0)
        for a in np.flatnonzero(objects[c]):
            for m, most in enumerate(MAX_DETECTIONS):
                hits = true[rank[mine] < most, :, a].sum(axis=0)
                recall[:, c, a, m] = hits / objects[c, a]
            for t in range(thresholds):
                hit = np.flatnonzero(true[:, t, a])
                precision[t, :, c, a] = interpolated(
                    false[hit, t, a], int(objects[c, a]), RECALLS
                )
    return CocoResult(
        _summary(precision, recall), _mean(precision[..., 0], (0, 1)), precision, recall
    )


def interpolated(false: np.ndarray, objects: int, recalls: np.ndarray) -> np.ndarray:
    """The best precision at each recall or above it, 0 where it is not reached.

    Args:
        false: [true positives], how many false ones came before each, in the order of
            scores. Precision falls between true positives: its maxima are at them.
        objects: how many there are to find.
        recalls: at which it is asked, rising.
    """
    true = np.arange(1, len(false) + 1)
    at = np.searchsorted(true / objects, recalls, side="left")
    return np.append(best_precision(false), 0.0)[at]


def best_precision(false: np.ndarray) -> np.ndarray:
    """At each true positive, the best precision there or at a later one."""
    true = np.arange(1, len(false) + 1, dtype=float)
    precision = true / (false + true)
    return np.maximum.accumulate(precision[::-1])[::-1]


def position_in_group(group: np.ndarray) -> np.ndarray:
    """0, 1, 2 ... within each run of equal numbers."""
    index = np.arange(len(group))
    is_first = np.append(True, group[1:] != group[:-1])[: len(group)]
    return index - np.maximum.accumulate(np.where(is_first, index, 0))


def _summary(precision: np.ndarray, recall: np.ndarray) -> dict[str, float]:
    values = {
        "AP": precision[..., 0],
        "AP_50": precision[0, ..., 0],
        "AP_75": precision[5, ..., 0],
    }
    values |= {f"AP_{name}": precision[..., i] for i, name in _parts()}
    values |= {f"AR_{m}": recall[..., 0, i] for i, m in enumerate(MAX_DETECTIONS)}
    values |= {f"AR_{name}": recall[..., i, -1] for i, name in _parts()}
    return {name: float(_mean(value, None)) for name, value in values.items()}


def _parts() -> list[tuple[int, str]]:
    return [(i, name) for i, name in enumerate(AREAS) if i]


def _mean(values: np.ndarray, axis: Any) -> np.ndarray:
    """Over what is not NaN; NaN if all is."""
    known = ~np.isnan(values)
    total = np.where(known, values, 0).sum(axis)
    mean = np.where(known.any(axis), total, np.nan) / np.maximum(known.sum(axis), 1)
    return np.asarray(mean)


@export("metrics.VocResult", since="0.1")
class VocResult(NamedTuple):
    """What `voc_average_precision` finds, in [0, 1].

    Attributes:
        mean: over the classes that have objects, mAP; NaN if none has.
        per_class: AP of each class, NaN where there is no object.
    """

    mean: float
    per_class: np.ndarray


@export("metrics.voc_average_precision", since="0.1")
def voc_average_precision(
    detections: Sequence[Mapping[str, Any]],
    truths: Sequence[Mapping[str, Any]],
    *,
    num_classes: int | None = None,
    iou_threshold: Number = 0.5,
    style: str = "2012",
) -> VocResult:
    """Mean average precision of VOC.

    Args:
        detections: one mapping per image: `boxes` [n, 4] xyxy pixels, `scores` [n],
            `labels` [n] from 0 up, `mask` [n], False for padding, if there is any.
        truths: one mapping per image, in the same order: `boxes`, `labels`, `mask`, and
            `is_difficult` [n], if there are any.
        num_classes: by default one more than the largest label.
        iou_threshold: a detection is right with this overlap, or more.
        style: "2012" or "2007".

    Raises:
        ValueError: if the style is unknown, the threshold is not in (0, 1], or as for
            `coco_average_precision`.

    >>> box = np.array([[0.0, 0.0, 8.0, 8.0]])
    >>> found = {"boxes": box, "scores": [0.9], "labels": [0]}
    >>> voc_average_precision([found], [{"boxes": box, "labels": [0]}]).mean
    1.0
    """
    if style not in ("2007", "2012"):
        raise ValueError(f"style must be '2007' or '2012', got {style!r}")
    if not 0 < iou_threshold <= 1:
        raise ValueError(f"iou_threshold must be in (0, 1], got {iou_threshold}")
    truths = [{**truth, "is_ignored": truth.get("is_difficult")} for truth in truths]
    found, real, classes = flat_boxes(detections, truths, num_classes)
    detection, thing, iou = found.pairs(real)
    order = np.lexsort((thing, -iou, detection))
    order = order[iou[order] >= iou_threshold]
    claimant, first = np.unique(detection[order], return_index=True)
    claimed = thing[order][first]
    is_hit = np.zeros(len(found.scores), bool)
    is_ignored = is_hit.copy()
    is_ignored[claimant] = real.ignored[claimed]
    # Detections of one image and class stand in the order of their scores.
    _, best = np.unique(claimed, return_index=True)
    is_hit[claimant[best]] = True

    objects = np.bincount(real.labels[~real.ignored], minlength=classes)
    per_class = np.full(classes, np.nan)
    order = np.lexsort((-found.scores, found.labels))
    order = order[~is_ignored[order]]
    for c in np.flatnonzero(objects):
        hits = is_hit[order[found.labels[order] == c]]
        false = np.cumsum(~hits)[hits]
        if style == "2007":
            per_class[c] = interpolated(false, int(objects[c]), _ELEVEN).mean()
        else:
            per_class[c] = best_precision(false).sum() / objects[c]
    known = per_class[objects > 0]
    return VocResult(float(known.mean()) if known.size else float("nan"), per_class)
