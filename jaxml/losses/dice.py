"""Soft Dice: the overlap of a predicted region with the true one, as a loss.

For the probabilities p and the indicator g of a class, over the pixels of a region,

    L = 1 - (2 sum p g + s) / (sum p^q + sum g^q + s),      q = 2 (V-Net) or 1,

averaged over the classes. A small object weighs as much as a large one, which is what
cross-entropy lacks. The trap is the region: over the whole batch, an object that one
image lacks costs nothing there; image by image, an absent class is 0 / 0, and the
smoothing s decides alone what a few false pixels cost.

Reference: Milletari, Navab and Ahmadi, "V-Net: Fully Convolutional Neural Networks for
Volumetric Medical Image Segmentation", 3DV 2016, https://arxiv.org/abs/1606.04797
(section 3, s = 0; for several classes here the mean over them).
"""

import jax
import jax.numpy as jnp

from jaxml.export import export
from jaxml.losses.label_map import label_map, share
from jaxml.parallel.collectives import psum
from jaxml.typing import Array, Bool, Float, Int


@export("losses.soft_dice", since="0.1")
def soft_dice(
    logits: Float[Array, "batch *space classes"],
    labels: Int[Array, "batch *space"],
    *,
    mask: Bool[Array, "batch *_"] | None = None,
    ignore_label: int | None = 255,
    per_image: bool = True,
    squared: bool = True,
    smooth: float = 1.0,
    background: bool = True,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """One minus the soft Dice coefficient, in [0, 1]; zero if no pixel counts.

    Args:
        logits: of a softmax over classes, in any precision; the arithmetic is float32 or
            wider.
        labels: classes 0, 1 ...; a label that is neither a class nor `ignore_label`
            makes the loss NaN, unless masked.
        mask: True = count it: [batch], or with axes of space, as far as given.
        ignore_label: the label of pixels without an answer; None if there is none.
        per_image: the mean over images of which a pixel counts; False takes the global
            batch for one image.
        squared: V-Net's denominator; False has sums of p and g.
        smooth: s; with 0, a class that is neither there nor predicted costs nothing.
        background: whether class 0 is among the classes.
        axis_name: mesh axis the batch is split over, or None: the mean over the devices
            of what this returns is the loss of the global batch.

    Raises:
        ValueError: if shapes do not fit one another, no class is left, or `smooth` is
            negative.

    >>> logits = 20 * jax.nn.one_hot(jnp.array([[0, 1, 1]]), 2)
    >>> round(float(soft_dice(logits, jnp.array([[0, 1, 1]]))), 4)
    0.0
    """
    if not smooth >= 0:
        raise ValueError(f"smooth must not be negative, got {smooth}")
    if logits.shape[-1] < 2 - background:
        raise ValueError(f"a class must be left, got {logits.shape[-1]} in all")
    logits, labels, keep = label_map(logits, labels, mask, ignore_label)
    logits = logits.reshape(len(logits), -1, logits.shape[-1])
    keep = keep.reshape(len(keep), -1, 1)
    p = jnp.where(keep, jax.nn.softmax(logits), 0.0)
    g = jax.nn.one_hot(labels.reshape(len(labels), -1), p.shape[-1], dtype=p.dtype)
    g = jnp.where(keep, g, 0.0)
    if not background:
        p, g = p[..., 1:], g[..., 1:]
    sizes = p * p + g if squared else p + g  # g is its own square
    overlap, size = jnp.sum(p * g, axis=1), jnp.sum(sizes, axis=1)  # [batch, classes]
    counted = jnp.any(keep, axis=(1, 2))
    if not per_image:
        overlap, size, counted = psum(
            jax.tree.map(lambda x: jnp.sum(x, 0)[None], (overlap, size, counted)),
            axis_name,
        )
    below = size + smooth
    some = below != 0  # also where it is NaN
    dice = jnp.where(some, (2 * overlap + smooth) / jnp.where(some, below, 1.0), 1.0)
    counted = (counted > 0).astype(p.dtype)
    return share((1 - jnp.mean(dice, axis=1)) * counted, counted, axis_name)
