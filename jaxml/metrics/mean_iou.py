"""Mean intersection over union, from one confusion matrix of all pixels.

With n_ij the pixels of class i that were called j, and t_i all of class i,

    pixel accuracy            sum_i n_ii / sum_i t_i
    mean accuracy             mean_i n_ii / t_i
    mean IoU                  mean_i n_ii / (t_i + sum_j n_ji - n_ii)
    frequency weighted IoU    sum_i t_i IoU_i / sum_i t_i.

The trap is the order of sum and quotient: IoU is a quotient of sums over the whole split,
and the mean of the images' IoUs, or of the batches', is another and larger number. The
accumulator is the matrix itself, so that batches and devices add up to the whole.

Reference: Long, Shelhamer and Darrell, "Fully Convolutional Networks for Semantic
Segmentation", CVPR 2015, https://arxiv.org/abs/1411.4038 (section 5, metrics; a class that
neither occurs nor is guessed has no IoU here, and is left out of the mean).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxml.export import export
from jaxml.method import Batch
from jaxml.metrics.metric import Accumulator, Metric, sample_mask
from jaxml.typing import Array


def _itself(outputs: Any) -> Any:
    return outputs


@export("metrics.confusion_matrix", since="0.1")
def confusion_matrix(
    predicted: Array,
    labels: Array,
    num_classes: int,
    mask: Array | None = None,
) -> Array:
    """How many pixels of each class were called what: uint32 [true, predicted].

    One row and one column more, the last, are for what is no class.

    Args:
        predicted: classes, integers of any shape.
        labels: the true ones, of the same shape.
        num_classes: static, so that the result has a known shape.
        mask: of the same shape, True = count it.

    Raises:
        ValueError: if the shapes differ.

    >>> confusion_matrix(jnp.array([0, 1, 1]), jnp.array([0, 0, 1]), 2).tolist()
    [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    """
    predicted, labels = jnp.asarray(predicted), jnp.asarray(labels)
    if predicted.shape != labels.shape or (
        mask is not None and mask.shape != labels.shape
    ):
        shapes = [x.shape for x in (predicted, labels, mask) if x is not None]
        raise ValueError(
            f"predictions, labels and mask must have one shape, got {shapes}"
        )
    row, column = (
        jnp.where((x >= 0) & (x < num_classes), x.astype(jnp.int32), num_classes)
        for x in (labels, predicted)
    )
    counts = jnp.ones(labels.shape, jnp.uint32)
    if mask is not None:
        counts = jnp.asarray(mask).astype(jnp.uint32)
    size = num_classes + 1
    flat = jnp.zeros(size * size, jnp.uint32)
    cell = (row * size + column).reshape(-1)
    flat = flat.at[cell].add(counts.reshape(-1), mode="promise_in_bounds")
    return flat.reshape(size, size)


@export("metrics.mean_iou", since="0.1")
def mean_iou(
    num_classes: int,
    *,
    ignore_label: int | None = 255,
    class_names: Sequence[str] | None = None,
    label: str = "label",
    predicted: Callable[[Any], Array] = _itself,
) -> Metric:
    """The four measures of label maps, in [0, 1], over every pixel that counts.

    Computes `mean_iou`, `pixel_accuracy`, `mean_accuracy`, `weighted_iou` and, if there
    are `class_names`, `iou/<name>` (NaN where a class neither occurs nor was guessed).

    Args:
        num_classes: with the background, if that is a class.
        ignore_label: the label of pixels without an answer; None if there is none.
        class_names: one for each class.
        label: name of the label map in the batch. `batch["mask"]` speaks of its leading
            axes.
        predicted: finds the predicted classes in the method's outputs.

    A cell of the matrix counts to 2**32 - 1.

    Raises:
        ValueError: if the number of names is not `num_classes`; (compute) if nothing was
            counted, or a label was neither a class nor `ignore_label`.
    """
    if class_names is not None and len(class_names) != num_classes:
        raise ValueError(
            f"class_names must name {num_classes} classes, got {len(class_names)}"
        )

    def init() -> Accumulator:
        return jnp.zeros((num_classes + 1, num_classes + 1), jnp.uint32)

    def update(total: Accumulator, outputs: Any, batch: Batch) -> Accumulator:
        labels = jnp.asarray(batch[label])
        keep = sample_mask(batch, labels.shape)
        if ignore_label is not None:
            keep &= labels != ignore_label
        return total + confusion_matrix(predicted(outputs), labels, num_classes, keep)

    def compute(total: Accumulator) -> Mapping[str, float]:
        counts = np.asarray(jax.device_get(total), np.float64)
        if counts.sum() == 0:
            raise ValueError("mean_iou must count a pixel, got none")
        if counts[-1].sum() > 0:
            raise ValueError(
                f"labels must be 0 to {num_classes - 1} or {ignore_label}, "
                f"got {counts[-1].sum():.0f} that are neither"
            )
        hits, occurs = np.diag(counts)[:-1], counts.sum(axis=1)[:-1]
        union = occurs + counts.sum(axis=0)[:-1] - hits
        iou, recall = _quotient(hits, union), _quotient(hits, occurs)
        values = {
            "mean_iou": np.nanmean(iou),
            "pixel_accuracy": hits.sum() / occurs.sum(),
            "mean_accuracy": np.nanmean(recall),
            "weighted_iou": np.nansum(occurs * iou) / occurs.sum(),
        }
        for name, value in zip(class_names or (), iou, strict=False):
            values[f"iou/{name}"] = value
        return {name: float(value) for name, value in values.items()}

    return Metric(init, update, compute)


def _quotient(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.full_like(a, np.nan), where=b > 0)
