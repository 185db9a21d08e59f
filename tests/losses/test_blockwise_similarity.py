"""Blockwise similarities against loops, their gradients, devices, and memory."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxml.losses import blockwise_similarity
from jaxml.parallel import data_mesh, pmean
from tests.numerical import close, gradients

REDUCTIONS = pytest.mark.parametrize("reduce", ["logsumexp", "softplus"])


def by_loops(x, y, reduce, skip=None, bias=0.0, a=None, b=None):
    """Row by row and column by column; (rows, columns, row_max)."""
    a = np.ones(len(x)) if a is None else a
    b = np.ones(len(y)) if b is None else b
    x_ids, y_ids = skip or (np.full(len(x), -1), np.full(len(y), -2))
    rows = [[] for _ in x]
    columns = [[] for _ in y]
    for i, p in enumerate(x):
        for j, q in enumerate(y):
            if x_ids[i] != y_ids[j]:
                s = a[i] * b[j] * (p @ q) + bias
                rows[i].append(s)
                columns[j].append(s)

    def total(s):
        if reduce == "softplus":
            return np.sum(np.log1p(np.exp(np.asarray(s))))
        return np.log(np.sum(np.exp(s)))

    return (
        np.array([total(s) for s in rows]),
        np.array([total(s) for s in columns]),
        np.array([max(s, default=-np.inf) for s in rows]),
    )


@REDUCTIONS
@pytest.mark.parametrize("n, m, chunk", [(5, 7, 3), (8, 4, 4), (1, 3, 100)])
def test_matches_loops_in_value_and_gradient(rng, reduce, n, m, chunk):
    x, y, weights = (rng.normal(size=s) for s in [(n, 4), (m, 4), (n + m,)])
    a, b, bias = rng.uniform(0.5, 2, n), rng.uniform(0.5, 2, m), np.array(-0.7)
    skip = (rng.integers(0, 3, n), rng.integers(2, 5, m))

    def expected(x, y, a, b, bias):
        rows, columns, _ = by_loops(x, y, reduce, skip, bias, a, b)
        return rows @ weights[:n] + columns @ weights[n:]

    @jax.jit
    def actual(x, y, a, b, bias):
        met = blockwise_similarity(
            x,
            y,
            x_scale=a,
            y_scale=b,
            bias=bias,
            skip=skip,
            reduce=reduce,
            both=True,
            chunk=chunk,
        )
        w = weights.astype(np.float32)
        return met.rows @ w[:n] + met.columns @ w[n:], met

    args = [np.float32(v) for v in (x, y, a, b, bias)]
    (value, met), grads = jax.value_and_grad(actual, (0, 1, 2, 3, 4), has_aux=True)(
        *args
    )
    rows, columns, row_max = by_loops(x, y, reduce, skip, bias, a, b)
    close(met.rows, rows, scale=5)
    close(met.columns, columns, scale=5)
    close(met.row_max, row_max, scale=5)
    close(value, expected(x, y, a, b, bias), scale=20)
    for got, wanted in zip(grads, gradients(expected, x, y, a, b, bias), strict=True):
        close(got, wanted, rtol=1e-5, atol=1e-5)


@REDUCTIONS
@pytest.mark.parametrize("n, chunk", [(6, 4), (7, 2), (4, 64)])
def test_rows_among_themselves(rng, reduce, n, chunk):
    x, a, weights = rng.normal(size=(n, 3)), rng.uniform(0.5, 2, n), rng.normal(size=n)
    ids = np.arange(n) // 2

    def expected(x, a, bias):
        return by_loops(x, x, reduce, (ids, ids), bias, a, a)[0] @ weights

    @jax.jit
    def actual(x, a, bias):
        met = blockwise_similarity(
            x, x_scale=a, bias=bias, skip=ids, reduce=reduce, chunk=chunk, both=True
        )
        chex.assert_trees_all_equal(met.rows is met.columns, True)
        return met.rows @ weights.astype(np.float32)

    args = (x, a, np.array(0.3))
    if n % 2:  # the last has no pair to skip but itself
        args[0][-1] *= 2
    got = jax.value_and_grad(actual, (0, 1, 2))(*(np.float32(v) for v in args))
    close(got[0], expected(*args), scale=10)
    for g, wanted in zip(got[1], gradients(expected, *args), strict=True):
        close(g, wanted, rtol=1e-5, atol=1e-5)


def test_a_row_without_columns_is_empty_and_harmless(rng):
    x = np.float32(rng.normal(size=(2, 3)))
    ids = np.zeros(2, np.int32)

    def total(x, reduce):
        met = blockwise_similarity(x, skip=ids, reduce=reduce)
        return jnp.sum(jax.nn.softplus(met.rows)), met

    (_, met), grad = jax.value_and_grad(total, has_aux=True)(x, "logsumexp")
    assert jnp.isneginf(met.rows).all()
    assert jnp.isneginf(met.row_max).all()
    chex.assert_trees_all_equal(grad, jnp.zeros_like(grad))
    (_, met), grad = jax.value_and_grad(total, has_aux=True)(x, "softplus")
    chex.assert_trees_all_equal((met.rows, grad), (jnp.zeros(2), jnp.zeros_like(grad)))


def test_large_similarities_neither_overflow_nor_vanish(rng):
    x = np.float32(1e3 * rng.normal(size=(6, 4)))
    met, grad = jax.value_and_grad(
        lambda x: jnp.sum(blockwise_similarity(x, chunk=2).rows)
    )(x)
    rows = jax.nn.logsumexp(np.float64(x) @ np.float64(x.T), axis=1)
    chex.assert_trees_all_close(met, jnp.sum(rows), rtol=1e-6)
    chex.assert_tree_all_finite(grad)


def test_row_max_has_no_gradient_and_batches_are_mapped(rng):
    x, y = np.float32(rng.normal(size=(2, 3, 4, 5)))
    grad = jax.grad(lambda x: jnp.sum(blockwise_similarity(x, y[0]).row_max))(x[0])
    chex.assert_trees_all_equal(grad, jnp.zeros_like(grad))
    mapped = jax.vmap(lambda x, y: blockwise_similarity(x, y).rows)(x, y)
    one = jnp.stack([blockwise_similarity(*xy).rows for xy in zip(x, y, strict=True)])
    chex.assert_trees_all_close(mapped, one, rtol=1e-6)


def test_half_precision_is_added_up_in_float32(rng):
    x, y = rng.normal(size=(2, 64, 32)).astype(np.float32)
    halves = [jnp.asarray(v, jnp.bfloat16) for v in (x, y)]
    met = blockwise_similarity(*halves, chunk=16)
    assert met.rows.dtype == jnp.float32
    wide = blockwise_similarity(*(h.astype(jnp.float32) for h in halves))
    chex.assert_trees_all_close(met.rows, wide.rows, rtol=1e-5)
    grads = jax.grad(lambda x, y: jnp.sum(blockwise_similarity(x, y).rows), (0, 1))
    for half, full in zip(
        grads(*halves), grads(*(h.astype(jnp.float32) for h in halves)), strict=True
    ):
        assert half.dtype == jnp.bfloat16
        chex.assert_trees_all_close(half.astype(jnp.float32), full, atol=0.05)


@REDUCTIONS
@pytest.mark.parametrize("is_symmetric", [True, False])
@pytest.mark.parametrize("devices", [2, 8])
def test_many_devices_equal_one(rng, reduce, is_symmetric, devices):
    """Value and gradient of a loss that reads rows, columns and a shared bias."""
    x, y = np.float32(rng.normal(size=(2, 24, 4)))
    ids = np.arange(24) // 3

    def loss(x, y, bias, ids, axis_name=None):
        met = blockwise_similarity(
            x,
            None if is_symmetric else y,
            bias=bias,
            skip=ids,
            reduce=reduce,
            both=True,
            chunk=2,
            axis_name=axis_name,
        )
        value = jnp.mean(jnp.square(met.rows) + met.columns) - jnp.mean(x * y)
        return pmean(value + 0 * jnp.sum(met.row_max), axis_name)

    sharded = jax.shard_map(
        lambda *args: loss(*args, axis_name="data"),
        mesh=data_mesh(jax.devices()[:devices]),
        in_specs=(P("data"), P("data"), P(), P("data")),
        out_specs=P(),
    )
    args = (x, y, np.float32(0.5), ids)
    one = jax.value_and_grad(loss, (0, 1, 2))(*args)
    many = jax.jit(jax.value_and_grad(sharded, (0, 1, 2)))(*args)
    chex.assert_trees_all_close(
        jax.device_get(many), jax.device_get(one), rtol=1e-5, atol=1e-6
    )


def test_columns_that_all_devices_share_need_no_axis(rng):
    """MoCo's queue: rows are split, columns are not."""
    x, queue = np.float32(rng.normal(size=(8, 4))), np.float32(rng.normal(size=(5, 4)))

    def loss(x, queue, axis_name=None):
        return pmean(jnp.mean(blockwise_similarity(x, queue, chunk=2).rows), axis_name)

    sharded = jax.shard_map(
        lambda *args: loss(*args, "data"),
        mesh=data_mesh(jax.devices()[:4]),
        in_specs=(P("data"), P()),
        out_specs=P(),
    )
    one = jax.value_and_grad(loss, (0, 1))(x, queue)
    many = jax.jit(jax.value_and_grad(sharded, (0, 1)))(x, queue)
    chex.assert_trees_all_close(
        jax.device_get(many), jax.device_get(one), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("is_symmetric", [True, False])
def test_memory_grows_with_the_rows_and_not_with_their_square(is_symmetric):
    def temporary(n):
        def loss(x, y):
            met = blockwise_similarity(x, None if is_symmetric else y, chunk=256)
            return jnp.mean(met.rows)

        shape = jax.ShapeDtypeStruct((n, 64), jnp.float32)
        compiled = jax.jit(jax.grad(loss)).lower(shape, shape).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    n = 8192
    assert temporary(n) < 0.1 * 4 * n * n
    assert temporary(2 * n) < 2.5 * temporary(n)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"y": np.ones((3, 5), np.float32)}, "one dim|dim"),
        ({"y": np.ones((0, 4), np.float32)}, "rows and columns"),
        ({"reduce": "max"}, r"reduce must be|reduce"),
        ({"chunk": 0}, "chunk must be at least 1"),
        ({"skip": np.arange(3)}, "skip must number|rows"),
        ({"x_scale": np.ones(3, np.float32)}, "x_scale must be a number or 2|rows"),
    ],
)
def test_bad_input_is_refused(changes, message):
    with pytest.raises((ValueError, TypeError), match=message):
        blockwise_similarity(**{"x": np.ones((2, 4), np.float32), **changes})
