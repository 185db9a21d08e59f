"""k-nearest-neighbour probe: whether samples of one class lie near each other.

Each test sample asks its k nearest training samples, by cosine, and they vote with

    w_i = exp(cos(x, x_i) / temperature),    class(x) = argmax_c sum_{i: y_i = c} w_i.

Nothing is trained, so the number speaks of the features alone: it is the probe to run
during training. Only one block of test rows meets the training set at a time.

The trap: a protocol that reports the best epoch on the test set, or searches features
for themselves, flatters. Measure the last epoch, on features that were not searched.

Reference: Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance-level
Discrimination", CVPR 2018, https://arxiv.org/abs/1805.01978 (weighted k-nearest
neighbours: k = 200, temperature 0.07). The benchmarks of lightly use temperature 0.1,
those of DINO k = 20. Here the nearest neighbour weighs 1 and the others are relative to
it, which changes no vote and cannot overflow at low temperature.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from jaxml.export import export
from jaxml.metrics.labelled import check_labelled, count_classes
from jaxml.ops.similarity import unit
from jaxml.typing import Array, Float, Int

Distance = Literal["cosine", "euclidean"]


@export("metrics.knn_probe", since="0.1")
def knn_probe(
    train_features: Float[Array, "train dim"],
    train_labels: Int[Array, "train"],
    test_features: Float[Array, "test dim"],
    test_labels: Int[Array, "test"],
    *,
    k: int = 200,
    temperature: float | Float[Array, ""] | None = 0.07,
    distance: Distance = "cosine",
    num_classes: int | None = None,
    chunk: int = 256,
) -> Float[Array, ""]:
    """Share of test samples, in [0, 1], whose neighbours vote for their class.

    Args and Raises: as `knn_predict`.

    >>> x = jnp.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
    >>> y = jnp.array([0, 0, 1, 1])
    >>> float(knn_probe(x, y, jnp.array([[2.0, 0.1], [0.1, 2.0]]), jnp.array([0, 1])))
    1.0
    """
    check_labelled("test", test_features, test_labels)
    predictions = knn_predict(
        train_features,
        train_labels,
        test_features,
        k=k,
        temperature=temperature,
        distance=distance,
        num_classes=count_classes(num_classes, train_labels, test_labels),
        chunk=chunk,
    )
    return jnp.mean(predictions == test_labels, dtype=jnp.float32)


@export("metrics.knn_predict", since="0.1")
def knn_predict(
    train_features: Float[Array, "train dim"],
    train_labels: Int[Array, "train"],
    test_features: Float[Array, "test dim"],
    *,
    k: int = 200,
    temperature: float | Float[Array, ""] | None = 0.07,
    distance: Distance = "cosine",
    num_classes: int | None = None,
    chunk: int = 256,
) -> Int[Array, "test"]:
    """The class that the k nearest training samples vote for.

    Of training samples equally near at the k-th place, the first ones vote; of classes
    with equally many votes, the lowest wins.

    Args:
        train_features: any scale; compared in float32.
        train_labels: in [0, num_classes).
        test_features: any scale.
        k: how many neighbours vote. All of them do where the training set is smaller:
            far ones weigh little, so small sets need no other k.
        temperature: low trusts the nearest alone; None gives each neighbour one vote.
        distance: "cosine", or "euclidean" with weights exp(-d^2 / (2 temperature)),
            which on unit rows is the cosine vote.
        num_classes: by default one more than the largest label; needed under `jit`.
        chunk: test rows compared at a time, `4 * chunk * train` bytes of memory.

    Raises:
        ValueError: if shapes disagree, features are not finite, a label is out of
            range, or k, temperature, chunk are not positive.
    """
    check_labelled("train", train_features, train_labels)
    check_labelled("test", test_features)
    if train_features.shape[1] != test_features.shape[1]:
        raise ValueError(
            "train_features and test_features must have one dim, "
            f"got {train_features.shape[1]} and {test_features.shape[1]}"
        )
    if k < 1 or chunk < 1:
        raise ValueError(f"k and chunk must be at least 1, got {k} and {chunk}")
    if isinstance(temperature, float | int) and not temperature > 0:
        raise ValueError(f"temperature must be above 0 or None, got {temperature}")
    if distance not in ("cosine", "euclidean"):
        raise ValueError(f"distance must be cosine or euclidean, got {distance!r}")
    return _predict(
        train_features,
        train_labels,
        test_features,
        temperature,
        k=min(k, len(train_features)),
        num_classes=count_classes(num_classes, train_labels),
        distance=distance,
        chunk=min(chunk, len(test_features)),
    )


@functools.partial(jax.jit, static_argnames=("k", "num_classes", "distance", "chunk"))
def _predict(
    bank: Float[Array, "train dim"],
    labels: Int[Array, "train"],
    queries: Float[Array, "test dim"],
    temperature: float | Float[Array, ""] | None,
    *,
    k: int,
    num_classes: int,
    distance: Distance,
    chunk: int,
) -> Int[Array, "test"]:
    bank, queries = bank.astype(jnp.float32), queries.astype(jnp.float32)
    if distance == "cosine":
        bank, queries = unit(bank), unit(queries)
        offset = jnp.zeros((1, len(bank)))
    else:
        # cos becomes r.b - b^2/2 = (r^2 - d^2) / 2, and r^2 is one number per query.
        # Centred rows are short, so that little cancels.
        centre = jnp.mean(bank, axis=0, keepdims=True)
        bank, queries = bank - centre, queries - centre
        offset = jnp.sum(jnp.square(bank), axis=1)[None] / 2

    def predict_block(rows: Float[Array, "chunk dim"]) -> Int[Array, "chunk"]:
        # Without HIGHEST a TPU would rank neighbours by bfloat16 products.
        near = jnp.matmul(rows, bank.T, precision=lax.Precision.HIGHEST) - offset
        near, index = lax.top_k(near, k)
        if temperature is None:
            weight = jnp.ones_like(near)
        else:
            # Not near[:, :1]: XLA on CPU sorts whole rows if its top_k is sliced.
            nearest = jnp.max(near, axis=1, keepdims=True)
            weight = jnp.exp((near - nearest) / temperature)
        voted = labels[index][..., None] == jnp.arange(num_classes)[None, None]
        votes = jnp.sum(jnp.where(voted, weight[..., None], 0.0), axis=1)
        return jnp.argmax(votes, axis=-1)

    blocks = -(-len(queries) // chunk)
    padded = jnp.pad(queries, ((0, blocks * chunk - len(queries)), (0, 0)))
    predicted = lax.map(predict_block, padded.reshape(blocks, chunk, -1))
    return predicted.reshape(-1)[: len(queries)].astype(jnp.int32)
