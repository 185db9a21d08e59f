"""Cross-entropy of label maps: one class per pixel, some pixels without an answer.

    L = sum_x w(x) m(x) (-log softmax(logits(x))[label(x)]) / Z

m(x) is 0 where a pixel is to be ignored, and Z says what is averaged: the pixels that
count, their weights, or the images. The trap is Z on several devices: label maps differ
in how much they leave out, so that a mean of the devices' means is not the mean. Here Z is
that of the global batch.

The other trap is a label that is no class, the sign of a map read in the wrong numbering.
It is not ignored but makes the loss NaN, so that training stops where it happens.

Reference: Long, Shelhamer and Darrell, "Fully Convolutional Networks for Semantic
Segmentation", CVPR 2015, https://arxiv.org/abs/1411.4038 (section 4.3: not normalised,
"images" here); Ronneberger, Fischer and Brox, "U-Net: Convolutional Networks for Biomedical
Image Segmentation", MICCAI 2015, https://arxiv.org/abs/1505.04597 (equation 1: weights).
"""

import math

import jax.numpy as jnp
import optax

from jaxml.export import export
from jaxml.losses.label_map import label_map, share
from jaxml.typing import Array, Bool, Float, Int

AVERAGES = ("pixels", "weights", "images")


@export("losses.pixel_cross_entropy", since="0.1")
def pixel_cross_entropy(
    logits: Float[Array, "batch *space classes"],
    labels: Int[Array, "batch *space"],
    *,
    weights: Float[Array, "batch *space"] | None = None,
    class_weights: Float[Array, "classes"] | None = None,
    mask: Bool[Array, "batch *_"] | None = None,
    ignore_label: int | None = 255,
    average: str = "pixels",
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Cross-entropy in nats, averaged over what counts; zero if nothing does.

    Args:
        logits: in any precision; the arithmetic is float32 or wider.
        labels: classes 0, 1 ...; a label that is neither a class nor `ignore_label`
            makes the loss NaN, unless masked.
        weights: of every pixel, such as U-Net's border weights.
        class_weights: of every class; multiplied with `weights`.
        mask: True = count it: [batch], or with axes of space, as far as given.
        ignore_label: the label of pixels without an answer; None if there is none.
        average: "pixels", the mean over pixels that count; "weights", divided by their
            weights instead, as torch's class weights are; "images", the sum over pixels
            and the mean over images that have any.
        axis_name: mesh axis the batch is split over, or None: the mean over the devices
            of what this returns is the loss of the global batch.

    Raises:
        ValueError: if shapes do not fit one another or the average is unknown.

    >>> logits = jnp.zeros((1, 2, 3))
    >>> round(float(pixel_cross_entropy(logits, jnp.array([[2, 255]]))), 4)
    1.0986
    """
    if average not in AVERAGES:
        raise ValueError(f"average must be one of {AVERAGES}, got {average!r}")
    logits, labels, keep = label_map(logits, labels, mask, ignore_label)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    factors = jnp.ones_like(losses)
    if weights is not None:
        if weights.shape != labels.shape:
            raise ValueError(
                f"weights must have the shape of the labels {labels.shape}, "
                f"got {weights.shape}"
            )
        factors *= weights
    if class_weights is not None:
        if class_weights.shape != logits.shape[-1:]:
            raise ValueError(
                f"class_weights must be one for each of {logits.shape[-1]} classes, "
                f"got {class_weights.shape}"
            )
        factors *= jnp.asarray(class_weights)[labels]
    # where, not a product: what is ignored may be NaN, or infinite.
    losses = jnp.where(keep, factors * losses, 0.0)
    counts = keep.astype(losses.dtype)
    if average == "weights":
        counts = jnp.where(keep, factors, 0.0)
    elif average == "images":
        counts = jnp.max(counts.reshape(len(counts), math.prod(counts.shape[1:])), 1)
    return share(losses, counts, axis_name)
