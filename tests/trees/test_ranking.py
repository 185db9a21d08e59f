"""Lambdas and metrics of queries against the formulas, pair by pair."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.trees.ranking import (
    Ranking,
    lambdas,
    make_groups,
    mean_average_precision,
    ndcg,
)

SIZES = (1, 5, 3, 7)


def queries(rng, labels=4):
    query = np.repeat(np.arange(len(SIZES)), SIZES)
    score = rng.normal(size=len(query)).astype(np.float32)
    label = rng.integers(0, labels, len(query)).astype(np.float32)
    return query, score, label


def dcg(labels, k=None, exponential=True):
    labels = np.asarray(labels, np.float64)[:k]
    gain = 2.0**labels - 1 if exponential else labels
    return (gain / np.log2(np.arange(len(gain)) + 2)).sum()


def average_precision(labels, k=None):
    labels = np.asarray(labels)
    hits = labels.cumsum() / np.arange(1, len(labels) + 1)
    total = min(labels.sum(), k or len(labels))
    return (labels * hits)[:k].sum() / max(total, 1e-30)


def worth(ranking, labels, i, j):
    """What swapping two ranks changes, by swapping them."""
    metric, gain = ranking.metric, ranking.exp_gain
    k = ranking.pairs if ranking.pair_method == "topk" else None
    if metric == "pairwise":
        return 1.0
    swapped = labels.copy()
    swapped[[i, j]] = swapped[[j, i]]
    if metric == "map":
        return abs(average_precision(swapped) - average_precision(labels))
    best = dcg(np.sort(labels)[::-1], k, gain)
    change = dcg(swapped, None, gain) - dcg(labels, None, gain)
    return abs(change) / best if best else 0.0


def top(labels, number):
    """All pairs of other labels with one of them among the first."""
    n = len(labels)
    each = ((i, j) for i in range(min(number, n)) for j in range(i + 1, n))
    return [(i, j) for i, j in each if labels[i] != labels[j]]


def drawn_pairs(labels, number, seed):
    """XGBoost's: label by label, from the highest, every document against others."""
    order, state, pairs = np.argsort(-labels, kind="stable"), seed, []
    begin = 0
    while begin < len(labels):
        end = begin + (labels == labels[order[begin]]).sum()
        others = len(labels) - (end - begin)
        for _ in range(number):
            for i in range(begin, end):
                state = state * 48271 % (2**31 - 1)
                if others:
                    j = (state - 1) // ((2**31 - 3) // others)
                    pairs.append((order[i], order[j if j < begin else j + end - begin]))
        begin = end
    return pairs


def by_the_formula(ranking, score, label, query, weight, iteration=0):
    g, h = np.zeros(len(score)), np.zeros(len(score))
    for q in range(len(SIZES)):
        rows = np.flatnonzero(query == q)
        rows = rows[np.argsort(-score[rows], kind="stable")]
        s, y = score[rows].astype(np.float64), label[rows]
        pull, bend, total = np.zeros(len(s)), np.zeros(len(s)), 0.0
        drawn = ranking.pair_method == "mean"
        seed = (iteration + 1) * len(SIZES) + q
        first = drawn_pairs(y, ranking.pairs, seed) if drawn else top(y, ranking.pairs)
        for i, j in first:
            high, low = (i, j) if y[i] > y[j] else (j, i)
            delta = worth(ranking, y, i, j)
            if ranking.score_normalize and s[0] != s[-1]:
                delta /= abs(s[i] - s[j]) + 0.01
            p = 1 / (1 + np.exp(s[low] - s[high]))
            pull[high] += (p - 1) * delta
            pull[low] -= (p - 1) * delta
            bend[[high, low]] += 2 * p * (1 - p) * delta
            total += 2 * (1 - p) * delta
        scale = np.log2(1 + total) / total if total and ranking.normalize else 1.0
        scale = 1 / ranking.pairs if drawn and ranking.normalize else scale
        g[rows], h[rows] = pull * scale * weight[q], bend * scale * weight[q]
    return g, h


