"""Attention in tiles: as exact as the plain one, any order of derivative, linear memory."""

import re
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxml.attention import attention
from jaxml.attention.chunked import chunked
from jaxml.attention.reference import reference
from jaxml.attention.tiles import Tiles
from tests.attention.conftest import (
    assert_errors_are_at_most_twice_those_of_plain_attention,
    outputs,
)

# Sizes cross the edges of tiles; every option stands beside others, and in two dtypes.
CASES = {
    "one key": {"queries": 1, "keys": 1, "dim": 16},
    "one query": {"queries": 1, "keys": 65, "heads": 8, "kv_heads": 1, "dim": 32},
    "causal": {"queries": 129, "keys": 129, "is_causal": True, "value_dim": 8},
    "causal from the end": {
        "queries": 63,
        "keys": 128,
        "is_causal": True,
        "causal_offset": "bottom_right",
        "bias": (1, 4, 1, 128),
    },
    "window and cap": {
        "queries": 127,
        "keys": 127,
        "local_window_size": (20, 5),
        "logits_soft_cap": 1.5,
        "bias": (2, 1, 127, 127),
    },
    "lengths": {
        "queries": 64,
        "keys": 192,
        "query_seq_lengths": np.array([64, 10]),
        "key_value_seq_lengths": np.array([0, 100]),
        "kv_heads": 4,
    },
    "segments": {
        "queries": 128,
        "keys": 128,
        "segment_ids": np.sort(np.arange(256).reshape(2, 128) * 7 % 5, axis=1),
        "is_causal": True,
    },
    "mask and bias": {
        "queries": 65,
        "keys": 96,
        "mask": (2, 1, 65, 96),
        "bias": (1, 4, 65, 1),
        "heads": 4,
        "kv_heads": 1,
    },
    "dropout": {
        "queries": 40,
        "keys": 72,
        "dropout_rate": 0.3,
        "dropout_key": jax.random.key(3),
        "causal_offset": np.array([20, -5]),
        "is_causal": True,
    },
    "large logits": {"queries": 33, "keys": 65, "scale_of_inputs": 60.0},
}
SMALL = {"queries": 32, "keys": 24}  # of a tile


def tiled(operands, **sizes):
    """`chunked` in small tiles, so that there are many."""
    sizes = SMALL | sizes
    return partial(chunked, tiles=Tiles(operands.groups, **sizes))


HALF = ("causal from the end", "window and cap", "lengths", "dropout")
KINDS = [(name, jnp.float32) for name in CASES]
KINDS += [(name, jnp.bfloat16) for name in HALF] + [(HALF[0], jnp.float16)]


@pytest.mark.parametrize("name, dtype", KINDS)
def test_errors_are_at_most_twice_those_of_plain_attention(call, name, dtype):
    spec, operands, context = call(dtype=dtype, **CASES[name])
    assert_errors_are_at_most_twice_those_of_plain_attention(
        tiled(operands), spec, operands, context
    )


@pytest.mark.parametrize("sizes", [(16, 8, 1, 1), (37, 53, 2, 1), (37, 53, 2, 2)])
def test_the_cut_does_not_matter(call, sizes):
    spec, operands, context = call(
        bias=(2, 4, 37, 53),
        mask=(1, 4, 37, 1),
        dropout_rate=0.2,
        dropout_key=jax.random.key(0),
    )
    run = partial(chunked, tiles=Tiles(2, *sizes))
    actual = outputs(run, spec, operands, context)
    expected = outputs(reference, spec, operands, context)
    chex.assert_trees_all_close(actual, expected, rtol=1e-4, atol=2e-5)


# Derivatives of every kind.


@pytest.fixture
def small(call):
    spec, operands, context = call(
        batch=1,
        queries=5,
        keys=7,
        heads=2,
        kv_heads=1,
        dim=3,
        value_dim=2,
        bias=(1, 1, 5, 7),
        local_window_size=(4, 1),
        logits_soft_cap=3.0,
        key_value_seq_lengths=np.array([6]),
        query_seq_lengths=np.array([4]),
    )

    def scalar(run):
        def value(operands):
            out, lse = run(spec, operands, context)
            return jnp.sum(jnp.sin(out)) + jnp.sum(
                jnp.where(lse > -jnp.inf, lse, 0) ** 2
            )

        return value

    tiles = partial(chunked, tiles=Tiles(2, 2, 3))
    return operands, scalar(tiles), scalar(reference)


def directions(rng, operands):
    return jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), operands
    )


def test_forward_mode(rng, small):
    operands, tiles, plain = small
    along = directions(rng, operands)
    actual = jax.jvp(tiles, (operands,), (along,))
    expected = jax.jvp(plain, (operands,), (along,))
    chex.assert_trees_all_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("outer", [jax.jacfwd, jax.jacrev], ids=["fwd", "rev"])
