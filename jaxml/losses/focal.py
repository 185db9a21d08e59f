"""Focal loss: cross-entropy that looks away from what is already right.

    FL = -a_t (1 - p_t)^gamma log p_t,      p_t = p if y = 1, 1 - p otherwise,

with a_t = alpha for y = 1 and 1 - alpha otherwise. Among a hundred thousand places of which
ten hold an object, the many easy ones no longer drown the few; gamma 0 is cross-entropy.

The trap is the normaliser: a detector divides by the number of *positive* places of the
global batch, not by that of all places, which would make the loss nearly zero. The other
is the head's bias: start it at -log((1 - pi) / pi) for pi = 0.01, or the first steps are
lost on the easy negatives.

Reference: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017,
https://arxiv.org/abs/1708.02002 (equations 4 and 5; section 4.1 for the normaliser and
the bias).
"""

import jax.numpy as jnp
import optax

from jaxml.export import export
from jaxml.losses.label_map import kept, share
from jaxml.parallel.collectives import axis_size, pmean
from jaxml.typing import Array, Bool, Float, Int

AVERAGES = ("entries", "positives")


@export("losses.sigmoid_focal", since="0.1")
def sigmoid_focal(
    logits: Float[Array, "batch *rest"],
    targets: Float[Array, "batch *rest"]
    | Int[Array, "batch *rest"]
    | Bool[Array, "batch *rest"],
    *,
    mask: Bool[Array, "batch *_"] | None = None,
    alpha: float | None = 0.25,
    gamma: float = 2.0,
    average: str = "entries",
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Focal loss of independent yes-or-no questions, in nats; zero if none counts.

    Args:
        logits: one per question, in any precision; the arithmetic is float32 or wider.
        targets: 1 or 0; values between are soft answers.
        mask: True = count it: [batch], or with more axes, as far as given.
        alpha: weight of the positives, or None for no weights at all.
        gamma: 2 in the paper; 0 is cross-entropy.
        average: "entries", the mean over all that count; "positives", the sum divided by
            the sum of the targets, or by 1 if that is less, as detectors do.
        axis_name: mesh axis the batch is split over, or None: the mean over the devices
            of what this returns is the loss of the global batch.

    Raises:
        ValueError: if shapes do not fit one another, gamma is negative, alpha is not in
            [0, 1], or the average is unknown.

    >>> round(float(sigmoid_focal(jnp.zeros((1, 1)), jnp.ones((1, 1)))), 4)
    0.0433
    """
    if logits.shape != targets.shape:
        raise ValueError(
            f"logits and targets must have one shape, got {logits.shape} and "
            f"{targets.shape}"
        )
    if not gamma >= 0 or not (alpha is None or 0 <= alpha <= 1):
        raise ValueError(
            f"gamma must be at least 0 and alpha in [0, 1], got {gamma} and {alpha}"
        )
    if average not in AVERAGES:
        raise ValueError(f"average must be one of {AVERAGES}, got {average!r}")
    keep = kept(targets, mask, None)
    wide = jnp.promote_types(logits.dtype, jnp.float32)
    logits = jnp.where(keep, logits.astype(wide), 0.0)
    targets = jnp.where(keep, targets.astype(wide), 0.0)
    losses = optax.sigmoid_focal_loss(logits, targets, alpha=alpha, gamma=gamma)
    losses = jnp.where(keep, losses, 0.0)
    if average == "entries":
        return share(losses, keep.astype(wide), axis_name)
    positives = pmean(jnp.sum(targets), axis_name)
    # One in all is that share of one per device.
    floor = 1 / axis_size(axis_name)
    return jnp.sum(losses) / jnp.maximum(positives, floor)
