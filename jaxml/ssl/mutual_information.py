"""Mutual information: exactly from counts, and bounded below by what a critic can tell.

    I(X; Y) = sum p(x, y) log p(x, y) / (p(x) p(y)),    in nats

A critic T(x, y) scores pairs drawn together (joint) and apart (product); each of these is
at most I, whatever the critic, and DV and NWJ reach it:

    DV        E_joint T - log E_product exp T                 best T = log ratio + any c
    NWJ       E_joint T - E_product exp(T - 1)                best T = log ratio + 1
    InfoNCE   log N - E -log (exp T_+ / sum_{j=1..N} exp T_j) best T = log ratio + c(y)
    JSD       E_joint -sp(-T) - E_product sp(T)               best T = log ratio

with sp the softplus. JSD bounds no I in nats (it is 2 JS(joint, product) - log 4 at best),
but it is the most stable to train with.

The traps. InfoNCE never exceeds log N: with N = 512 nobody can show more than 6.2 nats,
however much there is. DV of a small batch is biased upwards by the logarithm of a sample
mean, so that it may exceed I. And pairs of the product must not contain the joint ones:
leave the diagonal out (`split_scores`).

Reference: Poole, Ozair, van den Oord, Alemi and Tucker, "On Variational Bounds of Mutual
Information", ICML 2019, https://arxiv.org/abs/1905.06922 (equations 5, 8 and 10); Belghazi
et al., "MINE: Mutual Information Neural Estimation", ICML 2018,
https://arxiv.org/abs/1801.04062 (DV); Hjelm et al., "Learning deep representations by
mutual information estimation and maximization", ICLR 2019,
https://arxiv.org/abs/1808.06670 (equation 4: JSD); van den Oord et al.,
https://arxiv.org/abs/1807.03748 (InfoNCE).
"""

import math

import jax
import jax.numpy as jnp

from jaxml.export import export
from jaxml.parallel.collectives import all_gather, pmean, sample_positions
from jaxml.typing import Array, Float, Int


@export("ssl.discrete_mutual_information", since="0.1")
def discrete_mutual_information(
    counts: Float[Array, "x y"] | Int[Array, "x y"],
) -> Float[Array, ""]:
    """I of a table of counts or probabilities, in nats; an empty table has none.

    >>> round(float(discrete_mutual_information(jnp.eye(4))), 4)  # log 4
    1.3863
    """
    if counts.ndim != 2:
        raise ValueError(f"counts must be a table, got shape {counts.shape}")
    wide = jnp.promote_types(jnp.result_type(counts), jnp.float32)
    joint = jnp.asarray(counts, wide)
    joint = joint / jnp.maximum(jnp.sum(joint), jnp.finfo(wide).tiny)
    apart = jnp.sum(joint, axis=0)[None] * jnp.sum(joint, axis=1)[:, None]
    ratio = jnp.where(joint > 0, joint / jnp.where(joint > 0, apart, 1), 1)
    return jnp.sum(joint * jnp.log(ratio))


@export("ssl.gaussian_mutual_information", since="0.1")
def gaussian_mutual_information(
    correlation: float | Float[Array, ""], dim: int = 1
) -> Float[Array, ""]:
    """I of two Gaussian vectors, correlated coordinate by coordinate, in nats.

    >>> float(gaussian_mutual_information(0.0, 20))
    0.0
    """
    square = jnp.square(jnp.asarray(correlation, jnp.float32))
    return -dim / 2 * jnp.log1p(-square)


@export("ssl.split_scores", since="0.1")
def split_scores(
    scores: Float[Array, "batch everyone"], axis_name: str | None = None
) -> tuple[Float[Array, "batch"], Float[Array, "batch others"]]:
    """The joint pairs and those of the product, of a critic on all pairs of a batch.

    Args:
        scores: T(x_i, y_j) of the local x with the y of all devices, in their order.
        axis_name: mesh axis the batch is split over, or None.

    Raises:
        ValueError: if there are not as many columns as samples in the global batch.
    """
    devices = 1 if axis_name is None else jax.lax.axis_size(axis_name)
    if scores.shape[1] != len(scores) * devices:
        raise ValueError(
            f"scores must have {len(scores) * devices} columns, got {scores.shape}"
        )
    own = sample_positions(len(scores), axis_name)
    joint = jnp.take_along_axis(scores, own[:, None], axis=1)[:, 0]
    others = jnp.arange(scores.shape[1] - 1)[None]
    columns = others + (others >= own[:, None])
    return joint, jnp.take_along_axis(scores, columns, axis=1)


@export("ssl.donsker_varadhan", since="0.1")
def donsker_varadhan(
    joint: Float[Array, "*pairs"],
    product: Float[Array, "*other"],
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """The DV bound, in nats, of the global batch.

    Args:
        joint: T of pairs drawn together.
        product: T of pairs drawn apart.
        axis_name: mesh axis the pairs are split over, or None.
    """
    local = jax.nn.logsumexp(_wide(product))[None]
    everyone = all_gather(local, axis_name)
    count = product.size * len(everyone)
    mean_exp = jax.nn.logsumexp(everyone) - math.log(count)
    return pmean(jnp.mean(_wide(joint)), axis_name) - mean_exp


@export("ssl.nwj", since="0.1")
def nwj(
    joint: Float[Array, "*pairs"], product: Float[Array, "*other"]
) -> Float[Array, ""]:
    """The bound of Nguyen, Wainwright and Jordan, in nats; arguments as for DV."""
    return jnp.mean(_wide(joint)) - jnp.mean(jnp.exp(_wide(product) - 1))


@export("ssl.jensen_shannon", since="0.1")
def jensen_shannon(
    joint: Float[Array, "*pairs"], product: Float[Array, "*other"]
) -> Float[Array, ""]:
    """The JSD objective, at most 0; arguments as for DV.

    >>> round(float(jensen_shannon(jnp.zeros(3), jnp.zeros(3))), 4)  # -log 4
    -1.3863
    """
    told = jnp.mean(jax.nn.softplus(-_wide(joint)))
    return -told - jnp.mean(jax.nn.softplus(_wide(product)))


@export("ssl.info_nce_bound", since="0.1")
def info_nce_bound(
    joint: Float[Array, "*pairs"], product: Float[Array, "*pairs others"]
) -> Float[Array, ""]:
    """The InfoNCE bound, in nats, at most log N with N = others + 1.

    Args:
        joint: T of pairs drawn together.
        product: T of the same y with other x.

    Raises:
        ValueError: if not every joint pair has its others.

    >>> round(float(info_nce_bound(jnp.full(3, 50.0), jnp.zeros((3, 7)))), 4)  # log 8
    2.0794
    """
    if product.shape[:-1] != joint.shape or product.shape[-1] == 0:
        raise ValueError(
            f"every joint pair must have others, got {product.shape} for {joint.shape}"
        )
    others = jax.nn.logsumexp(_wide(product), axis=-1)
    losses = jax.nn.softplus(others - _wide(joint))  # at least 0: hence the limit
    return math.log(product.shape[-1] + 1) - jnp.mean(losses)


def _wide(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
