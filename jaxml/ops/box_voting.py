"""Box voting: boxes that suppression would drop help to place the one that it keeps.

A kept box moves to the mean of all boxes around it, weighted by their scores,

    B = sum_j s_j B_j / sum_j s_j   over the j with IoU(B, B_j) >= threshold,

itself among them. The trap is padding: it has no vote, whatever stands in it.

Reference: Gidaris and Komodakis, "Object detection via a multi-region & semantic
segmentation-aware CNN model", ICCV 2015, https://arxiv.org/abs/1505.01749 (section 5).
"""

import jax.numpy as jnp

from jaxml.export import export
from jaxml.ops.boxes import box_iou
from jaxml.ops.color import Scalar
from jaxml.ops.nms import candidates
from jaxml.typing import Array, Bool, Float


@export("ops.box_voting", since="0.1")
def box_voting(
    kept: Float[Array, "k 4"],
    boxes: Float[Array, "n 4"],
    scores: Float[Array, "n"],
    *,
    iou_threshold: Scalar = 0.5,
    mask: Bool[Array, "n"] | None = None,
) -> Float[Array, "k 4"]:
    """Moves every kept box to the mean of the boxes around it, weighted by score.

    Args:
        kept: xyxy pixels, such as `nms` keeps.
        boxes: xyxy pixels, all of them, before suppression.
        scores: not negative.
        iou_threshold: boxes vote where they overlap by this much, or more.
        mask: False for padding, which has no vote.

    Returns:
        The moved boxes; one for which nobody votes stays.
    """
    weight = candidates(boxes, scores, mask)
    is_voter = weight > 0
    near = (box_iou(kept, boxes) >= iou_threshold) & is_voter[None]
    weight = jnp.where(near, jnp.where(is_voter, weight, 0)[None], 0)
    total = jnp.sum(weight, axis=1, keepdims=True)
    # Relative to the kept box, whose large coordinates the sum would round.
    kept = jnp.asarray(kept).astype(jnp.float32)
    away = jnp.asarray(boxes).astype(jnp.float32)[None] - kept[:, None]
    away = jnp.where(near[..., None], away, 0)
    move = jnp.sum(weight[..., None] * away, axis=1)
    return kept + jnp.where(total > 0, move / jnp.where(total > 0, total, 1), 0)
