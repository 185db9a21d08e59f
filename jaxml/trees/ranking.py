"""Learning to rank: LambdaMART's gradients of queries, and the metrics it moves.

For two documents of one query with labels y_i > y_j and scores s,

    lambda = (sigma(s_i - s_j) - 1) |delta|,   h = 2 sigma (1 - sigma) |delta|,

pull them apart; delta is what swapping the two would change in the metric (1 for
"pairwise"), over |s_i - s_j| + 0.01 unless all scores are equal. Pairs are all those with a
document among the first k ("topk"), or for every document a few drawn from other labels
("mean"). The lambdas of a query are scaled by log2(1 + S) / S, with S the sum of all.

Queries are padded to the longest and looked at a few at a time, so that memory does not
grow with their number.

The trap: documents of equal score keep the order in which they came, and with it their
rank; all do in the first round. The draws of "mean" follow XGBoost's own generator, but for
its rejections (one in millions).

Reference: Burges, "From RankNet to LambdaRank to LambdaMART: An Overview", MSR-TR-2010-82,
https://www.microsoft.com/en-us/research/publication/from-ranknet-to-lambdarank-to-lambdamart-an-overview/;
Donmez, Svore and Burges, "On the Local Optimality of LambdaRank", SIGIR 2009,
https://doi.org/10.1145/1571941.1572021 (delta of the average precision).
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxml.export import export
from jaxml.typing import Array, Bool, Float, Int

BLOCK = 64
"""Queries that are looked at together."""
MODULUS, FACTOR = 2**31 - 1, 48271
"""Of the generator that XGBoost draws pairs with."""


@export("trees.ranking.Groups", since="0.1")
class Groups(NamedTuple):
    """The rows of every query, padded.

    Attributes:
        row: [groups, longest], rows of each query; anything where there is none.
        count: [groups], how many there are.
        weight: [groups], of the queries, one on average.
    """

    row: Int[Array, "groups longest"]
    count: Int[Array, " groups"]
    weight: Float[Array, " groups"]


@export("trees.ranking.make_groups", since="0.1")
def make_groups(
    query: Int[np.ndarray, " rows"], weights: Float[np.ndarray, " groups"] | None = None
) -> Groups:
    """Groups of rows from the query of every row; NumPy, not for `jit`.

    Args:
        query: an integer for every row; those of one query stand together.
        weights: of the queries, in the order in which they come.

    Raises:
        ValueError: if a query is broken in two, or there is another number of weights.

    >>> make_groups(np.array([7, 7, 3])).row.tolist()
    [[0, 1], [2, 2]]
    """
    query = np.asarray(query)
    if query.ndim != 1 or not len(query):
        raise ValueError(f"query must be [rows], got {query.shape}")
    first = np.flatnonzero(np.r_[True, query[1:] != query[:-1]])
    if len(np.unique(query)) != len(first):
        raise ValueError("rows of one query must stand together")
    count = np.diff(np.r_[first, len(query)])
    row = first[:, None] + np.arange(count.max())
    weight = np.ones(len(first)) if weights is None else np.asarray(weights, np.float64)
    if weight.shape != count.shape or (weight < 0).any() or not weight.sum() > 0:
        raise ValueError(
            f"weights must be of {len(count)} queries, not negative, not all zero, got "
            f"shape {weight.shape}"
        )
    return Groups(
        jnp.asarray(np.minimum(row, len(query) - 1), jnp.int32),
        jnp.asarray(count, jnp.int32),
        jnp.asarray(weight * len(weight) / weight.sum(), jnp.float32),
    )


@export("trees.ranking.Ranking", since="0.1")
class Ranking(NamedTuple):
    """What is ranked for, with XGBoost's defaults.

    Attributes:
        metric: what a swap is worth: "pairwise" (one), "ndcg" or "map".
        pair_method: "topk" or "mean".
        num_pair: k, or draws for every document; None is 32 and 1.
        normalize: whether the lambdas of a query are scaled.
        score_normalize: whether delta is divided by the difference of the scores.
        exp_gain: whether the gain of a label is 2^y - 1, not y.
    """

    metric: Literal["pairwise", "ndcg", "map"] = "ndcg"
    pair_method: Literal["topk", "mean"] = "topk"
    num_pair: int | None = None
    normalize: bool = True
    score_normalize: bool = True
    exp_gain: bool = True

    @property
    def pairs(self) -> int:
        """`num_pair`, with its default."""
        default = 32 if self.pair_method == "topk" else 1
        return self.num_pair or default


@export("trees.ranking.lambdas", since="0.1")
def lambdas(
    ranking: Ranking,
    score: Float[Array, " rows"],
    label: Float[Array, " rows"],
    groups: Groups,
    iteration: Int[Array, ""] | int = 0,
) -> tuple[Float[Array, " rows"], Float[Array, " rows"]]:
    """Gradient and Hessian of every row.

    Args:
        ranking: what for.
        score: of every row, higher is earlier.
        label: relevance, not negative; 0 or 1 for "map".
        groups: the queries, from `make_groups`.
        iteration: the round, which the draws of "mean" depend on.

    >>> groups = make_groups(np.array([0, 0]))
    >>> g, h = lambdas(Ranking("pairwise"), jnp.zeros(2), jnp.array([0.0, 1.0]), groups)
    >>> g.tolist()
    [0.5, -0.5]
    """
    score, label = jnp.asarray(score), jnp.asarray(label)
    longest = groups.row.shape[1]
    seed = (jnp.asarray(iteration, jnp.int32) + 1) * len(groups.count)

    def one(query: tuple[Array, ...]) -> tuple[Array, Array]:
        row, count, weight, index = query
        inside = jnp.arange(longest, dtype=jnp.int32) < count
        s = jnp.where(inside, score[row], -jnp.inf)
        order = jnp.argsort(-s, stable=True)
        s, y = s[order], jnp.where(inside, label[row], 0)[order]
        first, second, valid = _pairs(ranking, y, count, seed + index)
        g, h = _of_query(ranking, s, y, count, first, second, valid)
        there = jnp.zeros(longest, jnp.float32)
        return there.at[order].set(g * weight), there.at[order].set(h * weight)

    each = jnp.arange(len(groups.count), dtype=jnp.int32)
    g, h = lax.map(one, (*groups, each), batch_size=BLOCK)
    inside = jnp.arange(longest, dtype=jnp.int32)[None, :] < groups.count[:, None]
    to = jnp.where(inside, groups.row, len(score)).reshape(-1)
    zero = jnp.zeros(len(score), jnp.float32)
    put = lambda x: zero.at[to].add(x.reshape(-1), mode="drop")  # noqa: E731
    return put(g), put(h)


def _pairs(
    ranking: Ranking, y: Float[Array, " ranks"], count: Array, seed: Array
) -> tuple[Int[Array, "a b"], Int[Array, "a b"], Bool[Array, "a b"]]:
    """Ranks of the first and the second of every pair, and which pairs count."""
    n = len(y)
    rank = jnp.arange(n, dtype=jnp.int32)
    if ranking.pair_method == "topk":
        first = jnp.arange(min(ranking.pairs, n), dtype=jnp.int32)[:, None]
        first, second = jnp.broadcast_arrays(first, rank[None, :])
        valid = (second > first) & (second < count)
    else:
        order = jnp.argsort(jnp.where(rank < count, -y, jnp.inf), stable=True)
        falling = jnp.where(rank < count, y[order], -1)
        begin = jnp.searchsorted(-falling, -falling, side="left").astype(jnp.int32)
        end = jnp.searchsorted(-falling, -falling, side="right").astype(jnp.int32)
        others = begin + count - end
        turn = jnp.arange(ranking.pairs, dtype=jnp.int32)[:, None]
        start = begin * (ranking.pairs - 1) + rank  # the first draw of each document
        draw = start[None, :] + turn * (end - begin)[None, :]
        other = _draw(seed, draw, others.clip(1)[None, :], n * ranking.pairs)
        past = other >= begin[None, :]
        other = jnp.where(past, other + (end - begin)[None, :], other)
        first = jnp.broadcast_to(order.astype(jnp.int32), other.shape)
        second = order[other.clip(0, n - 1)].astype(jnp.int32)
        valid = jnp.broadcast_to((rank < count) & (others > 0), other.shape)
    return first, second, valid & (y[first] != y[second])


def _draw(seed: Array, index: Array, size: Array, most: int) -> Int[Array, "a b"]:
    """The draws of these numbers, each below its size, of a multiplicative generator."""
    powers = np.ones(most, np.int64)
    for i in range(most):
        powers[i] = (powers[i - 1] if i else 1) * FACTOR % MODULUS
    with jax.enable_x64(True):
        start = seed.astype(jnp.int64) % MODULUS
        start = jnp.where(start == 0, 1, start)
        state = jnp.asarray(powers)[index.clip(0, most - 1)] * start % MODULUS
        width = (MODULUS - 2) // size.astype(jnp.int64)
        return jnp.minimum((state - 1) // width, size - 1).astype(jnp.int32)


def _of_query(
    ranking: Ranking,
    s: Float[Array, " ranks"],
    y: Float[Array, " ranks"],
    count: Array,
    first: Array,
    second: Array,
    valid: Array,
) -> tuple[Float[Array, " ranks"], Float[Array, " ranks"]]:
    """Lambdas by rank."""
    rises = y[first] > y[second]
    high, low = jnp.where(rises, first, second), jnp.where(rises, second, first)
    gap = jnp.where(valid, s[high] - s[low], 0)
    delta = jnp.abs(_swap(ranking, y, count, first, second))
    if ranking.score_normalize:
        worst = s[(count - 1).clip(0)]
        delta = jnp.where(s[0] == worst, delta, delta / (jnp.abs(gap) + 0.01))
    delta = jnp.where(valid, delta, 0)
    sigma = jax.nn.sigmoid(gap)
    pull = (sigma - 1) * delta
    bend = 2 * jnp.maximum(sigma * (1 - sigma), 1e-16) * delta
    zero = jnp.zeros(len(s), jnp.float32)
    g = zero.at[high].add(pull).at[low].add(-pull)
    h = zero.at[high].add(bend).at[low].add(bend)
    if ranking.normalize and ranking.pair_method == "mean":
        return g / ranking.pairs, h / ranking.pairs
    if ranking.normalize:
        total = -2 * jnp.sum(pull)
        some = jnp.where(total > 0, total, 1)
        scale = jnp.where(total > 0, jnp.log2(1 + some) / some, 1)
        return g * scale, h * scale
    return g, h


def _swap(
    ranking: Ranking, y: Array, count: Array, first: Array, second: Array
) -> Array:
    """What the metric changes by when two ranks change places."""
    if ranking.metric == "pairwise":
        return jnp.ones(first.shape, jnp.float32)
    early, late = jnp.minimum(first, second), jnp.maximum(first, second)
    if ranking.metric == "ndcg":
        top = ranking.pairs if ranking.pair_method == "topk" else len(y)
        gain = _gain(y, ranking.exp_gain)
        discount = 1 / jnp.log2(jnp.arange(len(y), dtype=jnp.float32) + 2)
        best = jnp.sum(jnp.sort(gain)[::-1][:top] * discount[:top])
        part = (gain[early] - gain[late]) * (discount[early] - discount[late])
        return part / jnp.where(best > 0, best, jnp.inf)
    relevant = jnp.cumsum(y)
    place = jnp.arange(1, len(y) + 1, dtype=jnp.float32)
    precision = jnp.cumsum(y / place)
    n, m = relevant[early], relevant[late]
    between = precision[(late - 1).clip(0)] - precision[early]
    falls = m / place[late] - (n + 1) / place[early] - between
    rises = n / place[early] - m / place[late] + between
    total = relevant[-1]
    change = jnp.where(y[early] < y[late], falls, rises)
    return change / jnp.where(total > 0, total, jnp.inf)


def _gain(y: Array, exponential: bool) -> Array:
    return jnp.exp2(jnp.floor(y)) - 1 if exponential else y


@export("trees.ranking.ndcg", since="0.1")
def ndcg(
    score: Float[Array, " rows"],
    label: Float[Array, " rows"],
    groups: Groups,
    k: int | None = None,
    *,
    exp_gain: bool = True,
) -> Float[Array, ""]:
    """Normalised discounted cumulative gain, the weighted mean over queries, in [0, 1].

    A query without a relevant document counts as one, as in XGBoost.

    >>> groups = make_groups(np.array([0, 0]))
    >>> float(ndcg(jnp.array([2.0, 1.0]), jnp.array([1.0, 0.0]), groups))
    1.0
    """

    def one(s: Array, y: Array) -> Array:
        gain = _gain(y, exp_gain)
        discount = 1 / jnp.log2(jnp.arange(len(y), dtype=jnp.float32) + 2)
        sums = [
            jnp.sum((g * discount)[:k])
            for g in (gain[jnp.argsort(-s, stable=True)], jnp.sort(gain)[::-1])
        ]
        return jnp.where(sums[1] > 0, sums[0] / jnp.where(sums[1] > 0, sums[1], 1), 1)

    return _mean(one, score, label, groups)


@export("trees.ranking.mean_average_precision", since="0.1")
def mean_average_precision(
    score: Float[Array, " rows"],
    label: Float[Array, " rows"],
    groups: Groups,
    k: int | None = None,
) -> Float[Array, ""]:
    """The weighted mean over queries of the average precision, in [0, 1].

    A query without a relevant document counts as one, as in XGBoost.
    """

    def one(s: Array, y: Array) -> Array:
        y = y[jnp.argsort(-s, stable=True)]
        hits = jnp.cumsum(y)
        place = jnp.arange(1, len(y) + 1, dtype=jnp.float32)
        total = jnp.minimum(hits[-1], k or len(y))
        found = jnp.sum((y * hits / place)[:k])
        return jnp.where(total > 0, found / jnp.where(total > 0, total, 1), 1)

    return _mean(one, score, label, groups)


def _mean(
    one: Callable[[Array, Array], Array], score: Array, label: Array, groups: Groups
) -> Float[Array, ""]:
    score, label = jnp.asarray(score), jnp.asarray(label)

    def padded(query: tuple[Array, Array]) -> Array:
        row, count = query
        inside = jnp.arange(len(row), dtype=jnp.int32) < count
        s = jnp.where(inside, score[row], -jnp.inf)
        return one(s, jnp.where(inside, label[row], 0))

    values = lax.map(padded, (groups.row, groups.count), batch_size=BLOCK)
    return jnp.mean(values * groups.weight)
