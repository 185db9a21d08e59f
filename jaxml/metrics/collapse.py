"""Collapse monitors: numbers that tell healthy features from broken ones.

A self-supervised loss can fall while the features become useless: all equal, or all in a
few dimensions. With unit rows x_i, d dims and singular values s_k of the raw features,

    feature_std    = sqrt(d) mean_j std_i x_ij           1 spread evenly, 0 all equal
    effective_rank = exp(-sum_k p_k log p_k),  p_k = s_k / sum_l s_l + 1e-7
    alignment      = mean_i ||x_i - y_i||^a              of positives; 0 best, 2 chance
    uniformity     = log mean_{i<j} exp(-t ||x_i - x_j||^2)    0 all equal, lower better

All are pure, jittable and cheap enough for every step, but for the effective rank with
its singular value decomposition. `jaxml.metrics.diagnose` names what they show.

The trap: a small batch has a small rank. Compare the effective rank with min(n, d).

Reference: Wang and Isola, "Understanding Contrastive Representation Learning through
Alignment and Uniformity on the Hypersphere", ICML 2020, https://arxiv.org/abs/2005.10242
(a = 2, t = 2); Garrido et al., "RankMe: Assessing the downstream performance
of pretrained self-supervised representations by their rank", ICML 2023,
https://arxiv.org/abs/2210.02885 (features neither centred nor normalised); Chen and He,
https://arxiv.org/abs/2011.10566 (std of unit rows); Jing et al.,
https://arxiv.org/abs/2110.09348 (dimensional collapse); Caron et al.,
https://arxiv.org/abs/2104.14294 (uniform and one-output collapse, told by entropies).
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from jaxml.export import export
from jaxml.ops.similarity import unit
from jaxml.parallel.collectives import (
    all_gather,
    axis_size,
    pmean,
    psum,
    sample_positions,
)
from jaxml.typing import Array, Float, Int


@export("metrics.feature_std", since="0.1")
def feature_std(
    features: Float[Array, "batch dim"], *, axis_name: str | None = None
) -> Float[Array, ""]:
    """Standard deviation of unit rows times sqrt(dim): 1 healthy, 0 collapsed.

    Args:
        features: any scale.
        axis_name: mesh axis the batch is split over, inside `shard_map`.

    >>> float(feature_std(jnp.ones((8, 4))))
    0.0
    """
    x = unit(features.astype(jnp.float32))
    mean = pmean(jnp.mean(x, axis=0, keepdims=True), axis_name)
    variance = pmean(jnp.mean(jnp.square(x - mean), axis=0), axis_name)
    return jnp.mean(_root(variance)) * math.sqrt(x.shape[1])


@export("metrics.effective_rank", since="0.1")
def effective_rank(
    features: Float[Array, "batch dim"],
    *,
    eps: float = 1e-7,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """How many dimensions the features use, in [1, min(batch, dim)]: RankMe.

    Args:
        features: any scale.
        eps: added to each share of the spectrum, as in the paper.
        axis_name: mesh axis the batch is split over, inside `shard_map`.

    >>> round(float(effective_rank(jnp.eye(4))), 3)
    4.0
    """
    x = all_gather(features.astype(jnp.float32), axis_name)
    # A power of two changes no share, and keeps sums of squares in range.
    x = x / jnp.exp2(jnp.ceil(jnp.log2(jnp.maximum(jnp.max(jnp.abs(x)), 1e-30))))
    s = jnp.linalg.svd(x, compute_uv=False)
    share = s / jnp.maximum(jnp.sum(s), 1e-30) + eps
    return jnp.exp(-jnp.sum(share * jnp.log(share)))


@export("metrics.participation_ratio", since="0.1")
def participation_ratio(
    features: Float[Array, "batch dim"], *, axis_name: str | None = None
) -> Float[Array, ""]:
    """How many dimensions unit rows vary in, in [1, min(batch, dim)]: needs no SVD.

    (sum_k v_k)^2 / sum_k v_k^2 of the variances along the principal axes. A coarser
    number than the effective rank, as few large variances hide many small ones.

    Args:
        features: any scale.
        axis_name: mesh axis the batch is split over, inside `shard_map`.

    >>> line = jnp.array([[1.0, 0.0], [-1.0, 0.0], [2.0, 0.0]])
    >>> [round(float(participation_ratio(x)), 3) for x in (line, jnp.eye(3))]
    [1.0, 2.0]
    """
    x = unit(features.astype(jnp.float32))
    x = x - pmean(jnp.mean(x, axis=0, keepdims=True), axis_name)
    is_wide = axis_name is None and len(x) < x.shape[1]
    gram = jnp.matmul(x, x.T) if is_wide else psum(jnp.matmul(x.T, x), axis_name)
    square = jnp.sum(jnp.square(gram))
    return jnp.where(square > 0, jnp.trace(gram) ** 2 / square, 1.0)


@export("metrics.alignment", since="0.1")
def alignment(
    x: Float[Array, "batch dim"],
    y: Float[Array, "batch dim"],
    *,
    alpha: float = 2.0,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Mean distance of positives on the unit sphere to the power alpha; 0 is best.

    Args:
        x: features of one view, any scale.
        y: features of the other view, row by row.
        alpha: exponent; at 2 unrelated rows have 2 on average.
        axis_name: mesh axis the batch is split over, inside `shard_map`.

    Raises:
        ValueError: if the shapes differ (broadcasting would hide the mistake).

    >>> x = jnp.array([[3.0, 0.0], [0.0, 1.0]])
    >>> [float(alignment(x, x)), float(alignment(x, -x))]
    [0.0, 4.0]
    """
    if x.shape != y.shape:
        raise ValueError(f"x and y must have one shape, got {x.shape} and {y.shape}")
    apart = unit(x.astype(jnp.float32)) - unit(y.astype(jnp.float32))
    square = jnp.sum(jnp.square(apart), axis=-1)
    distance = square if alpha == 2 else _root(square) ** alpha
    return pmean(jnp.mean(distance), axis_name)


