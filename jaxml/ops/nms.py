"""Non-maximum suppression: of boxes that cover one object, keep the best.

Greedy suppression goes through the boxes from the highest score down and keeps a box
unless one that was kept before overlaps it by more than the threshold:

    keep i  <=>  no kept j before i has IoU(i, j) > threshold.

That is a chain of decisions, made here a tile of 128 boxes at a time. The boxes of a tile
are first compared with all boxes kept so far, in slabs and without a division:

    IoU(i, j) > t  <=>  intersection > t / (1 + t) (area_i + area_j),

and again by the division itself if rounding could tell the two apart anywhere in the tile.
Those left settle it among themselves by going round

    keep <- alive & ~any_j(keep_j & IoU(j, i) > threshold, j before i)

until nothing changes. The first box is right from the start and each round makes the next
link of every chain right, so that the fixed point is the greedy answer, exactly, at any
threshold. It stops as soon as `max_outputs` are kept: shapes are static, time is not.

The trap is the index of an output that is not there. -1 would wrap around to the last
box; here it is n, one past the end, which scatters drop and `.at[].get(mode="fill")` fills.

What is no candidate is never kept and suppresses nothing: where the mask is False, the
score NaN or -inf, or a coordinate not finite. A box without area overlaps nothing. The
threshold is compared as the real number it was written as: 0.3 suppresses what float32
rounds to just above it.

Reference: Girshick et al., "Rich feature hierarchies for accurate object detection and
semantic segmentation", CVPR 2014, https://arxiv.org/abs/1311.2524 (section 2.2: greedily,
by class); Bodla et al., "Soft-NMS: Improving Object Detection With One Line of Code", ICCV
2017, https://arxiv.org/abs/1704.04503 (figure 2: the loop).
"""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap

from jaxml.export import export
from jaxml.ops.color import Number, Scalar
from jaxml.ops.order import descending_order, stable_order
from jaxml.typing import Array, Bool, Float, Int

_TILE, _SLAB = 128, 512
_MARGIN = 2.0**-19
_NO_LABEL = np.int32(2**31 - 1)


@export("ops.nms", since="0.1")
def nms(
    boxes: Float[Array, "*batch n 4"],
    scores: Float[Array, "*batch n"],
    iou_threshold: Scalar,
    max_outputs: int,
    mask: Bool[Array, "*batch n"] | None = None,
) -> tuple[Int[Array, "*batch k"], Bool[Array, "*batch k"]]:
    """The boxes that greedy suppression keeps, the best first.

    Args:
        boxes: xyxy pixels. Images are batched inside the loop, also under `vmap`.
        scores: higher is better; equal scores keep their order.
        iou_threshold: in [0, 1]; what overlaps by more is suppressed.
        max_outputs: k; the loop ends when so many are kept.
        mask: False for padding.

    Returns:
        (indices, valid). Where `valid` is False the index is n.

    Raises:
        ValueError: if the threshold is not in [0, 1] or `max_outputs` is negative.

    >>> boxes = jnp.array([[0.0, 0, 9, 9], [0, 0, 9, 8], [20, 20, 29, 29]])
    >>> indices, valid = nms(boxes, jnp.array([0.8, 0.9, 0.7]), 0.5, 3)
    >>> indices.tolist(), valid.tolist()
    ([1, 2, 3], [True, True, False])
    """
    check_suppression(iou_threshold, max_outputs)
    (boxes, scores), batch = _flat(boxes, candidates(boxes, scores, mask))
    order = descending_order(scores)
    place, count = _greedy(
        boxes, scores, order, None, iou_threshold, min(max_outputs, boxes.shape[1])
    )
    return _outputs(order, place, count, max_outputs, batch)


