"""Lovasz losses: the Jaccard index (IoU) itself, made differentiable.

One minus the Jaccard index of a class is a submodular function of the set of wrong pixels.
Its Lovasz extension is convex and runs through all its values: with the errors e sorted
from the largest, e_1 >= e_2 >= ...,

    L = sum_i e_i (J({1 .. i}) - J({1 .. i - 1})),      J = 1 - intersection / union,

where the first i pixels are taken to be wrong. For a softmax e = |g - p| of each class, for
a binary margin e = max(0, 1 - y f).

The trap is the difference of two J: for a large image it is a millionth of either, and in
float32 its last digits are noise. Here it is written out: 1 / union for a pixel of the
class, and intersection / (union (union - 1)) for one that is not.

Reference: Berman, Rannen Triki and Blaschko, "The Lovasz-Softmax loss: A tractable
surrogate for the optimization of the intersection-over-union measure in neural networks",
CVPR 2018, https://arxiv.org/abs/1705.08790 (equations 8 to 12, algorithm 1).
"""

import jax
import jax.numpy as jnp

from jaxml.export import export
from jaxml.losses.label_map import kept, label_map, share
from jaxml.parallel.collectives import all_gather
from jaxml.typing import Array, Bool, Float, Int


@export("losses.lovasz_softmax", since="0.1")
def lovasz_softmax(
    logits: Float[Array, "batch *space classes"],
    labels: Int[Array, "batch *space"],
    *,
    mask: Bool[Array, "batch *_"] | None = None,
    ignore_label: int | None = 255,
    per_image: bool = False,
    present: bool = True,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """The Lovasz extension of the mean Jaccard loss, in [0, 1]; zero if no pixel counts.

    Args:
        logits: of a softmax over classes, in any precision; the arithmetic is float32 or
            wider.
        labels: classes 0, 1 ...; a label that is neither a class nor `ignore_label`
            makes the loss NaN, unless masked.
        mask: True = count it: [batch], or with axes of space, as far as given.
        ignore_label: the label of pixels without an answer; None if there is none.
        per_image: the mean over images of which a pixel counts; False takes the global
            batch for one image, as the measure of a data set does.
        present: average over the classes that occur; False over all.
        axis_name: mesh axis the batch is split over, or None: the mean over the devices
            of what this returns is the loss of the global batch.

    Raises:
        ValueError: if shapes do not fit one another.

    >>> logits = jnp.log(jnp.array([[[0.75, 0.25], [0.5, 0.5]]]))
    >>> float(lovasz_softmax(logits, jnp.array([[0, 1]])))
    0.5
    """
    logits, labels, keep = label_map(logits, labels, mask, ignore_label)
    classes = logits.shape[-1]
    p = jax.nn.softmax(logits).reshape(len(logits), -1, classes)
    counted: Array = keep.reshape(len(keep), -1)
    own: Array = labels.reshape(len(labels), -1, 1) == jnp.arange(classes)[None, None]
    own &= counted[..., None]
    errors: Array = jnp.abs(own - p)
    if not per_image:
        errors, own, counted = (
            all_gather(x, axis_name).reshape(1, -1, *x.shape[2:])
            for x in (errors, own, counted)
        )
        axis_name = None
    one_class = jax.vmap(_extension, in_axes=(1, 1, None), out_axes=0)
    losses = jax.vmap(one_class)(errors, own, counted)  # [batch, classes]
    counts = jnp.any(own, axis=1) if present else jnp.any(counted, axis=1)[:, None]
    counts = jnp.broadcast_to(counts, losses.shape).astype(losses.dtype)
    total = jnp.sum(counts, axis=1)
    some = (total > 0).astype(losses.dtype)
    means = jnp.sum(losses * counts, axis=1) / jnp.maximum(total, 1)
    return share(means, some, axis_name)


@export("losses.lovasz_hinge", since="0.1")
def lovasz_hinge(
    logits: Float[Array, "batch *space"],
    labels: Int[Array, "batch *space"] | Bool[Array, "batch *space"],
    *,
    mask: Bool[Array, "batch *_"] | None = None,
    ignore_label: int | None = 255,
    per_image: bool = True,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """The Lovasz extension of the Jaccard loss of one class, over hinge errors.

    Args:
        logits: above zero where the class is said to be, in any precision; the
            arithmetic is float32 or wider.
        labels: 1 where the class is, 0 where it is not; another label that is not
            `ignore_label` makes the loss NaN, unless masked.
        mask: see `lovasz_softmax`, also for what follows.
        ignore_label: the label of pixels without an answer; None if there is none.
        per_image: the mean over images of which a pixel counts; False takes the global
            batch for one image.
        axis_name: mesh axis the batch is split over, or None.

    Raises:
        ValueError: if shapes do not fit one another.

    >>> float(lovasz_hinge(jnp.array([[2.0, 0.5]]), jnp.array([[1, 0]])))
    0.75
    """
    if logits.shape != labels.shape:
        raise ValueError(
            f"logits and labels must have one shape, got {logits.shape} and "
            f"{labels.shape}"
        )
    labels = jnp.asarray(labels).astype(jnp.int32)
    keep = kept(labels, mask, ignore_label)
    f = jnp.where(keep, logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), 0)
    f = jnp.where(keep & (labels != 0) & (labels != 1), jnp.nan, f)
    errors: Array = jnp.maximum(1 - jnp.where(labels == 1, f, -f), 0)
    own: Array = (labels == 1) & keep
    errors, own, counted = (x.reshape(len(x), -1) for x in (errors, own, keep))
    if not per_image:
        errors, own, counted = (
            all_gather(x, axis_name).reshape(1, -1) for x in (errors, own, counted)
        )
        axis_name = None
    some = jnp.any(counted, axis=1).astype(errors.dtype)
    return share(jax.vmap(_extension)(errors, own, counted), some, axis_name)


def _extension(
    errors: Float[Array, "pixels"], own: Bool[Array, "pixels"], keep: Array
) -> Float[Array, ""]:
    """The sum over sorted errors; pixels that do not count come last and cost nothing."""
    errors = jnp.where(keep, errors, 0.0)
    # The order is constant almost everywhere, so nothing is differentiated through it.
    key = jnp.where(keep, -errors, jnp.inf)
    order = jnp.argsort(jax.lax.stop_gradient(key))
    own = own[order]
    size, number = jnp.sum(own), jnp.arange(len(own))
    hits = jnp.cumsum(own)
    intersection = (size - hits).astype(errors.dtype)
    union = (size + number + 1 - hits).astype(errors.dtype)
    outside = intersection / (union * jnp.maximum(union - 1, 1))
    steps = jnp.where(own, 1 / union, outside)
    # Of an absent class the first wrong pixel is the whole loss.
    steps = jnp.where(size > 0, steps, (number == 0).astype(errors.dtype))
    return jnp.sum(errors[order] * steps)
