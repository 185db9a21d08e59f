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


def dcg(labels, k=None):
    gain = 2.0 ** np.asarray(labels)[:k] - 1
    return (gain / np.log2(np.arange(len(gain)) + 2)).sum()


def average_precision(labels):
    labels = np.asarray(labels)
    hits = labels.cumsum() / np.arange(1, len(labels) + 1)
    return (labels * hits).sum() / max(labels.sum(), 1e-30)


def worth(metric, labels, i, j, k):
    """What swapping two ranks changes, by swapping them."""
    if metric == "pairwise":
        return 1.0
    swapped = labels.copy()
    swapped[[i, j]] = swapped[[j, i]]
    if metric == "map":
        return abs(average_precision(swapped) - average_precision(labels))
    best = dcg(np.sort(labels)[::-1], k)
    return abs(dcg(swapped) - dcg(labels)) / best if best else 0.0


def by_the_formula(ranking, score, label, query, weight):
    g, h = np.zeros(len(score)), np.zeros(len(score))
    for q in range(len(SIZES)):
        rows = np.flatnonzero(query == q)
        rows = rows[np.argsort(-score[rows], kind="stable")]
        s, y = score[rows].astype(np.float64), label[rows]
        pull, bend, total = np.zeros(len(s)), np.zeros(len(s)), 0.0
        for i in range(min(ranking.pairs, len(s))):
            for j in range(i + 1, len(s)):
                if y[i] == y[j]:
                    continue
                high, low = (i, j) if y[i] > y[j] else (j, i)
                delta = worth(ranking.metric, y, i, j, ranking.pairs)
                if ranking.score_normalize and s[0] != s[-1]:
                    delta /= abs(s[i] - s[j]) + 0.01
                p = 1 / (1 + np.exp(s[low] - s[high]))
                pull[high] += (p - 1) * delta
                pull[low] -= (p - 1) * delta
                bend[[high, low]] += 2 * p * (1 - p) * delta
                total += 2 * (1 - p) * delta
        scale = np.log2(1 + total) / total if total and ranking.normalize else 1.0
        g[rows], h[rows] = pull * scale * weight[q], bend * scale * weight[q]
    return g, h


@pytest.mark.parametrize(
    "ranking",
    [
        Ranking("ndcg"),
        Ranking("ndcg", num_pair=2, score_normalize=False),
        Ranking("map", normalize=False),
        Ranking("pairwise"),
    ],
    ids=lambda r: f"{r.metric}-{r.pairs}",
)
def test_lambdas_are_those_of_the_formula(rng, ranking):
    query, score, label = queries(rng, 2 if ranking.metric == "map" else 4)
    weights = rng.uniform(0.5, 2, len(SIZES))
    groups = make_groups(query, weights)
    actual = jax.jit(lambdas, static_argnums=0)(ranking, score, label, groups)
    weights = weights * len(SIZES) / weights.sum()
    expected = by_the_formula(ranking, score, label, query, weights)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


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
    each = [average_precision(y) if y.any() else 1.0 for y in ranked]
    told = float(mean_average_precision(score, label, groups))
    assert told == pytest.approx(np.mean(each), rel=1e-5)


def test_bad_queries_are_told():
    with pytest.raises(ValueError, match="stand together"):
        make_groups(np.array([0, 1, 0]))
    with pytest.raises(ValueError, match="weights must be of 2 queries"):
        make_groups(np.array([0, 1, 1]), np.ones(3))
    groups = make_groups(np.array([4, 4, 2]))
    assert groups.count.tolist() == [2, 1]
    g, _ = lambdas(Ranking(), jnp.zeros(3), jnp.array([1.0, 1.0, 3.0]), groups)
    assert not g.any()