@export("ops.batched_nms", since="0.1")
def batched_nms(
    boxes: Float[Array, "*batch n 4"],
    scores: Float[Array, "*batch n"],
    labels: Int[Array, "*batch n"],
    iou_threshold: Scalar,
    max_outputs: int,
    mask: Bool[Array, "*batch n"] | None = None,
) -> tuple[Int[Array, "*batch k"], Bool[Array, "*batch k"]]:
    """`nms` in which boxes suppress only those of their own label.

    Boxes are sorted by label and compared within it. Moving each label to a place of its
    own instead, as is often done, adds thousands of pixels to the coordinates, and
    float32 then rounds the boxes themselves.

    Args:
        boxes, scores, iou_threshold, max_outputs, mask: as for `nms`.
        labels: any integers.

    >>> boxes = jnp.array([[0.0, 0, 9, 9], [0, 0, 9, 8], [0, 0, 9, 9]])
    >>> scores, labels = jnp.array([0.8, 0.9, 0.7]), jnp.array([3, 5, 3])
    >>> batched_nms(boxes, scores, labels, 0.5, 3)[0].tolist()
    [1, 0, 3]
    """
    check_suppression(iou_threshold, max_outputs)
    scores = candidates(boxes, scores, mask)
    (boxes, scores, labels), batch = _flat(boxes, scores, labels)
    best = descending_order(scores)  # by score
    labels = jnp.where(jnp.isneginf(scores), _NO_LABEL, labels.astype(jnp.int32))
    key = lax.bitcast_convert_type(labels, jnp.uint32) ^ jnp.uint32(2**31)
    by_label = stable_order(jnp.take_along_axis(key, best, axis=1))
    order = jnp.take_along_axis(best, by_label, axis=1)
    size, n = scores.shape
    place, count = _greedy(boxes, scores, order, labels, iou_threshold, n)
    # The kept ones, back in the order of their scores.
    rank = jnp.take_along_axis(by_label, place, axis=1, mode="clip")
    image, valid = _rows(size), _columns(n) < count[:, None]
    kept = jnp.zeros((size, n), bool)
    kept = kept.at[image, jnp.where(valid, rank, n)].set(True, mode="drop")
    k = min(n, max_outputs)
    slot = jnp.where(kept, jnp.cumsum(kept, axis=1) - 1, k)
    first = jnp.full((size, k), n).at[image, slot].set(_columns(n), mode="drop")
    return _outputs(best, first, count, max_outputs, batch)


def _greedy(
    boxes: Array,
    scores: Array,
    order: Array,
    labels: Array | None,
    iou_threshold: Scalar,
    most: int,
) -> tuple[Array, Array]:
    """Places in `order` [images, most] of the kept boxes, and how many they are.

    Args:
        boxes: [images, n, 4].
        scores: [images, n], -inf for what is no candidate.
        order: in which boxes are visited, candidates first, labels in one piece.
        labels: [images, n], if only boxes of one label suppress each other.
        iou_threshold: a number or a traced scalar.
        most: when to stop.
    """
    size, n = scores.shape
    if n == 0 or most == 0:
        return jnp.zeros((size, most), jnp.int32), jnp.zeros(size, jnp.int32)
    boxes = jnp.where(jnp.isneginf(scores)[..., None], 0, boxes)
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    area = jnp.maximum(area, 0)  # of boxes turned round, which overlap nothing
    columns = [*jnp.moveaxis(boxes, -1, 0), area]
    label = jnp.zeros((size, n), jnp.int32) if labels is None else labels
    planes = jnp.stack([jnp.take_along_axis(x, order, axis=1) for x in columns], axis=1)
    label = jnp.take_along_axis(label, order, axis=1)
    num = jnp.sum(~jnp.isneginf(scores), axis=1, dtype=jnp.int32)
    threshold = jnp.broadcast_to(as_float32(iou_threshold), (size,))
    by_image = _batched(most, labels is not None)
    return by_image(planes, label, num, threshold)


def _batched(most: int, is_labelled: bool) -> Any:
    """`_visit` of images, to which `vmap` adds more images in place of a loop's own."""

    @custom_vmap
    def visit(planes: Array, label: Array, num: Array, threshold: Array) -> Any:
        return _visit(planes, label, num, threshold, most, is_labelled)

    @visit.def_vmap
    def more(axis_size: int, in_batched: Sequence[bool], *args: Array) -> Any:
        full = [
            arg if batched else jnp.broadcast_to(arg[None], (axis_size, *arg.shape))
            for arg, batched in zip(args, in_batched, strict=True)
        ]
        place, count = visit(*(x.reshape(-1, *x.shape[2:]) for x in full))
        shape = full[2].shape  # of the number of candidates: [axis, images]
        return (place.reshape(*shape, most), count.reshape(shape)), (True, True)

    return visit


