"""Soft suppression: boxes that overlap a better one lose score in place of being dropped.

Two people who stand behind each other overlap like two boxes of one person. Greedy
suppression loses one of them; here the score of each box that is left is multiplied, after
every choice of the best one, by

    linear:    1 - IoU where IoU > threshold, else 1
    gaussian:  exp(-IoU^2 / sigma).

The trap is the order: scores fall while boxes are chosen, so the best of those left must be
found again each time, and the scores to report are those at the time of the choice.

Reference: Bodla et al., "Soft-NMS: Improving Object Detection With One Line of Code", ICCV
2017, https://arxiv.org/abs/1704.04503 (figure 2, equations 2 and 3).
"""

from typing import Any

import jax.numpy as jnp
from jax import lax

from jaxml.export import export
from jaxml.ops.boxes import box_iou
from jaxml.ops.color import Number, Scalar
from jaxml.ops.nms import as_float32, candidates, check_suppression
from jaxml.typing import Array, Bool, Float, Int


@export("ops.soft_nms", since="0.1")
def soft_nms(
    boxes: Float[Array, "n 4"],
    scores: Float[Array, "n"],
    max_outputs: int,
    *,
    method: str = "gaussian",
    sigma: Scalar = 0.5,
    iou_threshold: Scalar = 0.3,
    min_score: Scalar = 1e-3,
    labels: Int[Array, "n"] | None = None,
    mask: Bool[Array, "n"] | None = None,
) -> tuple[Int[Array, "k"], Bool[Array, "k"], Float[Array, "k"]]:
    """Lowers the scores of boxes that overlap a better one, in place of dropping them.

    The best box is taken, the others' scores are multiplied, and again:

        linear:    1 - IoU where IoU > iou_threshold, else 1
        gaussian:  exp(-IoU^2 / sigma)

    Args:
        boxes: xyxy pixels.
        scores: not negative; among equal ones the first box is taken.
        max_outputs: k, at a cost of n each.
        method: "gaussian" or "linear".
        sigma: of the Gaussian.
        iou_threshold: of the linear kind.
        min_score: a box whose score has sunk below it is dropped.
        labels: with them, boxes lower only those of their own label.
        mask: False for padding.

    Returns:
        (indices, valid, scores), the scores as they were when the box was taken, falling.
        Where `valid` is False the index is n and the score 0.

    Raises:
        ValueError: if the method is unknown, the threshold is not in [0, 1], sigma is
            not positive or `max_outputs` is negative.
    """
    check_suppression(iou_threshold, max_outputs)
    if method not in ("gaussian", "linear"):
        raise ValueError(f"method must be 'gaussian' or 'linear', got {method!r}")
    if isinstance(sigma, Number) and not sigma > 0:
        raise ValueError(f"sigma must be positive, got {sigma}")
    scores = candidates(boxes, scores, mask)
    boxes = lax.stop_gradient(jnp.asarray(boxes).astype(jnp.float32))
    n, k = scores.shape[0], min(max_outputs, scores.shape[0])

    def take(slot: Array, state: Any) -> Any:
        left, indices, taken = state
        best = jnp.argmax(left)
        score = left[best]
        found = (score >= min_score) & jnp.isfinite(score)
        iou = box_iou(boxes[best][None], boxes)[0]
        if method == "gaussian":
            factor = jnp.exp(-jnp.square(iou) / sigma)
        else:
            factor = jnp.where(iou > as_float32(iou_threshold), 1 - iou, 1)
        if labels is not None:
            factor = jnp.where(labels == labels[best], factor, 1)
        factor = factor.at[best].set(1)
        # What is no candidate stays at -inf.
        left = jnp.where(jnp.isneginf(left), left, left * factor)
        left = left.at[best].set(-jnp.inf)
        indices = indices.at[slot].set(jnp.where(found, best.astype(jnp.int32), n))
        return left, indices, taken.at[slot].set(jnp.where(found, score, 0))

    none = jnp.sum(jnp.isnan(scores), dtype=jnp.int32)  # 0, on every device its own
    state = (scores, jnp.full(max_outputs, n) + none, jnp.zeros(max_outputs) + none)
    _, indices, taken = lax.fori_loop(0, k, take, state) if n else state
    return indices, indices < n, taken
