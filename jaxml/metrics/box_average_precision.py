"""COCO's average precision during training: matched on the device, counted at the end.

Which object a detection takes is settled within its image, so that is done in the jitted
step, on padded boxes: for the ten thresholds and four ranges of areas at once, one
detection after another. Average precision itself needs the order of all scores of the
split and cannot be a sum over batches. The accumulator therefore holds a row for every
image, all zeros until it is seen, and is a sum all the same: accumulators of disjoint
parts of a split add up, over batches and over devices.

The numbers are those of `coco_average_precision`. The trap is float32: an overlap within
1e-7 of a threshold may fall on its other side.

Reference: Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014,
https://arxiv.org/abs/1405.0312 (the numbers: https://cocodataset.org/#detection-eval).
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxml.export import export
from jaxml.method import Batch
from jaxml.metrics.average_precision import (
    AREAS,
    IOU_THRESHOLDS,
    MAX_DETECTIONS,
    position_in_group,
    summarize,
)
from jaxml.metrics.metric import Accumulator, Metric, sample_mask
from jaxml.ops.boxes import box_area, box_ioa, box_iou
from jaxml.ops.order import masked_top_k
from jaxml.typing import Array, Bool, Float, Int


def _itself(outputs: Any) -> Any:
    return outputs


@export("metrics.box_average_precision", since="0.1")
def box_average_precision(
    num_images: int,
    num_classes: int,
    *,
    max_detections: int = 100,
    detections: Callable[[Any], tuple[Array, Array, Array, Array]] = _itself,
) -> Metric:
    """The twelve numbers of COCO as a metric over a split, `update` jittable.

    Args:
        num_images: of the whole split.
        num_classes: labels are below it.
        max_detections: of an image, the best of all classes together; more are left out.
        detections: finds boxes [batch, n, 4], scores [batch, n], labels [batch, n] and
            valid [batch, n] in the method's outputs.

    A batch holds `index` [batch], the place of each image in the split, `boxes`
    [batch, m, 4], `labels` [batch, m] and `boxes_mask` [batch, m], False for padding; if
    there are any, `is_crowd`, `is_ignored` and `area` [batch, m]; and `mask` [batch].

    Raises:
        ValueError: if a number is not positive; (update) if the batch has no `index`;
            (compute) if an image was counted twice, or none was.
    """
    for name, number in (
        ("num_images", num_images),
        ("num_classes", num_classes),
        ("max_detections", max_detections),
    ):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    areas = len(AREAS)

    def init() -> Accumulator:
        shape = (num_images, max_detections)
        return {
            "score": jnp.zeros(shape),
            "label": jnp.zeros(shape, jnp.int32),  # plus 1: 0 is no detection
            "matched": jnp.zeros((*shape, areas), jnp.int32),  # a bit per threshold
            "ignored": jnp.zeros((*shape, areas), jnp.int32),
            "objects": jnp.zeros((num_classes, areas), jnp.int32),
            "times": jnp.zeros(num_images, jnp.int32),
        }

    def update(total: Accumulator, outputs: Any, batch: Batch) -> Accumulator:
        if "index" not in batch:
            raise ValueError("the batch must hold the index of every image, got none")
        index = jnp.asarray(batch["index"])
        keep = sample_mask(batch, index.shape)
        boxes, scores, labels, valid = map(jnp.asarray, detections(outputs))
        row, objects = jax.vmap(one_image)(
            (boxes, scores.astype(jnp.float32), labels, valid), _truth(batch)
        )
        objects = jnp.where(keep[:, None, None], objects, 0).sum(0, dtype=jnp.int32)
        row["times"] = jnp.ones(index.shape, jnp.int32)
        at = jnp.where(keep, index, num_images)  # padding is dropped
        added = {k: total[k].at[at].add(v, mode="drop") for k, v in row.items()}
        return {**added, "objects": total["objects"] + objects}

    def one_image(
        found: tuple[Array, ...], truth: Mapping[str, Array]
    ) -> tuple[dict[str, Array], Array]:
        """What to add to the row of the image, and its objects [classes, areas]."""
        boxes, scores, labels, valid = found
        valid = valid & (labels >= 0) & (labels < num_classes)
        best, is_found = masked_top_k(scores, valid, max_detections)
        boxes, scores, labels = (
            jnp.asarray(x).at[best].get(mode="fill", fill_value=fill)
            for x, fill in ((boxes, 0), (scores, 0), (labels, -1))
        )
        before = (labels[:, None] == labels[None]) & jnp.tri(
            len(best), k=-1, dtype=bool
        )
        is_found = is_found & (jnp.sum(before, axis=1) < MAX_DETECTIONS[-1])
        ignored = _out_of_range(truth["area"]) | truth["skip"][:, None]
        matched, skipped = match_image(
            boxes, labels, is_found, truth, ignored | ~truth["boxes_mask"][:, None]
        )
        skipped |= ~matched & _out_of_range(box_area(boxes))[:, None]
        is_object = (truth["labels"][None] == jnp.arange(num_classes)[:, None])[
            ..., None
        ]
        counted = (~ignored & truth["boxes_mask"][:, None])[None]
        bit = (1 << jnp.arange(len(IOU_THRESHOLDS), dtype=jnp.int32))[None, :, None]

        def pack(x):
            return jnp.sum(
                jnp.where(x & is_found[:, None, None], bit, 0), axis=1, dtype=jnp.int32
            )

        row = {
            "score": jnp.where(is_found, scores, 0),
            "label": jnp.where(is_found, labels + 1, 0).astype(jnp.int32),
            "matched": pack(matched),
            "ignored": pack(skipped),
        }
        return row, jnp.sum(is_object & counted, axis=1, dtype=jnp.int32)

    def compute(total: Accumulator) -> Mapping[str, float]:
        values = jax.tree.map(np.asarray, jax.device_get(total))
        if values["times"].max() != 1:
            raise ValueError(
                "every image must be counted once, got one that was counted "
                f"{values['times'].max()} times"
            )
        image, place = np.nonzero(values["label"])
        label = values["label"][image, place] - 1
        score = values["score"][image, place].astype(float)
        order = np.lexsort((-score, label, image))
        rank = np.zeros(len(order), int)
        rank[order] = position_in_group((image * num_classes + label)[order])
        matched, ignored = (
            values[name][image, place][:, None] >> np.arange(10)[:, None] & 1 == 1
            for name in ("matched", "ignored")
        )
        result = summarize(score, label, rank, matched, ignored, values["objects"])
        return result.summary

    return Metric(init, update, compute)


def match_image(
    boxes: Float[Array, "n 4"],
    labels: Int[Array, "n"],
    valid: Bool[Array, "n"],
    truth: Mapping[str, Array],
    ignored: Bool[Array, "m areas"],
) -> tuple[Bool[Array, "n thresholds areas"], Bool[Array, "n thresholds areas"]]:
    """Which detections, the best first, took an object, and an ignored one."""
    thresholds = jnp.asarray(np.minimum(IOU_THRESHOLDS, 1 - 1e-10), jnp.float32)
    crowd, real = truth["is_crowd"], truth["boxes"]
    iou = jnp.where(crowd[None], box_ioa(boxes, real), box_iou(boxes, real))
    fits = labels[:, None] == truth["labels"][None]
    fits = fits & valid[:, None] & truth["boxes_mask"][None]
    iou = jnp.where(fits, iou, -1)
    ignored = ignored.T[None]  # [1, areas, objects]
    number = jnp.arange(real.shape[0])[None, None]

    def take(free: jax.Array, iou: jax.Array) -> tuple[jax.Array, Any]:
        can = free & (iou[None] >= thresholds[:, None])[:, None]
        counted = can & ~ignored
        can = jnp.where(jnp.any(counted, axis=2, keepdims=True), counted, can)
        # Of objects that are overlapped alike the last is taken.
        best = jnp.max(jnp.where(can, iou[None, None], -1), axis=2, keepdims=True)
        can = can & (iou[None, None] == best)
        last = jnp.max(jnp.where(can, number, -1), axis=2, keepdims=True)
        chosen = can & (number == last)
        outcome = jnp.any(chosen, axis=2), jnp.any(chosen & ignored, axis=2)
        return free & ~(chosen & ~crowd[None, None]), outcome

    free = jnp.broadcast_to(
        truth["boxes_mask"][None, None],
        (len(thresholds), ignored.shape[1], real.shape[0]),
    )
    return lax.scan(take, free, iou)[1]


def _truth(batch: Batch) -> dict[str, Array]:
    """The objects of a batch, with what may be left out."""
    boxes = jnp.asarray(batch["boxes"]).astype(jnp.float32)
    none = jnp.zeros(boxes.shape[:-1], bool)
    crowd, ignored = (
        jnp.asarray(batch.get(name, none)).astype(bool)
        for name in ("is_crowd", "is_ignored")
    )
    return {
        "boxes": boxes,
        "labels": jnp.asarray(batch["labels"]),
        "boxes_mask": jnp.asarray(batch["boxes_mask"]).astype(bool),
        "is_crowd": crowd,
        "skip": crowd | ignored,
        "area": jnp.asarray(batch.get("area", box_area(boxes))),
    }


def _out_of_range(area: Float[Array, "n"]) -> Bool[Array, "n areas"]:
    low, high = (
        jnp.asarray(x, jnp.float32)[None] for x in zip(*AREAS.values(), strict=True)
    )
    return (area[:, None] < low) | (area[:, None] > high)
