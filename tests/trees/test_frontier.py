"""Lists of open nodes: what the three searches share, and where they must agree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.trees.codes import encode
from jaxml.trees.fixed_point import snap
from jaxml.trees.frontier import Limits, grow, shape
from jaxml.trees.impurity import impurity
from jaxml.trees.tree import leaf_index

KEY = jax.random.key(0)


def grown(x, y, tables, max_codes=None, min_leaf=3):
    n, columns = x.shape
    width = max_codes or n
    plan = shape(n, width, 4)._replace(tables=tables)

    @jax.jit
    def run(x, y):
        channels = jnp.stack([y, jnp.ones(n)])
        bits = jax.lax.bitcast_convert_type(y, jnp.int32)
        return grow(
            x.T,
            encode(x, max_codes),
            channels,
            bits,
            jnp.ones(n, bool),
            impurity("squared_error"),
            Limits(4, 2, min_leaf, 0.0, columns, columns),
            plan,
            KEY,
        )

    return run(jnp.asarray(x), jnp.asarray(y))


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_tables_find_what_sorting_finds(missing, rng):
    x = rng.normal(size=(90, 3)).astype(np.float32)
    x[rng.random(x.shape) < missing] = np.nan
    y = (np.nan_to_num(x[:, 0]) + rng.normal(size=90)).astype(np.float32)
    by_sort, leaf, used = grown(x, y, ())
    by_both, *_ = grown(x, y, (2, 4))  # levels of 1, 2, 4 nodes by table, then by sort
    assert used == 2 * (by_sort.left > 0).sum() + 1
    for one, other in zip(by_sort, by_both, strict=True):
        np.testing.assert_array_equal(one, other)
    assert (leaf_index(by_sort, x) == leaf).all()
    counts = np.bincount(leaf)
    assert counts[counts > 0].min() >= 3


def test_covers_add_up_and_children_follow_parents(rng):
    x = rng.normal(size=(90, 3)).astype(np.float32)
    tree, *_ = grown(x, x[:, 0] * x[:, 1], ())
    (inner,) = np.nonzero(tree.left)
    assert len(inner) > 4
    first = np.asarray(tree.left)[inner]
    assert (first > inner).all()
    both = tree.cover[first] + tree.cover[first + 1]
    np.testing.assert_array_equal(both, tree.cover[inner])
    gains = np.asarray(tree.gain)[inner]
    means = np.asarray(tree.value)[:, 0]
    cover = np.asarray(tree.cover)
    risks = cover * means**2
    np.testing.assert_allclose(
        gains, risks[first] + risks[first + 1] - risks[inner], rtol=1e-3, atol=1e-3
    )


def test_sums_on_the_grid_are_exact_in_any_order(rng):
    x = (rng.normal(size=(1, 500)) * 10.0 ** rng.integers(-3, 4, 500)).astype(
        np.float32
    )
    with jax.enable_x64(True):
        q = np.asarray(snap(jnp.asarray(x)))[0]
    assert q.sum() == q[rng.permutation(500)].sum() == np.cumsum(q)[-1]
    np.testing.assert_allclose(q, x[0], atol=2.0**-43 * np.abs(x).max() * 500)
