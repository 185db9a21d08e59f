"""Classification accuracy: the share of samples whose label is among the first k guesses.

Classes are ranked by their logits, and at equal logits the lower class number comes
first, as `argmax` has it: a collapsed network that answers one constant scores chance,
not one. A row with a NaN has no ranking, and a label that is no class cannot be guessed:
both count as wrong and not as absent, so that a diverged run cannot look like a good one.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxml.export import export
from jaxml.method import Batch
from jaxml.metrics.metric import Accumulator, Metric, mean_of, sample_mask
from jaxml.typing import Array, Bool, Float, Int


def _itself(outputs: Any) -> Any:
    return outputs


@export("metrics.top_k_correct", since="0.1")
def top_k_correct(
    logits: Float[Array, "*batch classes"], labels: Int[Array, "*batch"], k: int = 1
) -> Bool[Array, "*batch"]:
    """Whether each label is among the k classes of the largest logits.

    Raises:
        ValueError: if k is not in [1, classes].

    >>> top_k_correct(jnp.array([[3.0, 2.0, 1.0]]), jnp.array([1]), k=2).tolist()
    [True]
    """
    classes = logits.shape[-1]
    if not 1 <= k <= classes:
        raise ValueError(f"k must be in [1, {classes} classes], got {k}")
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)[..., None]
    column = jnp.arange(classes).reshape((1,) * (logits.ndim - 1) + (classes,))
    own = jnp.sum(jnp.where(column == labels, logits, 0), axis=-1, keepdims=True)
    ahead = (logits > own) | ((logits == own) & (column < labels))
    known = jnp.squeeze((labels >= 0) & (labels < classes), -1)
    ranked = ~jnp.any(jnp.isnan(logits), axis=-1)
    return (jnp.sum(ahead, axis=-1) < k) & known & ranked


@export("metrics.top_k_accuracy", since="0.1")
def top_k_accuracy(
    k: int = 1,
    *,
    label: str = "label",
    logits: Callable[[Any], Float[Array, "*batch classes"]] = _itself,
) -> Metric:
    """Share of samples, in [0, 1], whose label is among the k largest logits.

    Args:
        k: how many guesses a sample has.
        label: name of the labels in the batch, [batch] or, per pixel or token,
            [batch, ...].
        logits: finds the logits in the method's outputs.

    The number is called `accuracy`, or `top_5_accuracy` for k = 5.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")

    def correct(outputs: Any, batch: Batch) -> Bool[Array, "..."]:
        return top_k_correct(logits(outputs), batch[label], k)

    return mean_of("accuracy" if k == 1 else f"top_{k}_accuracy", correct)


@export("metrics.confusion", since="0.1")
def confusion(
    num_classes: int,
    *,
    class_names: Sequence[str] | None = None,
    label: str = "label",
    logits: Callable[[Any], Float[Array, "*batch classes"]] = _itself,
) -> Metric:
    """The confusion matrix, and what is read off it.

    The accumulator is the matrix itself, [true class, guessed class], with one row more
    for labels that are no class and one column more for rows that hold a NaN. A cell
    counts to 2**32 - 1.

    Computes, in [0, 1]:
        accuracy: share of samples on the diagonal.
        balanced_accuracy: mean recall of the classes that occur.
        macro_f1: mean of 2 TP / (2 TP + FP + FN) over the classes that occur or were
            guessed.
        mean_iou: mean of TP / (TP + FP + FN) over the same classes.
        recall/<name>: of each class, if `class_names` are given; NaN where a class does
            not occur.

    Raises:
        ValueError: if the number of names is not `num_classes`; (update) if the logits
            have other than `num_classes` columns; (compute) if nothing was counted.
    """
    if class_names is not None and len(class_names) != num_classes:
        raise ValueError(
            f"class_names must name {num_classes} classes, got {len(class_names)}"
        )

    def init() -> Accumulator:
        return jnp.zeros((num_classes + 1, num_classes + 1), jnp.uint32)

    def update(total: Accumulator, outputs: Any, batch: Batch) -> Accumulator:
        scores, labels = jnp.asarray(logits(outputs)), jnp.asarray(batch[label])
        if scores.shape != (*labels.shape, num_classes):
            raise ValueError(
                f"logits must have shape {(*labels.shape, num_classes)}, "
                f"got {scores.shape}"
            )
        keep = sample_mask(batch, labels.shape)
        known = (labels >= 0) & (labels < num_classes)
        ranked = ~jnp.any(jnp.isnan(scores), axis=-1)
        row = jnp.where(known, labels, num_classes)
        column = jnp.where(ranked, jnp.argmax(scores, axis=-1), num_classes)
        return total.at[row, column].add(keep.astype(jnp.uint32))

    def compute(total: Accumulator) -> Mapping[str, float]:
        counts = np.asarray(jax.device_get(total), np.float64)
        if counts.sum() == 0:
            raise ValueError("confusion must count a sample, got none")
        occurs = counts.sum(axis=1)[:-1]
        hits = np.diag(counts)[:-1]
        seen = occurs + counts.sum(axis=0)[:-1]  # 2 TP + FP + FN
        recall = _quotient(hits, occurs)
        values = {
            "accuracy": hits.sum() / counts.sum(),
            "balanced_accuracy": _mean(recall),
            "macro_f1": _mean(_quotient(2 * hits, seen)),
            "mean_iou": _mean(_quotient(hits, seen - hits)),
        }
        for name, value in zip(class_names or (), recall, strict=False):
            values[f"recall/{name}"] = value
        return {name: float(value) for name, value in values.items()}

    return Metric(init, update, compute)


def _quotient(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of counts: NaN where nothing was counted."""
    return np.divide(a, b, out=np.full_like(a, np.nan), where=b > 0)


def _mean(values: np.ndarray) -> float:
    """Over the classes that have a value; NaN if none has."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
