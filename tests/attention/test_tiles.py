"""Cutting and joining are inverse, and loops share what is shared."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.attention.spec import Operands
from jaxml.attention.tiles import (
    ENTRIES,
    Tiles,
    cut,
    map_axis,
    scan_axis,
    spread,
    uncut,
)


def operands(batch, queries, keys, heads, kv_heads, dim=4):
    return Operands(
        jnp.arange(batch * queries * heads * dim, dtype=jnp.float32).reshape(
            batch, queries, heads, dim
        ),
        jnp.zeros((batch, keys, kv_heads, dim)),
        jnp.zeros((batch, keys, kv_heads, dim)),
    )


@pytest.mark.parametrize("size", [3, 7, 10])
def test_uncut_is_the_inverse(size):
    made = operands(2, 7, 5, 6, 3)
    tiles = Tiles(2, size, 5)
    pieces = cut(tiles, made).query
    chex.assert_shape(pieces, (2, 3, -(-7 // size), 2 * size, 4))
    chex.assert_trees_all_equal(uncut(pieces, tiles, made), made.query)
    # Rows of a tile: the first query head of the group, then the second.
    chex.assert_trees_all_equal(pieces[1, 2, 0, size + 1], made.query[1, 1, 5])


def test_a_bias_is_cut_as_its_logits_and_shared_where_it_is_one():
    tiles = Tiles(2, 2, 3)
    bias = jnp.arange(6 * 4 * 6, dtype=jnp.float32).reshape(1, 6, 4, 6)
    pieces = cut(tiles, Operands(None, None, None, bias)).bias
    chex.assert_shape(pieces, (1, 3, 2, 2, 2, 2, 3))
    expected = np.asarray(bias)[0, 4:6, 2:4, 0:3].reshape(4, 3)
    chex.assert_trees_all_equal(spread(pieces[0, 2, 1, 0], tiles), expected)
    shared = cut(tiles, Operands(None, None, None, bias[:, :1, :, :1])).bias
    chex.assert_shape(shared, (1, 1, 2, 1, 1, 2, 1))


@pytest.mark.parametrize(
    "sizes",
    [
        (1, 4096, 4096, 8, 8),
        (64, 197, 197, 12, 12),
        (3, 1, 65536, 8, 1),
        (7, 1025, 9, 6, 2),
        (5, 1, 1, 1, 1),
    ],
    ids=str,
)
def test_tiles_divide_and_are_of_a_size(sizes):
    batch, queries, _, _, kv_heads = sizes
    shape = jax.eval_shape(lambda: operands(*sizes))
    tiles = Tiles.of(shape)
    assert kv_heads % tiles.heads == 0
    assert batch % tiles.batch == 0
    assert tiles.batch == 1 or tiles.heads == kv_heads
    entries = tiles.batch * tiles.heads * tiles.groups * tiles.queries * tiles.keys
    assert entries <= 1.1 * ENTRIES
    padded = -(-queries // tiles.queries) * tiles.queries
    assert padded - queries < 8 * -(-queries // tiles.queries)


@pytest.mark.parametrize("at_once", [1, 2, 6])
def test_maps_share_axes_of_one(rng, at_once):
    x, y = np.float32(rng.normal(size=(6, 3))), np.float32(rng.normal(size=(1, 3)))
    f = lambda pair: pair[0] * pair[1]
    chex.assert_trees_all_close(map_axis(f, 6, at_once, (x, y)), x * y, rtol=1e-6)
    grad = jax.grad(lambda y: jnp.sum(map_axis(f, 6, at_once, (x, y))))(y)
    chex.assert_trees_all_close(grad, x.sum(0, keepdims=True), rtol=1e-5)


def test_scans_share_axes_of_one():
    add = lambda total, pair: (total + pair[0] * pair[1], total)
    total, before = scan_axis(
        add, jnp.float32(0), 3, (jnp.arange(3.0), jnp.array([2.0]))
    )
    assert (float(total), before.tolist()) == (6.0, [0.0, 0.0, 2.0])
    total, before = scan_axis(
        add, jnp.float32(1), 1, (jnp.array([3.0]), jnp.array([2.0]))
    )
    assert (float(total), before.tolist()) == (7.0, [1.0])


def test_maps_leave_out_what_is_not_there():
    tree = {"x": jnp.arange(4.0), "mask": None, "shared": jnp.array([2.0])}
    f = lambda t: (t["x"] * t["shared"], t["mask"])
    for at_once in (1, 2, 4):
        y, mask = map_axis(f, 4, at_once, tree)
        assert (y.tolist(), mask) == ([0.0, 2.0, 4.0, 6.0], None)
