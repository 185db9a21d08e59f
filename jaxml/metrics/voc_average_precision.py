"""Average precision of detections as PASCAL VOC computes it, in 2007 and since 2010.

Every detection claims the one object of its image and class that it overlaps most. It is
right if it does so by the threshold and is the best-scored to claim it; claims of an object
marked difficult do not count, and such objects need not be found. Over the classes,

    2007:  AP = mean over r = 0, 0.1, ... 1 of max { precision at any recall >= r }
    2012:  AP = the area under that curve at all recalls.

The trap is the second claim: a detection whose object is taken is wrong, even where it
would have had another one to take, unlike in COCO.

Reference: Everingham et al., "The Pascal Visual Object Classes (VOC) Challenge", IJCV 2010,
https://doi.org/10.1007/s11263-009-0275-4 (section 4.2); "The PASCAL Visual Object Classes
Challenge 2012 Development Kit", http://host.robots.ox.ac.uk/pascal/VOC/voc2012/
(section 3.4.1: the area). Deviation: coordinates are continuous, while the kit counts the
pixel at the end of a box as one more.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxml.export import export
from jaxml.metrics.average_precision import best_precision, interpolated
from jaxml.metrics.labelled_boxes import flat_boxes
from jaxml.ops.color import Number

_ELEVEN = np.arange(11) / 10  # of which 3 / 10 objects reach the fourth


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
