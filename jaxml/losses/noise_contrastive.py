"""From noise-contrastive estimation to InfoNCE: learning a density by telling it from noise.

A model with unnormalised log-density s(x) - log Z is trained as a classifier between one
sample of the data and k samples of a known noise p_n:

    NCE                 h(x) = p_m(x) / (p_m(x) + k p_n(x))
                        J = -E_data log h - k E_noise log(1 - h)
    negative sampling   the same with h = sigmoid(s): Z and k p_n are dropped
    InfoNCE             L = -E log exp f(x+, c) / sum_{j=1..N} exp f(x_j, c),

where the classifier tells which of N samples is the one that belongs to c. NCE's optimum
is the normalised density itself, InfoNCE's is f = log p(x | c) / p(x) up to a constant for
each c, and I(x; c) >= log N - L. The traps: k stands in both places of NCE; InfoNCE's
positive stands in its denominator, so that L >= 0 and no bound exceeds log N.

Reference: van den Oord, Li and Vinyals, "Representation Learning with Contrastive
Predictive Coding", 2018, https://arxiv.org/abs/1807.03748 (equation 4, appendix A.1);
Gutmann and Hyvarinen, "Noise-contrastive estimation: A new estimation principle for
unnormalized statistical models", AISTATS 2010,
https://proceedings.mlr.press/v9/gutmann10a.html (equation 3, with the ratio k of
https://jmlr.org/papers/v13/gutmann12a.html, equation 5); Mikolov et al., "Distributed
Representations of Words and Phrases", NeurIPS 2013, https://arxiv.org/abs/1310.4546
(equation 4).
"""

import math

import jax
import jax.numpy as jnp

from jaxml.export import export
from jaxml.losses.blockwise_similarity import (
    BlockwiseSimilarity,
    Contrast,
    blockwise_similarity,
    contrast,
)
from jaxml.ops.similarity import inverse_norm, unit
from jaxml.parallel.collectives import sample_positions
from jaxml.typing import Array, Float

Scalar = float | Float[Array, ""]


@export("losses.nce", since="0.1")
def nce(
    data: Float[Array, "batch"],
    noise: Float[Array, "batch k"],
    data_log_noise: Scalar | Float[Array, "batch"],
    noise_log_noise: Scalar | Float[Array, "batch k"],
    log_normalizer: Scalar = 0.0,
) -> Float[Array, ""]:
    """Noise-contrastive estimation, in nats per data sample.

    Args:
        data: the model's unnormalised log-density s of data samples.
        noise: s of the k noise samples that go with each.
        data_log_noise: log p_n of the data samples, for uniform noise one number.
        noise_log_noise: log p_n of the noise samples.
        log_normalizer: log Z; a constant, or a parameter that learns it.

    Raises:
        ValueError: if there is no noise, or the shapes do not fit.

    >>> round(float(nce(jnp.zeros(4), jnp.zeros((4, 1)), 0.0, 0.0)), 4)  # 2 log 2
    1.3863
    """
    _check_noise(data, noise)
    told = (jnp.shape(data_log_noise), jnp.shape(noise_log_noise))
    if told[0] not in ((), data.shape) or told[1] not in ((), noise.shape):
        raise ValueError(
            "log p_n must be a number or have the shape of its scores "
            f"{data.shape} and {noise.shape}, got {told[0]} and {told[1]}"
        )
    log_k = math.log(noise.shape[1])
    return negative_sampling(
        data - (log_normalizer + log_k + data_log_noise),
        noise - (log_normalizer + log_k + noise_log_noise),
    )


@export("losses.negative_sampling", since="0.1")
def negative_sampling(
    data: Float[Array, "batch"], noise: Float[Array, "batch k"]
) -> Float[Array, ""]:
    """Word2vec's loss: logistic regression of data against noise, in nats per sample.

    Args:
        data: scores of data samples.
        noise: scores of the k noise samples that go with each.

    Raises:
        ValueError: if there is no noise, or not some for each sample.
    """
    _check_noise(data, noise)
    wide = jnp.promote_types(data.dtype, jnp.float32)
    told = jax.nn.softplus(-data.astype(wide))
    return jnp.mean(told + jnp.sum(jax.nn.softplus(noise.astype(wide)), axis=1))


