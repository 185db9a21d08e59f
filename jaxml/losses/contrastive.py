"""Contrastive losses over a batch of paired views.

NT-Xent asks each view to find its partner among all 2B - 1 other views of the batch:

    l(i, j) = -log exp(s(i, j) / t) / sum_{k != i} exp(s(i, k) / t),    s = cosine,

averaged over both directions of all B pairs. The positive stands in the denominator; only
the view itself is left out. The 2B x 2B similarities are never stored (see
`jaxml.losses.blockwise_similarity`). With the batch split over devices every view is compared with
the views of all devices, and gradients flow back through the gathered ones: cut them and
training goes on quietly, in a wrong direction.

Reference: Chen, Kornblith, Norouzi and Hinton, "A Simple Framework for Contrastive Learning
of Visual Representations", ICML 2020, https://arxiv.org/abs/2002.05709 (equation 1,
algorithm 1).
"""

import math

import jax.numpy as jnp

from jaxml.export import export
from jaxml.losses.blockwise_similarity import (
    Contrast,
    blockwise_similarity,
    contrast,
)
from jaxml.ops.similarity import inverse_norm, unit
from jaxml.parallel.collectives import all_gather, sample_positions
from jaxml.typing import Array, Float, Int


@export("losses.nt_xent", since="0.1")
def nt_xent(
    z1: Float[Array, "batch dim"],
    z2: Float[Array, "batch dim"],
    temperature: float,
    axis_name: str | None = None,
    *,
    chunk: int = 1024,
) -> Float[Array, ""]:
    """Normalised temperature-scaled cross-entropy, in nats.

    Args:
        z1: embeddings of one view, any scale.
        z2: embeddings of the other view, row for row.
        temperature: t > 0.
        axis_name: mesh axis the batch is split over, or None. The result is then this
            device's mean; the mean over the devices is the loss of the global batch.
        chunk: views that are compared with as many at once.

    Raises:
        ValueError: if the shapes differ or the temperature is not positive.
    """
    rows = nt_xent_rows(z1, z2, temperature, axis_name, chunk=chunk)
    return jnp.mean(rows.loss)


@export("losses.nt_xent_rows", since="0.1")
def nt_xent_rows(
    z1: Float[Array, "batch dim"],
    z2: Float[Array, "batch dim"],
    temperature: float,
    axis_name: str | None = None,
    *,
    chunk: int = 1024,
) -> Contrast:
    """NT-Xent of every local view, and what it met.

    Arguments and errors are those of `nt_xent`; there are 2 batch rows.
    """
    _check(z1, z2, temperature)
    z1, z2 = z1.astype(jnp.float32), z2.astype(jnp.float32)
    scale1, scale2 = (inverse_norm(z) / math.sqrt(temperature) for z in (z1, z2))
    # The partner is left out here and added below: so the loss is exact near zero too.
    others = blockwise_similarity(
        jnp.concatenate([z1, z2]),
        x_scale=jnp.concatenate([scale1, scale2]),
        skip=jnp.tile(sample_positions(len(z1), axis_name), 2),
        chunk=chunk,
        axis_name=axis_name,
    )
    partner = jnp.tile(jnp.sum(z1 * z2, axis=-1) * scale1 * scale2, 2)
    # What differs by rounding alone does not count: equal views find nobody.
    return contrast(others, partner, 1e-5 / temperature)


@export("losses.nt_xent_logits", since="0.1")
def nt_xent_logits(
    z1: Float[Array, "batch dim"],
    z2: Float[Array, "batch dim"],
    temperature: float,
    axis_name: str | None = None,
) -> tuple[Float[Array, "rows columns"], Int[Array, "rows"]]:
    """The similarities NT-Xent classifies, and which column is right, all stored.

    Returns:
        Logits of the local views [2 batch] against all views [2 batch * devices], with
        -inf where a view meets itself, and each row's partner.
    """
    _check(z1, z2, temperature)
    z1, z2 = (unit(z.astype(jnp.float32)) for z in (z1, z2))
    others = jnp.concatenate([all_gather(z1, axis_name), all_gather(z2, axis_name)])
    # Half precision here would cost more than it saves: t divides the rounding error.
    similarity = jnp.dot(jnp.concatenate([z1, z2]), others.T, precision="highest")
    first = sample_positions(len(z1), axis_name)
    second = first + len(others) // 2
    own, partners = jnp.concatenate([first, second]), jnp.concatenate([second, first])
    is_own = own[:, None] == jnp.arange(len(others))[None, :]
    return jnp.where(is_own, -jnp.inf, similarity / temperature), partners


def _check(z1: Array, z2: Array, temperature: float) -> None:
    if z1.shape != z2.shape:
        raise ValueError(f"z1 and z2 must have one shape, got {z1.shape}, {z2.shape}")
    if z1.shape[0] == 0:
        raise ValueError("the batch must hold at least one pair, got none")
    if not temperature > 0:
        raise ValueError(f"the temperature must be positive, got {temperature}")