@export("metrics.uniformity", since="0.1")
def uniformity(
    features: Float[Array, "batch dim"],
    *,
    t: float = 2.0,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Log of the mean Gaussian potential of all pairs, in [-4 t, 0]; lower is better.

    Args:
        features: any scale; at least two rows in all.
        t: how steep the potential is.
        axis_name: mesh axis the batch is split over, inside `shard_map`.

    Raises:
        ValueError: if there is no pair.

    >>> round(float(uniformity(jnp.eye(2))), 4)
    -4.0
    """
    x = unit(features.astype(jnp.float32))
    everything = all_gather(x, axis_name)
    n = len(everything)
    if n < 2:
        raise ValueError(f"uniformity needs at least 2 rows, got {n}")

    def row(own: tuple[Float[Array, "dim"], Int[Array, ""]]) -> Float[Array, ""]:
        vector, position = own
        # Products, not differences: n^2 numbers at a time and not n^2 d.
        square = 2 - 2 * jnp.matmul(everything, vector, precision=lax.Precision.HIGHEST)
        itself = jnp.arange(n) == position
        return jax.nn.logsumexp(jnp.where(itself, -jnp.inf, -t * square))

    positions = sample_positions(len(x), axis_name)
    rows = lax.map(row, (x, positions), batch_size=min(len(x), 1024))
    return jax.nn.logsumexp(all_gather(rows, axis_name)) - math.log(n * (n - 1))


@export("metrics.collapse_metrics", since="0.1")
def collapse_metrics(
    features: Float[Array, "batch dim"],
    positives: Float[Array, "batch dim"] | None = None,
    probabilities: Float[Array, "batch outputs"] | None = None,
    *,
    axis_name: str | None = None,
) -> dict[str, Float[Array, ""]]:
    """All monitors at once, for `diagnose`; jittable.

    Args:
        features: any scale; at least two rows in all.
        positives: features of the other view, row by row.
        probabilities: what a head gives each row, adding up to 1: a teacher's softmax,
            codes over prototypes.
        axis_name: mesh axis the batch is split over, inside `shard_map`.

    Returns:
        feature_std, uniformity, participation_ratio, effective_rank; `rank_share` of
        min(batch, dim); with
        positives `alignment`, and `pair_distance`, the mean squared distance of all
        pairs on the unit sphere, which it should undercut; with probabilities
        `row_entropy`, the mean entropy of a row, and `mean_entropy`, that of the mean
        row, both as shares of log(outputs), and `outputs_used`, the mean row's
        perplexity as a share of min(batch, outputs).

    >>> values = collapse_metrics(jnp.ones((8, 4)))
    >>> [finding.name for finding in diagnose(values)]
    ['complete collapse']
    """
    x = unit(features.astype(jnp.float32))
    n = len(x) * axis_size(axis_name)
    rank = effective_rank(features, axis_name=axis_name)
    values = {
        "feature_std": feature_std(features, axis_name=axis_name),
        "effective_rank": rank,
        "rank_share": rank / min(n, x.shape[1]),
    }
    y = features if positives is None else positives
    pairs = pair_metrics(features, y, axis_name=axis_name)
    if positives is None:
        del pairs["alignment"], pairs["pair_distance"]
    values |= pairs
    if probabilities is not None:
        values |= output_entropies(probabilities, axis_name=axis_name)
    return values


@export("metrics.pair_metrics", since="0.1")
def pair_metrics(
    x: Float[Array, "batch dim"],
    y: Float[Array, "batch dim"],
    *,
    axis_name: str | None = None,
) -> dict[str, Float[Array, ""]]:
    """How positives and all others lie: monitors cheap enough for every step.

    Args:
        x: features of one view, any scale.
        y: features of the other view, row by row.
        axis_name: mesh axis the batch is split over, inside `shard_map`.

    Returns:
        alignment; and of two rows or more, pair_distance, the mean squared distance of
        all pairs of x on the unit sphere, and the uniformity and participation_ratio of
        x. None has a gradient.
    """
    x, y = (lax.stop_gradient(v.astype(jnp.float32)) for v in (x, y))
    apart = {"alignment": alignment(x, y, axis_name=axis_name)}
    z, n = unit(x), len(x) * axis_size(axis_name)
    if n < 2:
        return apart
    centre = pmean(jnp.mean(z, axis=0), axis_name)
    square = pmean(jnp.mean(jnp.sum(jnp.square(z), axis=1)), axis_name)
    spread = square - jnp.sum(jnp.square(centre))
    return {
        **apart,
        "pair_distance": 2 * n / (n - 1) * spread,
        "uniformity": uniformity(x, axis_name=axis_name),
        "participation_ratio": participation_ratio(x, axis_name=axis_name),
    }


@export("metrics.output_entropies", since="0.1")
def output_entropies(
    probabilities: Float[Array, "batch outputs"], *, axis_name: str | None = None
) -> dict[str, Float[Array, ""]]:
    """How a head uses its outputs: the part of `collapse_metrics` that says so.

    Args:
        probabilities: rows that add up to 1.
        axis_name: mesh axis the batch is split over, inside `shard_map`.

    >>> values = output_entropies(jnp.eye(4))
    >>> {name: round(float(value), 3) for name, value in values.items()}
    {'row_entropy': 0.0, 'mean_entropy': 1.0, 'outputs_used': 1.0}
    """
    p = probabilities.astype(jnp.float32)
    n = len(p) * axis_size(axis_name)
    most, outputs = math.log(p.shape[1]), p.shape[1]
    row = pmean(jnp.mean(_entropy(p)), axis_name)
    mean = _entropy(pmean(jnp.mean(p, axis=0), axis_name))
    return {
        "row_entropy": row / most,
        "mean_entropy": mean / most,
        "outputs_used": jnp.exp(mean) / min(n, outputs),
    }


def _entropy(p: Float[Array, "*rows outputs"]) -> Float[Array, "*rows"]:
    return jnp.sum(jax.scipy.special.entr(p), axis=-1)


def _root(square: Float[Array, "*any"]) -> Float[Array, "*any"]:
    # The root's gradient at zero is infinite: keep it out of the chain.
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)