@export("losses.info_nce", since="0.1")
def info_nce(
    query: Float[Array, "batch dim"],
    positive: Float[Array, "batch dim"],
    negatives: Float[Array, "*rows dim"] | None = None,
    *,
    temperature: float = 1.0,
    normalize: bool = False,
    chunk: int = 1024,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """InfoNCE of each query with its positive among negatives, in nats.

    Args:
        query: one vector per context.
        positive: what belongs to it, row for row.
        negatives: [count, dim] shared by all queries, the same on every device; or
            [batch, count, dim], each query's own; None takes the other queries'
            positives, over all devices.
        temperature: what the products are divided by.
        normalize: take unit vectors, so that the products are cosines.
        chunk: rows and columns that are compared at once.
        axis_name: mesh axis the batch is split over, or None. The result is this
            device's mean; the mean over the devices is the loss of the global batch.

    Raises:
        ValueError: if the shapes differ or the temperature is not positive.

    >>> x = jnp.zeros((4, 2))
    >>> round(float(jnp.exp(info_nce(x, x))), 4)  # log N where nothing is known
    4.0
    """
    rows = info_nce_rows(
        query,
        positive,
        negatives,
        temperature=temperature,
        normalize=normalize,
        chunk=chunk,
        axis_name=axis_name,
    )
    return jnp.mean(rows.loss)


@export("losses.info_nce_rows", since="0.1")
def info_nce_rows(
    query: Float[Array, "batch dim"],
    positive: Float[Array, "batch dim"],
    negatives: Float[Array, "*rows dim"] | None = None,
    *,
    temperature: float = 1.0,
    normalize: bool = False,
    chunk: int = 1024,
    axis_name: str | None = None,
) -> Contrast:
    """InfoNCE of every query, and what it met.

    Arguments and errors are those of `info_nce`.
    """
    if query.shape != positive.shape:
        raise ValueError(
            f"query and positive must have one shape, got {query.shape} and "
            f"{positive.shape}"
        )
    if not temperature > 0:
        raise ValueError(f"the temperature must be positive, got {temperature}")
    wide = jnp.promote_types(query.dtype, jnp.float32)
    query, positive = query.astype(wide), positive.astype(wide)
    # Lengths and temperature are factors: large arrays need no normalised copies.
    query_scale = (inverse_norm(query) if normalize else 1.0) / temperature
    positive_scale = inverse_norm(positive) if normalize else 1.0
    score = jnp.sum(query * positive, axis=-1) * query_scale * positive_scale
    if negatives is not None and negatives.ndim == 3:
        if len(negatives) != len(query):
            raise ValueError(
                f"every query must have its negatives, got {len(negatives)} for "
                f"{len(query)}"
            )
        own_scale = jnp.reshape(jnp.asarray(query_scale), (-1, 1))
        own = unit(negatives) if normalize else negatives
        s = jnp.einsum("bd,bkd->bk", query * own_scale, own, precision="highest")
        met = BlockwiseSimilarity(jax.nn.logsumexp(s, axis=1), None, jnp.max(s, axis=1))
    else:
        in_batch = negatives is None
        others = positive if in_batch else jnp.asarray(negatives, wide)
        positions = sample_positions(len(query), axis_name)
        met = blockwise_similarity(
            query,
            others,
            x_scale=query_scale,
            y_scale=inverse_norm(others) if normalize else 1.0,
            skip=positions if in_batch else None,
            chunk=chunk,
            axis_name=axis_name if in_batch else None,
        )
    # What differs by rounding alone does not count as found.
    return contrast(met, score, 1e-5 * jnp.abs(met.row_max))


def _check_noise(data: Array, noise: Array) -> None:
    if noise.shape[0] != data.shape[0] or noise.shape[1] < 1:
        raise ValueError(
            "noise must hold at least one sample for each of the data, got "
            f"{noise.shape} for {data.shape}"
        )
