"""From splits to trees, and which columns are drawn, against plain Python."""

import heapq

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.trees.growth import Nodes, Splits, assemble, draw_columns


@pytest.mark.parametrize("share", [0.1, 0.35, 0.5])
def test_columns_are_drawn_evenly_and_without_replacement(share):
    mask = jnp.arange(12)[None, :] < jnp.array([[10], [7]])
    many = jax.vmap(lambda key: draw_columns(key, mask, share))
    drawn = np.asarray(many(jax.random.split(jax.random.key(0), 4000)))
    for row, available in enumerate((10, 7)):
        each = drawn[:, row]
        count = max(int(share * available), 1)
        assert (each.sum(axis=1) == count).all()
        assert not each[:, available:].any()
        expected = count / available
        spread = np.sqrt(expected * (1 - expected) / 4000)
        np.testing.assert_allclose(
            each[:, :available].mean(axis=0), expected, atol=4.5 * spread
        )
    both = np.corrcoef(drawn[:, 0, 0], drawn[:, 1, 0])[0, 1]
    assert abs(both) < 0.08  # slots are drawn apart


def levels_of(rng, depth):
    def splits(n):
        zeros = jnp.zeros(n, jnp.int32)
        gain = jnp.asarray(rng.uniform(-0.1, 1, n), jnp.float32)
        words = jnp.zeros((n, 0), jnp.uint32)
        return Splits(gain, zeros, jnp.zeros(n), jnp.zeros(n, bool), words)

    nodes = lambda n: Nodes(jnp.ones((n, 1)), jnp.ones(n))
    return [(nodes(2**d), splits(2**d)) for d in range(depth)], nodes(2**depth)


def grown(gain, leaves, best_first):
    """The nodes that split, by a queue."""
    ready, kept = [(0.0, 0)], set()
    rank = lambda node: (-float(gain[node]) if best_first else 0.0, node)
    ready = [rank(0)] if gain[0] > 1e-6 else []
    while ready and len(kept) < leaves - 1:
        _, node = heapq.heappop(ready)
        kept.add(node)
        for child in (2 * node + 1, 2 * node + 2):
            if child < len(gain) and gain[child] > 1e-6:
                heapq.heappush(ready, rank(child))
    return kept


@pytest.mark.parametrize("best_first", [False, True])
def test_the_splits_kept_are_those_of_a_queue(rng, best_first):
    for leaves in (2, 6, 6, 6, 9):
        levels, bottom = levels_of(rng, 4)
        tree, leaf = assemble(
            levels,
            bottom,
            0.0,
            prune=False,
            max_leaves=leaves,
            best_first=best_first,
        )
        gain = np.concatenate([s.gain for _, s in levels])
        inner = set(np.flatnonzero(tree.left).tolist())
        assert inner == grown(gain, leaves, best_first)
        for slot, node in enumerate(np.asarray(leaf).tolist()):
            at = 15 + slot  # the leaf is the first ancestor that does not split
            path = [at]
            while at:
                at = (at - 1) // 2
                path.append(at)
            assert node == next(p for p in reversed(path) if p not in inner)
