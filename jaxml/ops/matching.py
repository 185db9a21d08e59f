"""Matching: which object each anchor answers for, and which anchors a step learns from.

An anchor is positive if its best IoU with an object is `positive` or more, negative if it
is below `negative`, and in between it is left out. So that no object goes without, the
anchors that overlap it most are positive as well, whatever their IoU, each for the object
which it itself overlaps most. Then `sample_matches` draws a fixed number of anchors, with
at most a given fraction of positives, and fills up with negatives.

Everything has a static shape: objects are padded and masked, and the draw is a top-k of
random keys, never a choice from a list whose length depends on the image.

The trap is the image without objects: its best IoU is that with padding, 0, and all its
anchors are negative, which is right. But the best anchor of padding, or of an object that
no anchor touches, ties with all that have IoU 0: such an object makes no anchor positive.

Reference: Ren et al., "Faster R-CNN: Towards Real-Time Object Detection with Region
Proposal Networks", NeurIPS 2015, https://arxiv.org/abs/1506.01497 (sections 3.1.2 and
3.1.3); Girshick, "Fast R-CNN", ICCV 2015, https://arxiv.org/abs/1504.08083 (section 2.3:
a quarter of positives).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxml.export import export
from jaxml.ops.boxes import box_ioa, box_iou
from jaxml.ops.color import Number
from jaxml.ops.order import masked_top_k
from jaxml.typing import Array, Bool, Float, Int, PRNGKeyArray


@export("ops.Matches", since="0.1")
class Matches(NamedTuple):
    """What `match_anchors` finds for each of n anchors and m objects.

    Attributes:
        indices: of the object, for positives; m, one past the end, for the others, which
            `boxes.at[indices].get(mode="fill", fill_value=0)` fills.
        is_positive: answers for an object.
        is_negative: is background. Anchors that are neither are left out of the loss.
        iou: the best with any object.
    """

    indices: Int[Array, "n"]
    is_positive: Bool[Array, "n"]
    is_negative: Bool[Array, "n"]
    iou: Float[Array, "n"]


@export("ops.Sample", since="0.1")
class Sample(NamedTuple):
    """The anchors that `sample_matches` draws, positives first.

    Attributes:
        indices: of k anchors; where not valid n, one past the end.
        is_positive: which are.
        valid: False where there were too few to draw from.
    """

    indices: Int[Array, "k"]
    is_positive: Bool[Array, "k"]
    valid: Bool[Array, "k"]


@export("ops.match_anchors", since="0.1")
def match_anchors(
    anchors: Float[Array, "n 4"],
    boxes: Float[Array, "m 4"],
    mask: Bool[Array, "m"],
    *,
    positive: Number = 0.7,
    negative: Number = 0.3,
    low_quality: bool = True,
    is_ignored: Bool[Array, "m"] | None = None,
    ignored_share: Number = 0.5,
    anchors_mask: Bool[Array, "n"] | None = None,
) -> Matches:
    """Gives every anchor an object, the background, or neither.

    Args:
        anchors: xyxy pixels, or proposals.
        boxes: xyxy pixels of the objects, padded.
        mask: False for padding.
        positive: least IoU of a positive: 0.7 for proposals, 0.5 for the box head.
        negative: least IoU of what is not background: 0.3, or 0.5.
        low_quality: whether the best anchors of each object are positive in any case.
        is_ignored: regions, such as crowds, that nothing answers for; anchors that lie in
            one are no background either.
        ignored_share: of an anchor's area, with which it lies in a region.
        anchors_mask: False for anchors that are to be neither.

    Raises:
        ValueError: unless 0 <= negative <= positive <= 1.

    >>> boxes = jnp.array([[0.0, 0.0, 8.0, 8.0]])
    >>> anchors = jnp.array([[0.0, 0.0, 8.0, 7.0], [20.0, 20.0, 28.0, 28.0]])
    >>> match_anchors(anchors, boxes, jnp.array([True])).indices.tolist()
    [0, 1]
    """
    if not 0 <= negative <= positive <= 1:
        raise ValueError(
            "thresholds must be 0 <= negative <= positive <= 1, "
            f"got {negative} and {positive}"
        )
    n, m = anchors.shape[0], boxes.shape[0]
    if m == 0:
        boxes, mask = jnp.zeros((1, 4)), jnp.zeros(1, bool)
        is_ignored = None if is_ignored is None else mask
    anchors, boxes = lax.stop_gradient((jnp.asarray(anchors), jnp.asarray(boxes)))
    counts = mask if is_ignored is None else mask & ~is_ignored
    iou = jnp.where(counts[None], box_iou(anchors, boxes), 0)
    may = jnp.ones(n, bool) if anchors_mask is None else anchors_mask
    iou = jnp.where(may[:, None], iou, 0)
    best = jnp.max(iou, axis=1)
    is_positive = (best >= positive) & (best > 0)
    if low_quality:
        most = jnp.max(iou, axis=0, keepdims=True, initial=0)
        is_positive |= jnp.any((iou == most) & (most > 0), axis=1)
    is_negative = (best < negative) & ~is_positive & may
    if is_ignored is not None:
        share = jnp.where((mask & is_ignored)[None], box_ioa(anchors, boxes), 0)
        is_negative &= ~jnp.any((share >= ignored_share) & (share > 0), axis=1)
    index = jnp.where(is_positive, jnp.argmax(iou, axis=1), m)
    return Matches(index.astype(jnp.int32), is_positive, is_negative, best)


@export("ops.sample_matches", since="0.1")
def sample_matches(
    key: PRNGKeyArray,
    is_positive: Bool[Array, "n"],
    is_negative: Bool[Array, "n"],
    num_samples: int,
    *,
    positive_fraction: Number = 0.5,
) -> Sample:
    """Draws anchors without replacement, positives up to a fraction, then negatives.

    Args:
        key: of this image.
        is_positive: may be drawn as positives.
        is_negative: may be drawn as negatives.
        num_samples: k: 256 for proposals, 512 for the box head.
        positive_fraction: the most of the k that may be positive: 1/2, or 1/4.

    Raises:
        ValueError: if `num_samples` is negative or the fraction not in [0, 1].
    """
    if num_samples < 0 or not 0 <= positive_fraction <= 1:
        raise ValueError(
            "num_samples must not be negative and positive_fraction in [0, 1], "
            f"got {num_samples} and {positive_fraction}"
        )
    most = int(num_samples * positive_fraction)
    draw = jax.random.uniform(
        key, is_positive.shape
    )  # an anchor is of one kind at most
    positives, is_drawn = masked_top_k(draw, is_positive, most)
    others, is_other = masked_top_k(draw, is_negative & ~is_positive, num_samples)
    count = jnp.sum(is_drawn)
    slot = jnp.arange(num_samples)
    is_first = slot < count
    n = is_positive.shape[0]
    first = jnp.asarray(positives).at[slot].get(mode="fill", fill_value=n)
    slot_of_other = jnp.where(is_first, num_samples, slot - count)
    after = jnp.asarray(others).at[slot_of_other].get(mode="fill", fill_value=n)
    valid = slot < count + jnp.sum(is_other)
    return Sample(jnp.where(is_first, first, after), is_first, valid)