def _visit(
    planes: Array,
    label: Array,
    num: Array,
    threshold: Array,
    most: int,
    is_labelled: bool,
) -> tuple[Array, Array]:
    """The loop over tiles.

    Args:
        planes: [images, 5, n]: left, top, right, bottom, area, in the order of visits.
        label: [images, n], equal ones in one piece, ascending.
        num: [images], how many of the first are candidates.
        threshold: [images].
        most: when to stop.
        is_labelled: whether labels matter.
    """
    size, _, n = planes.shape
    slab = min(_SLAB, -(-most // _TILE) * _TILE)
    # Of one slab alone, not cut from more, XLA's CPU compiler makes a loop that takes
    # seven times as long.
    room = max(-(-most // slab), 2) * slab
    end = -(-n // _TILE) * _TILE - n
    planes = jnp.pad(planes, ((0, 0), (0, 0), (0, end)))
    label = jnp.pad(label, ((0, 0), (0, end)))
    image, column = _rows(size), _columns(_TILE)
    is_before = (column > column.T)[None]

    share = threshold / (1 + threshold)

    def same(a: Array, b: Array) -> Array:
        """[images, of a, of b]."""
        return a[..., None] == b[:, None]

    def overlaps(a: tuple[Array, Array], b: tuple[Array, Array]) -> Array:
        """[images, of a, of b]."""
        over = _exceeds(a[0][..., None], b[0][:, :, None], threshold[:, None, None])
        return over & same(a[1], b[1]) if is_labelled else over

    def has_more(state: Any) -> Array:
        tile, count, *_ = state
        return jnp.any((count < most) & (tile * _TILE < num))

    def visit(state: Any) -> Any:
        tile, count, kept, kept_label, places = state
        mine = (
            lax.dynamic_slice_in_dim(planes, tile * _TILE, _TILE, axis=2),
            lax.dynamic_slice_in_dim(label, tile * _TILE, _TILE, axis=1),
        )
        place = tile * _TILE + column
        margin = _MARGIN * mine[0][:, None, 4]

        def better(i: Array) -> tuple[Array, Array]:
            return (
                lax.dynamic_slice_in_dim(kept, i * slab, slab, axis=2),
                lax.dynamic_slice_in_dim(kept_label, i * slab, slab, axis=1),
            )

        def compare(i: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
            slab = better(i)
            gap = _gap(slab[0][..., None], mine[0][:, :, None], share[:, None, None])
            does, may = gap > margin, ~(gap < -margin)  # NaN may
            if is_labelled:
                does, may = (x & same(slab[1], mine[1]) for x in (does, may))
            does, may = _any_of_both(does, may)
            return state[0] | does, state[1] | may

        def compare_exactly(i: Array, dead: Array) -> Array:
            return dead | jnp.any(overlaps(better(i), mine), axis=1)

        first: Any = 0
        if is_labelled:  # kept boxes of lower labels are done with
            done = jnp.sum(kept_label < mine[1][:, :1], axis=1)
            first = jnp.min(done) // slab
        last = -(-jnp.max(jnp.minimum(count, most)) // slab)
        padding = place >= num[:, None]
        dead, may = lax.fori_loop(first, last, compare, (padding, padding & False))
        is_close = jnp.any(may & ~dead & (mine[0][:, 4] > 0))
        exact_last = jnp.where(is_close, last, first)
        dead = lax.fori_loop(first, exact_last, compare_exactly, dead)
        alive = ~dead & (count < most)[:, None]

        def settle(state: Any) -> Any:
            keep, _ = state
            # Boxes that are out get an infinite area: as fast as overlaps can be read
            # from memory, they are computed anew, if they are not the same each round.
            area = jnp.where(keep, mine[0][:, 4], jnp.inf)
            better = jnp.concatenate([mine[0][:, :4], area[:, None]], axis=1), mine[1]
            new = alive & ~jnp.any(overlaps(better, mine) & is_before, axis=1)
            return new, jnp.any(new != keep)

        start = alive, jnp.any(alive)
        keep, _ = lax.while_loop(lambda state: state[1], settle, start)
        slot = count[:, None] + jnp.cumsum(keep, axis=1, dtype=jnp.int32) - 1
        slot = jnp.where(keep, slot, room)  # which drops the others
        kept = kept.at[image, :, slot].set(jnp.swapaxes(mine[0], 1, 2), mode="drop")
        kept_label = kept_label.at[image, slot].set(mine[1], mode="drop")
        places = places.at[image, slot].set(place, mode="drop")
        count = count + jnp.sum(keep, axis=1, dtype=jnp.int32)
        return tile + 1, count, kept, kept_label, places

    none = 0 * num[:, None]  # which, inside `shard_map`, differs from device to device
    state = (
        jnp.int32(0),
        none[:, 0],
        jnp.broadcast_to(none[..., None].astype(jnp.float32), (size, 5, room)),
        jnp.broadcast_to(none + _NO_LABEL, (size, room)),
        jnp.broadcast_to(none, (size, room)),
    )
    _, count, _, _, places = lax.while_loop(has_more, visit, state)
    return places[:, :most], jnp.minimum(count, most)


def _exceeds(a: Array, b: Array, threshold: Array) -> Array:
    """IoU > threshold, of planes on axis 1; False for two boxes without area, 0 / 0."""
    width = jnp.minimum(a[:, 2], b[:, 2]) - jnp.maximum(a[:, 0], b[:, 0])
    height = jnp.minimum(a[:, 3], b[:, 3]) - jnp.maximum(a[:, 1], b[:, 1])
    inter = jnp.maximum(width, 0) * jnp.maximum(height, 0)
    return inter / (a[:, 4] + b[:, 4] - inter) > threshold


def _gap(a: Array, b: Array, share: Array) -> Array:
    """Above zero where IoU > threshold, up to rounding: share = threshold / (1 + threshold).

    Near zero the intersection, which no box's area is below, outweighs what is subtracted,
    so that errors are a few units in the last place of either area.
    """
    width = jnp.minimum(a[:, 2], b[:, 2]) - jnp.maximum(a[:, 0], b[:, 0])
    height = jnp.minimum(a[:, 3], b[:, 3]) - jnp.maximum(a[:, 1], b[:, 1])
    inter = jnp.maximum(width, 0) * height
    return inter - (share * a[:, 4] + share * b[:, 4])


def _any_of_both(a: Array, b: Array) -> tuple[Array, Array]:
    """Of either over axis 1, in one pass: two would compute what leads to them twice."""
    no = np.False_
    either = lambda x, y: (x[0] | y[0], x[1] | y[1])  # noqa: E731
    both: tuple[Array, Array] = lax.reduce((a, b), (no, no), either, (1,))
    return both


def candidates(boxes: Array, scores: Array, mask: Array | None) -> Array:
    """The scores in float32, -inf for what is no candidate."""
    is_one = jnp.all(jnp.isfinite(boxes), axis=-1) & ~jnp.isnan(scores)
    is_one = is_one if mask is None else is_one & mask
    scores = lax.stop_gradient(jnp.asarray(scores).astype(jnp.float32))
    return jnp.where(is_one, scores, -jnp.inf)


def _flat(boxes: Array, *others: Array) -> tuple[list[Array], tuple[int, ...]]:
    """All with one axis of images in front, and the axes that it stands for."""
    batch = tuple(boxes.shape[:-2])
    size = math.prod(batch)
    boxes = lax.stop_gradient(jnp.asarray(boxes).astype(jnp.float32))
    flat: list[Array] = [boxes.reshape(size, *boxes.shape[-2:])]
    flat.extend(jnp.reshape(x, (size, x.shape[-1])) for x in others)
    return flat, batch


def _outputs(
    order: Array, place: Array, count: Array, k: int, batch: tuple[int, ...]
) -> tuple[Array, Array]:
    _size, n = order.shape
    extra = ((0, 0), (0, k - place.shape[1]))
    valid = _columns(k) < count[:, None]
    place = jnp.where(valid, jnp.pad(place, extra), n)
    indices = place
    if n:
        indices = jnp.take_along_axis(order, place, axis=1, mode="fill", fill_value=n)
    return indices.reshape(*batch, k), valid.reshape(*batch, k)


def _rows(size: int) -> Array:
    return jnp.arange(size, dtype=jnp.int32)[:, None]


def _columns(size: int) -> Array:
    return jnp.arange(size, dtype=jnp.int32)[None]


def as_float32(threshold: Scalar) -> Array:
    """The largest float32 that is not above the threshold.

    A float32 lies above the real number if and only if it lies above this one.
    """
    if not isinstance(threshold, Number):
        return jnp.asarray(threshold).astype(jnp.float32)
    near = np.float32(threshold)
    below = np.nextafter(near, np.float32(-np.inf))
    return jnp.float32(below if float(near) > threshold else near)


def check_suppression(iou_threshold: Scalar, max_outputs: int) -> None:
    """Raises unless the threshold is in [0, 1] and the number not negative."""
    if isinstance(iou_threshold, Number) and not 0 <= iou_threshold <= 1:
        raise ValueError(f"iou_threshold must be in [0, 1], got {iou_threshold}")
    if max_outputs < 0:
        raise ValueError(f"max_outputs must not be negative, got {max_outputs}")
