"""What the losses of label maps agree on: which pixels count, and shares of a whole.

Pixels that do not count are given class 0 and finite logits, so that neither a NaN nor an
index out of range is ever differentiated.
"""

import jax.numpy as jnp

from jaxml.parallel.collectives import pmean
from jaxml.typing import Array, Bool, Float, Int


def label_map(
    logits: Float[Array, "*batch classes"],
    labels: Int[Array, "*batch"],
    mask: Bool[Array, "..."] | None,
    ignore_label: int | None,
) -> tuple[Float[Array, "*batch classes"], Int[Array, "*batch"], Bool[Array, "*batch"]]:
    """Logits in float32 or wider, labels that are classes, and which of them count.

    Logits are NaN where a label that counts is no class.
    """
    if logits.shape[:-1] != labels.shape:
        raise ValueError(
            "labels must have the shape of the logits without their classes, "
            f"got {labels.shape} and {logits.shape}"
        )
    keep = kept(labels, mask, ignore_label)
    labels = labels.astype(jnp.int32)
    known = (labels >= 0) & (labels < logits.shape[-1])
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    logits = jnp.where(keep[..., None], logits, 0.0)
    logits = jnp.where((known | ~keep)[..., None], logits, jnp.nan)
    return logits, jnp.where(known & keep, labels, 0), keep


def kept(
    labels: Array, mask: Bool[Array, "..."] | None, ignore_label: int | None
) -> Bool[Array, "..."]:
    """True where a pixel counts; the mask speaks of the leading axes."""
    labels = jnp.asarray(labels)
    keep = jnp.ones(labels.shape, bool)
    if ignore_label is not None:
        keep = labels != ignore_label
    if mask is None:
        return keep
    if mask.shape != labels.shape[: mask.ndim]:
        raise ValueError(
            "the mask's axes must be the leading axes of the labels, "
            f"got mask {mask.shape} and labels {labels.shape}"
        )
    mask = jnp.asarray(mask).astype(bool)
    return keep & mask.reshape(mask.shape + (1,) * (labels.ndim - mask.ndim))


def share(values: Array, counts: Array, axis_name: str | None) -> Float[Array, ""]:
    """Sum of the values over the sum of the counts, zero if there is none.

    The mean over the devices of what this returns is the share of all.
    """
    count = pmean(jnp.sum(counts), axis_name)
    some = count > 0
    return jnp.where(some, jnp.sum(values) / jnp.where(some, count, 1.0), 0.0)
