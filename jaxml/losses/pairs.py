"""Losses on distances: similar pairs drawn together, dissimilar ones pushed apart.

With D the Euclidean distance and m the margin, a pair (y = 1 similar, 0 not) and a
triplet of anchor, positive and negative cost

    pair       y D^2 / 2 + (1 - y) max(0, m - D)^2 / 2
    triplet    max(0, D(a, p) - D(a, n) + m),        D or D^2

and the mean is taken over all of them, also over those that cost nothing. The trap is the
distance of two equal points: its gradient is 0 / 0, and one duplicate turns the whole
network into NaN; here it is zero.

Reference: Hadsell, Chopra and LeCun, "Dimensionality Reduction by Learning an Invariant
Mapping", CVPR 2006, https://doi.org/10.1109/CVPR.2006.100 (equation 4, whose Y = 0 is
similar); Schroff, Kalenichenko and Philbin, "FaceNet: A Unified Embedding for Face
Recognition and Clustering", CVPR 2015, https://arxiv.org/abs/1503.03832 (equation 3:
squared distances of unit vectors, m = 0.2); Balntas et al., "Learning local feature
descriptors with triplets and shallow convolutional neural networks", BMVC 2016,
https://doi.org/10.5244/C.30.119 (the swap of anchor and positive).
"""

import jax.numpy as jnp

from jaxml.export import export
from jaxml.typing import Array, Bool, Float, Int


@export("losses.contrastive_margin", since="0.1")
def contrastive_margin(
    x: Float[Array, "batch dim"],
    y: Float[Array, "batch dim"],
    is_similar: Bool[Array, "batch"] | Int[Array, "batch"] | Float[Array, "batch"],
    margin: float = 1.0,
) -> Float[Array, ""]:
    """Hadsell's contrastive loss, the mean over the pairs.

    Args:
        x: points, not normalised here.
        y: what each is paired with.
        is_similar: True (or 1) for a pair that belongs together.
        margin: distance beyond which dissimilar points leave each other alone.

    Raises:
        ValueError: if the shapes differ or the margin is not positive.

    >>> x, y = jnp.array([[0.0], [0.0]]), jnp.array([[0.5], [0.5]])
    >>> float(contrastive_margin(x, y, jnp.array([True, False])))
    0.125
    """
    _check(margin, x=x, y=y)
    if is_similar.shape != x.shape[:1]:
        raise ValueError(
            f"is_similar must have one entry per pair, got {is_similar.shape} "
            f"for {len(x)}"
        )
    square = _square_distance(x, y)
    short = jnp.maximum(margin - _root(square), 0)
    similar = is_similar.astype(square.dtype)
    return jnp.mean(similar * square + (1 - similar) * jnp.square(short)) / 2


@export("losses.triplet_margin", since="0.1")
def triplet_margin(
    anchor: Float[Array, "batch dim"],
    positive: Float[Array, "batch dim"],
    negative: Float[Array, "batch dim"],
    margin: float = 1.0,
    *,
    squared: bool = False,
    swap: bool = False,
) -> Float[Array, ""]:
    """The triplet loss, the mean over the triplets.

    Args:
        anchor: points, not normalised here.
        positive: what each should be near.
        negative: what each should be farther from, by the margin.
        margin: FaceNet's is 0.2, with `squared`, on unit vectors.
        squared: compare squared distances.
        swap: also compare with the distance of positive and negative, where smaller.

    Raises:
        ValueError: if the shapes differ or the margin is not positive.

    >>> a, p, n = jnp.array([[0.0]]), jnp.array([[1.0]]), jnp.array([[1.5]])
    >>> float(triplet_margin(a, p, n))
    0.5
    """
    _check(margin, anchor=anchor, positive=positive, negative=negative)
    near = _square_distance(anchor, positive)
    far = _square_distance(anchor, negative)
    if swap:
        far = jnp.minimum(far, _square_distance(positive, negative))
    if not squared:
        near, far = _root(near), _root(far)
    return jnp.mean(jnp.maximum(near - far + margin, 0))


def _check(margin: float, **points: Array) -> None:
    shapes = {name: array.shape for name, array in points.items()}
    if len(set(shapes.values())) > 1:
        told = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"points must have one shape, got {told}")
    if not margin > 0:
        raise ValueError(f"the margin must be positive, got {margin}")


def _square_distance(x: Array, y: Array) -> Float[Array, "batch"]:
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.sum(jnp.square(x.astype(wide) - y.astype(wide)), axis=-1)


def _root(square: Array) -> Array:
    # The root's gradient at zero is infinite: keep it out of the chain.
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)