@pytest.mark.parametrize("inner", [jax.jacfwd, jax.jacrev], ids=["fwd", "rev"])
def test_second_derivatives(rng, small, outer, inner):
    """All four orders of differentiation, along one direction each."""
    operands, tiles, plain = small
    first, second = directions(rng, operands), directions(rng, operands)

    def along(f, order, direction):
        if order is jax.jacfwd:
            return lambda x: jax.jvp(f, (x,), (direction,))[1]
        inside = lambda x, g: jax.tree.leaves(jax.tree.map(jnp.vdot, g, direction))
        return lambda x: sum(inside(x, jax.grad(f)(x)))

    twice = lambda f: along(along(f, inner, first), outer, second)(operands)
    chex.assert_trees_all_close(
        jax.jit(twice, static_argnums=0)(tiles), twice(plain), rtol=1e-3
    )


def test_third_derivative(rng, small):
    operands, tiles, plain = small
    line = directions(rng, operands)

    def third(f):
        at = lambda t: f(jax.tree.map(lambda x, d: x + t * d, operands, line))
        return jax.grad(jax.grad(jax.grad(at)))(0.1)

    chex.assert_trees_all_close(third(tiles), third(plain), rtol=1e-2)


def test_only_what_is_asked_for_is_differentiated(call):
    """A gradient of the query alone has no product for keys or values."""
    spec, operands, context = call(queries=64, keys=64)
    run = tiled(operands)

    def products(names):
        def value(chosen):
            return jnp.sum(run(spec, operands._replace(**chosen), context)[0])

        chosen = {name: getattr(operands, name) for name in names}
        text = str(jax.make_jaxpr(jax.grad(value))(chosen))
        return len(re.findall(r"= dot_general", text))

    assert (
        products(["value"]) < products(["query"]) < products(["query", "key", "value"])
    )


# Transformations.


@pytest.mark.parametrize(
    "axes", [(0, 0, 0, 0), (0, None, 0, None), (2, 1, None, 0)], ids=str
)
def test_vmap_in_any_mix(rng, axes):
    """Also over lengths, whose empty tiles then differ between samples."""
    shapes = ((3, 20, 2, 4), (3, 30, 2, 4), (3, 30, 2, 4), (3,))
    arrays = []
    for shape, axis in zip(shapes, axes, strict=True):
        x = (
            rng.integers(1, 30, 3)
            if shape == (3,)
            else np.float32(rng.normal(size=shape))
        )
        arrays.append(x[0] if axis is None else np.moveaxis(x, 0, axis))

    def one(implementation, q, k, v, length):
        options = {"key_value_seq_lengths": length[None], "is_causal": True}
        return attention(q, k, v, **options, implementation=implementation)

    def gradient(q, k, v, length):
        f = lambda q, k, v: jnp.sum(jnp.sin(one("chunked", q, k, v, length)))
        return jax.grad(f, argnums=(0, 1, 2))(q, k, v)

    plain = jax.vmap(partial(one, "reference"), axes)(*arrays)
    chex.assert_trees_all_close(
        jax.vmap(partial(one, "chunked"), axes)(*arrays), plain, rtol=1e-5, atol=1e-5
    )
    total = lambda *xs: jnp.sum(
        jnp.sin(jax.vmap(partial(one, "chunked"), axes)(*xs, arrays[3]))
    )
    outside = jax.grad(total, argnums=(0, 1, 2))(*arrays[:3])
    inside = jax.vmap(gradient, axes)(*arrays)
    for a, b, axis in zip(outside, inside, axes, strict=False):
        b = jnp.sum(b, 0) if axis is None else jnp.moveaxis(b, 0, axis)
        chex.assert_trees_all_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("check", [True, False])
def test_shard_map_over_batch_and_heads(call, check):
    spec, operands, context = call(
        batch=4,
        heads=4,
        kv_heads=2,
        queries=40,
        keys=40,
        is_causal=True,
        key_value_seq_lengths=np.array([40, 3, 17, 0]),
    )
    kinds = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((4, 2), ("data", "model"), kinds)
    rows, lengths = P("data", None, "model"), P("data")
    specs = (
        type(operands)(rows, rows, rows, None),
        type(context)(offset=P(), key_lengths=lengths),
    )
    run = partial(chunked, spec, tiles=Tiles(2, 16, 16))
    split = jax.shard_map(
        run, mesh=mesh, in_specs=specs, out_specs=(rows, rows), check_vma=check
    )
    read = lambda f: lambda o: jnp.sum(jnp.sin(f(o, context)[0]))
    actual = jax.jit(jax.value_and_grad(read(split)))(operands)
    expected = jax.value_and_grad(read(partial(reference, spec)))(operands)
    chex.assert_trees_all_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_remat_and_scan_over_layers(call):
    spec, operands, context = call(
        queries=24, keys=24, heads=2, kv_heads=2, value_dim=8
    )

    def deep(run, operands):
        def layer(q, _):
            return run(spec, operands._replace(query=q), context)[0], None

        return jnp.sum(
            jax.lax.scan(jax.checkpoint(layer), operands.query, None, length=3)[0] ** 2
        )

    run = partial(chunked, tiles=Tiles(1, 8, 8))
    actual = jax.jit(jax.grad(partial(deep, run)))(operands)
    expected = jax.grad(partial(deep, reference))(operands)
    chex.assert_trees_all_close(actual, expected, rtol=1e-4, atol=1e-5)