@pytest.mark.parametrize(
    "ranking",
    [
        Ranking("ndcg"),
        Ranking("ndcg", num_pair=2, score_normalize=False),
        Ranking("map", normalize=False),
        Ranking("pairwise"),
        Ranking("ndcg", exp_gain=False),
        Ranking("pairwise", "mean", num_pair=3),
        Ranking("ndcg", "mean", normalize=False),
    ],
    ids=lambda r: f"{r.metric}-{r.pair_method}-{r.pairs}-{r.exp_gain}",
)
def test_lambdas_are_those_of_the_formula(rng, ranking):
    query, score, label = queries(rng, 2 if ranking.metric == "map" else 4)
    weights = rng.uniform(0.5, 2, len(SIZES))
    groups = make_groups(query, weights)
    weights = weights * len(SIZES) / weights.sum()
    told = jax.jit(lambdas, static_argnums=0)
    for iteration, s in ((0, score), (5, score), (0, 0 * score)):
        actual = told(ranking, s, label, groups, iteration)
        expected = by_the_formula(ranking, s, label, query, weights, iteration)
        for a, b in zip(actual, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


def test_a_generator_that_would_stand_still_starts_from_one(rng):
    label = jnp.array([2.0, 1.0, 0.0, 1.0])
    groups, ranking = make_groups(np.zeros(4, int)), Ranking("pairwise", "mean")
    found = [
        lambdas(ranking, jnp.zeros(4), label, groups, jnp.int32(i))[0]
        for i in (0, 2**31 - 2)  # seeds 1 and 2^31 - 1
    ]
    np.testing.assert_array_equal(*found)


def test_defaults_are_xgboosts():
    assert (Ranking().pairs, Ranking(pair_method="mean").pairs) == (32, 1)
    assert Ranking(num_pair=5).pairs == 5


def test_drawn_pairs_pull_apart_and_depend_on_the_round(rng):
    query, score, label = queries(rng)
    groups = make_groups(query)
    ranking = Ranking("pairwise", "mean", num_pair=2, score_normalize=False)
    first, again, later = (
        np.asarray(lambdas(ranking, score, label, groups, i)[0]) for i in (0, 0, 1)
    )
    assert (first == again).all()
    assert (first != later).any()
    for q in range(len(SIZES)):
        rows = query == q
        assert abs(first[rows].sum()) < 1e-5  # what one gains another loses
        if len(set(label[rows])) > 1:
            best = label[rows] == label[rows].max()
            assert (first[rows][best] < 0).all()
        else:
            assert not first[rows].any()


def test_metrics_are_those_of_the_formula(rng):
    query, score, label = queries(rng, 2)
    groups = make_groups(query)
    ranked = [
        label[query == q][np.argsort(-score[query == q], kind="stable")]
        for q in range(len(SIZES))
    ]
    for k in (None, 2):
        each = [
            dcg(y, k) / dcg(np.sort(y)[::-1], k) if y.any() else 1.0 for y in ranked
        ]
        assert float(ndcg(score, label, groups, k)) == pytest.approx(np.mean(each))
        each = each_of(ranked, k)
        told = float(mean_average_precision(score, label, groups, k))
        assert told == pytest.approx(np.mean(each), rel=1e-5)
    weights = np.array([0.0, 1.0, 2.0, 5.0])
    told = mean_average_precision(score, label, make_groups(query, weights))
    assert float(told) == pytest.approx(np.average(each_of(ranked), weights=weights))


def each_of(ranked, k=None):
    return [average_precision(y, k) if y.any() else 1.0 for y in ranked]


def test_linear_gains_are_the_labels():
    groups = make_groups(np.zeros(2, int))
    told = ndcg(jnp.array([2.0, 1.0]), jnp.array([1.0, 3.0]), groups, exp_gain=False)
    assert float(told) == pytest.approx(
        dcg([1, 3], None, False) / dcg([3, 1], None, False)
    )


def test_bad_queries_are_told():
    with pytest.raises(ValueError, match="stand together"):
        make_groups(np.array([0, 1, 0]))
    with pytest.raises(ValueError, match="weights must be of 2 queries"):
        make_groups(np.array([0, 1, 1]), np.ones(3))
    for weights in (np.array([2.0, -1.0]), np.zeros(2)):
        with pytest.raises(ValueError, match="not negative, not all zero"):
            make_groups(np.array([0, 1, 1]), weights)
    groups = make_groups(np.array([4, 4, 2]))
    assert groups.count.tolist() == [2, 1]
    g, _ = lambdas(Ranking(), jnp.zeros(3), jnp.array([1.0, 1.0, 3.0]), groups)
    assert not g.any()
