"""Walks over rows against every threshold of every node in NumPy, and how they compile."""

import re
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.trees.codes import encode
from jaxml.trees.impurity import impurity
from jaxml.trees.search import Least, Level, Rows, Shape, _gain, by_sort, by_walk
from jaxml.trees.walk import MOST, walk

WIDTH, NODES = 9, 5
SEARCHES = by_walk, by_sort


def gain(left, right, least):
    """Best where the right is half of the left; -inf where a side is too light."""
    fits = (left[-1] >= least) & (right[-1] >= least)
    score = -(left**2).sum(axis=0) - 2 * (right**2).sum(axis=0)
    score = jnp.round(score / 100)  # for many ties
    return jnp.where(fits, score, -jnp.inf)


def searched(code, q, total, least):
    """The best (gain, below, above, missing left, sums) of one node's rows."""
    codes, best = np.unique(code), (-np.inf, -1, -1, False, 0 * total)
    known = q[code < WIDTH].sum(axis=0)
    for below, above in pairwise(codes):
        left = q[code <= below].sum(axis=0)
        sides = [False, True] if above < WIDTH and (code == WIDTH).any() else [False]
        for goes in sides:
            both = left + goes * (total - known)
            score = float(gain(both, total - both, least))
            if score > best[0] or best[2] < 0:
                best = (score, below, above, goes, both)
    return best


def table(rng, n, channels, missing):
    """Codes, slots and sums of rows, some of which rest."""
    code = rng.integers(0, WIDTH, n).astype(np.uint8)
    code[rng.random(n) < missing] = WIDTH
    slot = rng.integers(0, NODES + 1, n).astype(np.int32)
    code[slot == 3], slot[slot == 4] = 2, 1  # one of one code, one of no rows
    return code, slot, rng.integers(1, 4, (n, channels)).astype(np.float64)


def totals(slot, q):
    return np.array([q[slot == node].sum(axis=0) for node in range(NODES)])


def walked(code, slot, q, total, least, has_missing):
    return walk(code, slot, q, total.T, gain, least, WIDTH, has_missing)


@pytest.mark.parametrize("missing", [0.0, 0.3])
@pytest.mark.parametrize("channels", [1, MOST])
@pytest.mark.parametrize("least", [0.0, 9.0])
def test_walks_find_what_every_threshold_tells(missing, channels, least, rng):
    goes, gains = [], []
    for _ in range(4):
        code, slot, q = table(rng, 90, channels, missing)
        total = totals(slot, q)
        with jax.enable_x64(True):
            args = code, slot, q, total, least
            found, left = jax.jit(walked, static_argnums=5)(*args, missing > 0)
            for node in range(NODES):
                here = slot == node
                best = searched(code[here], q[here], total[node], least)
                told = [float(part[node]) for part in (*found[:3], left)]
                assert told == [float(part) for part in best[:4]]
                if best[0] > -np.inf:
                    np.testing.assert_array_equal(found.left[:, node], best[4])
                assert found.last[node] == code[here].astype(int).max(initial=-1)
                goes.append(best[3])
                gains.append(best[0])
    assert any(goes) == (missing > 0)
    assert 4 < np.isfinite(gains).sum() <= 12


def test_batches_are_walked_one_by_one(rng):
    many = [table(rng, 60, 2, 0.2) for _ in range(3)]
    code, slot, q = (np.stack(parts) for parts in zip(*many, strict=True))
    total = np.stack([totals(s, each) for s, each in zip(slot, q, strict=True)])

    def one(code, slot, q, total):
        return walked(code, slot, q, total, 1.0, True)

    with jax.enable_x64(True):
        told = jax.jit(jax.vmap(one))(code, slot, q, total)
        for i in range(3):
            alone = one(code[i], slot[i], q[i], total[i])
            jax.tree.map(
                lambda part, other, i=i: np.testing.assert_array_equal(part[i], other),
                told,
                alone,
            )


@pytest.mark.parametrize("counts", [False, True])
@pytest.mark.parametrize("missing", [0.0, 0.3])
@pytest.mark.parametrize("name", ["gini", "squared_error"])
def test_walks_find_what_sorting_finds(name, missing, counts, rng):
    n, columns = 200, 3
    x = np.round(rng.normal(size=(n, columns)) * 3).astype(np.float32)
    x[rng.random(x.shape) < missing] = np.nan
    slot = np.minimum(rng.integers(0, 2 * NODES, n), NODES).astype(np.int32)
    q = rng.integers(1, 4, (n, 2)).astype(np.float64)
    q = np.concatenate([q, np.ones((n, 1))], axis=1)[:, : 2 + counts]
    count = np.bincount(slot, minlength=NODES + 1)[:NODES].astype(np.int32)
    first = (np.cumsum(count) - count).astype(np.int32)
    feature = rng.integers(0, columns, NODES).astype(np.int32)
    rule = impurity(name, num_classes=2)
    shape = Shape(9, NODES, has_missing=missing > 0, counts=counts)
    codes = encode(x, counted=slot < NODES)

    @partial(jax.jit, static_argnums=0)
    def found(search, q, total):
        rows = Rows(jnp.asarray(x).T, codes, q, jnp.arange(n))
        level = Level(*map(jnp.asarray, (slot, first, count)), total)
        least = Least(jnp.int32(4), jnp.float32(2))
        return search(rows, level, jnp.asarray(feature), rule, least, shape)

    with jax.enable_x64(True):
        total = jnp.asarray(totals(slot, q).T)
        walks, sorts = (found(search, q, total) for search in SEARCHES)
        gains = walks[0].gain, sorts[0].gain  # one may round products that it adds
        np.testing.assert_allclose(*gains, rtol=1e-14)
        for one, other in zip(walks[0][1:], sorts[0][1:], strict=True):
            np.testing.assert_array_equal(one, other)
        for one, other in zip(walks[1:], sorts[1:], strict=True):
            np.testing.assert_array_equal(one, other)
    assert np.isfinite(walks[0].gain).all()
    assert walks[0].some_missing.any() == (missing > 0)


@pytest.mark.parametrize("channels", range(2, MOST + 1))
@pytest.mark.parametrize("name", ["gini", "squared_error"])
def test_loops_are_compiled_in_one_piece(name, channels):
    """What makes them fast on a CPU: one call of one function, and no copies inside."""
    counts = channels == MOST
    rule = impurity(name, num_classes=channels - counts)
    assert rule.light
    shape = Shape(9, NODES, counts=counts)
    with jax.enable_x64(True):
        q, least = jnp.ones((5000, channels)), Least(jnp.int32(1), jnp.float32(0))
        whole = jnp.zeros(5000, jnp.int32)
        program = jax.jit(walk, static_argnums=(4, 6, 7)).lower(
            whole,
            whole,
            q,
            q[:NODES].T,
            partial(_gain, rule, shape=shape),
            least,
            99,
            True,
        )
        text = program.compile().as_text()
    entry = text[text.index("\nENTRY") :]
    assert "small_call" in entry
    assert " while(" not in entry
    assert "f64[5000" not in "".join(re.findall(r"= (\S+) copy\(", text))