# Memory.

LENGTH, HEADS, DIM = 2**16, 8, 64
SIZES = {"out": 4, "gradients": 7}  # q, k, v and out; their cotangents too


def compiled(name, length, **options):
    shape = jax.ShapeDtypeStruct((1, length, HEADS, DIM), jnp.float32)

    def run(q, k, v):
        return attention(q, k, v, implementation="chunked", **options)

    def gradients(q, k, v):
        return jax.grad(lambda *x: jnp.sum(run(*x) ** 2), argnums=(0, 1, 2))(q, k, v)

    f = run if name == "out" else gradients
    return jax.jit(f).lower(shape, shape, shape).compile()


@pytest.mark.parametrize("name", SIZES)
def test_memory_at_64k_is_within_twice_inputs_and_outputs(name):
    """Also no array anywhere has the size of queries x keys of a single head."""
    made = compiled(name, LENGTH, is_causal=True)
    whole = SIZES[name] * LENGTH * HEADS * DIM * 4
    assert made.memory_analysis().temp_size_in_bytes <= 2 * whole
    shapes = re.findall(r"\b[a-z]+\d+\[([\d,]+)\]", made.as_text())
    largest = max(np.prod([int(n) for n in shape.split(",")]) for shape in shapes)
    assert largest <= LENGTH * HEADS * DIM


def test_second_derivatives_are_linear_in_memory_too():
    """Doubling the length doubles the memory, up to the tiles, and does not square it."""

    def temporary(length):
        shape = jax.ShapeDtypeStruct((1, length, 1, 16), jnp.float32)

        def value(q, k, v):
            return jnp.sum(attention(q, k, v, implementation="chunked") ** 2)

        def twice(q, k, v):
            inner = lambda *x: sum(
                jnp.sum(g**2) for g in jax.grad(value, (0, 1, 2))(*x)
            )
            return jax.grad(inner, (0, 1, 2))(q, k, v)

        made = jax.jit(twice).lower(shape, shape, shape).compile()
        return made.memory_analysis().temp_size_in_bytes

    assert temporary(2**14) < 3 * temporary(2**13)


# Edges.


@pytest.mark.parametrize("queries, keys", [(0, 5), (5, 0), (0, 0)])
def test_no_queries_or_no_keys(queries, keys):
    q, k = jnp.ones((2, queries, 4, 8)), jnp.ones((2, keys, 2, 8))
    out, lse = attention(q, k, k, return_lse=True, implementation="chunked")
    chex.assert_trees_all_equal(out, jnp.zeros((2, queries, 4, 8)))
    chex.assert_trees_all_equal(lse, jnp.full((2, queries, 4), -jnp.inf))
    grads = jax.grad(lambda q: jnp.sum(attention(q, k, k)))(q)
    chex.assert_trees_all_equal(grads, jnp.zeros_like(q))


def test_a_bias_of_minus_infinity_hides(rng):
    q, k, v = jnp.asarray(rng.normal(size=(3, 1, 40, 2, 8)), jnp.float32)
    mask = rng.random((1, 1, 40, 40)) < 0.3
    mask[:, :, 5] = False
    bias = jnp.where(mask, 0.0, -jnp.inf)

    def run(q, k, v, **options):
        return chunked_call(q, k, v, **options)

    def chunked_call(q, k, v, **options):
        return attention(q, k, v, implementation="chunked", **options)

    chex.assert_trees_all_close(
        run(q, k, v, bias=bias), run(q, k, v, mask=mask), rtol=1e-6, atol=1e-6
    )
    grads = jax.grad(lambda *x: jnp.sum(run(*x, bias=bias) ** 2), (0, 1, 2))(q, k, v)
    chex.assert_tree_all_finite(grads)


def test_hidden_keys_have_no_influence(rng):
    """Not by value and not by gradient, be they as large as they like."""
    q, k, v = jnp.asarray(rng.normal(size=(3, 1, 30, 2, 4)), jnp.float32)
    late = jnp.arange(30)[None, :, None, None] >= 20
    options = {"key_value_seq_lengths": jnp.array([20]), "implementation": "chunked"}
    clean = attention(q, k, v, **options)
    loud = attention(q, jnp.where(late, 1e4, k), jnp.where(late, 1e4, v), **options)
    chex.assert_trees_all_equal(clean, loud)
    _, dk, dv = jax.grad(lambda *x: jnp.sum(attention(*x, **options) ** 2), (0, 1, 2))(
        q, k, v
    )
    assert not dk[:, 20:].any()
    assert not dv[:, 20:].any()
    assert dk[:, :20].all()


def test_it_is_the_same_to_the_bit_every_time(call):
    spec, operands, context = call(queries=64, keys=64, is_causal=True)
    run = tiled(operands)
    first = outputs(run, spec, operands, context)
    chex.assert_trees_all_equal(first, outputs(run, spec, operands, context))
