"""The ring against `psum`, NumPy and the article's count of messages."""

import math
import re

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxml.parallel import data_mesh, ring_all_reduce
from jaxml.parallel.ring_all_reduce import replicated

WHOLE = P()
DEVICES = pytest.mark.parametrize("p", [1, 2, 3, 8])


def on(p, function, out_specs=WHOLE, **kwargs):
    """`function` of every device's own row."""
    mesh = data_mesh(jax.devices()[:p])

    def local(rows):
        return function(jax.tree.map(lambda x: x[0], rows))

    return jax.jit(
        jax.shard_map(
            local, mesh=mesh, in_specs=P("data"), out_specs=out_specs, **kwargs
        )
    )


def rows(rng, p):
    """One row for every device: shapes that p does not divide, and several dtypes."""
    # jax 0.11 crashes on any shard_map of an empty array beside others.
    empty = 1 if jax.__version__.startswith("0.11.") else 0
    return {
        "matrix": rng.normal(size=(p, 3, 5)).astype(np.float32),
        "nested": [rng.normal(size=(p, 17)).astype(np.float32)],
        "scalar": rng.normal(size=p).astype(np.float32),
        "empty": np.zeros((p, empty, 3), np.float32),
        "int": rng.integers(-100, 100, size=(p, 7), dtype=np.int32),
        "uint8": rng.integers(0, 255, size=(p, 2, 2), dtype=np.uint8),
        "complex": np.complex64(rng.normal(size=(p, 2)) + 1j),
    }


@DEVICES
def test_sum_is_that_of_psum_and_numpy(rng, p):
    tree = rows(rng, p)
    both = on(p, lambda x: (ring_all_reduce(x, "data"), lax.psum(x, "data")))
    ring, psum = both(tree)
    chex.assert_trees_all_equal_shapes_and_dtypes(ring, psum)
    chex.assert_trees_all_close(ring, psum, rtol=1e-6, atol=1e-6)
    sums = jax.tree.map(lambda x: x.sum(0, dtype=x.dtype), tree)
    chex.assert_trees_all_close(jax.device_get(ring), sums, rtol=1e-6, atol=1e-6)


@DEVICES
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_chunk_j_is_summed_from_device_j_on(rng, p, dtype):
    """To the bit: every hop adds one device's part and rounds."""
    x = rng.normal(size=(p, 29)).astype(dtype)
    chunks = np.pad(x, ((0, 0), (0, -29 % p))).reshape(p, p, -1)
    expected = chunks[np.arange(p), np.arange(p)]
    for hop in range(1, p):
        expected = expected + chunks[(np.arange(p) + hop) % p, np.arange(p)]
    actual = on(p, lambda x: ring_all_reduce(x, "data"))(x)
    np.testing.assert_array_equal(np.asarray(actual), expected.reshape(-1)[:29])


def test_rounding_of_bfloat16_is_within_the_stated_bound(rng):
    p, u = 8, 2.0**-8
    x = rng.normal(size=(p, 1000)).astype(ml_dtypes.bfloat16)
    actual = on(p, lambda x: ring_all_reduce(x, "data"))(x)
    exact = x.astype(np.float64).sum(0)
    bound = (p - 1) * u / (1 - (p - 1) * u) * np.abs(x.astype(np.float64)).sum(0)
    assert np.all(np.abs(np.float64(actual) - exact) <= bound)


@DEVICES
def test_every_device_holds_the_same_bits(rng, p):
    x = rng.normal(size=(p, 29)).astype(np.float32)
    each = on(p, lambda x: ring_all_reduce(x, "data")[None], P("data"))(x)
    np.testing.assert_array_equal(each, np.broadcast_to(each[0], each.shape))


def messages(jaxpr):
    """All `ppermute`s: (numbers, bytes of one, pairs of devices)."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "ppermute":
            (x,) = (v.aval for v in eqn.invars)
            yield x.size, x.size * x.dtype.itemsize, tuple(eqn.params["perm"])
        for inner in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "eqns")
        ):
            if hasattr(inner, "eqns"):
                yield from messages(getattr(inner, "jaxpr", inner))


@DEVICES
def test_number_and_bytes_of_the_messages(rng, p):
    """2 (p - 1) messages of ceil(n / p) numbers per dtype, each to the next device."""
    tree = {"a": np.zeros((p, 6, 7), np.float32), "b": np.zeros((p, 3), np.float32)}
    function = on(p, lambda x: ring_all_reduce(x, "data"))
    found = list(messages(jax.make_jaxpr(function)(tree).jaxpr))
    n, chunk = 45, math.ceil(45 / p)
    assert len(found) == 2 * (p - 1)
    assert {numbers for numbers, _, _ in found} <= {chunk}
    assert all(perm == tuple((i, (i + 1) % p) for i in range(p)) for *_, perm in found)
    sent = sum(size for _, size, _ in found)
    floor = 2 * (p - 1) / p * 4 * n
    assert floor <= sent <= floor + 2 * (p - 1) * 4  # less than a number each

    compiled = function.lower(tree).compile().as_text()
    assert len(re.findall(r" collective-permute(?:-start)?\(", compiled)) == len(found)
    assert "all-reduce(" not in compiled


def test_every_dtype_has_its_own_ring(rng):
    function = on(3, lambda x: ring_all_reduce(x, "data"))
    found = list(messages(jax.make_jaxpr(function)(rows(rng, 3)).jaxpr))
    assert len(found) == 4 * len({"float32", "int32", "uint8", "complex64"})


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("p", [1, 3])
def test_gradient_is_that_of_psum(rng, p, check_vma):
    x = rng.normal(size=(p, 7)).astype(np.float32)

    def loss(reduce):
        def local(x):
            own = jnp.sum(jnp.sin(x))  # every device's own use of the sum
            return lax.pmean(own * jnp.sum(jnp.cos(reduce(x, "data"))), "data")

        return on(p, local, check_vma=check_vma)

    ring, psum = (jax.grad(loss(reduce))(x) for reduce in (ring_all_reduce, lax.psum))
    chex.assert_trees_all_close(ring, psum, rtol=1e-5, atol=1e-6)
    if check_vma:
        chex.assert_numerical_grads(loss(ring_all_reduce), (x,), order=1, atol=1e-2)
    tangents = [
        jax.jvp(loss(reduce), (x,), (np.cos(x),))[1]
        for reduce in (ring_all_reduce, lax.psum)
    ]
    chex.assert_trees_all_close(*tangents, rtol=1e-5, atol=1e-6)


def test_gradient_through_integers_beside_floats(rng):
    """As in a tree of gradients and counts."""

    def loss(x, count):
        total = ring_all_reduce({"x": x[0], "count": count[0]}, "data")
        return jnp.sum(total["x"]) * total["count"]

    mesh = data_mesh(jax.devices()[:3])
    mapped = jax.shard_map(loss, mesh=mesh, in_specs=P("data"), out_specs=P())
    x, count = np.ones((3, 2), np.float32), np.arange(3, dtype=np.int32)
    np.testing.assert_array_equal(jax.grad(mapped)(x, count), np.full((3, 2), 3.0))


def test_other_axes_of_the_mesh_keep_their_own_sums(rng):
    mesh = jax.make_mesh((2, 4), ("data", "model"), (AxisType.Auto,) * 2)
    x = rng.normal(size=(8, 5)).astype(np.float32)

    @jax.jit
    @jax.shard_map(mesh=mesh, in_specs=P(("data", "model")), out_specs=P("model"))
    def both(x):
        return jnp.stack([ring_all_reduce(x, "data"), lax.psum(x, "data")], axis=1)

    ring, psum = np.moveaxis(both(x), 1, 0)
    np.testing.assert_allclose(ring, psum, rtol=1e-6)
    np.testing.assert_allclose(ring, x.reshape(2, 4, 5).sum(0), rtol=1e-6)


def test_axis_of_vmap(rng):
    x = rng.normal(size=(5, 7)).astype(np.float32)
    summed = jax.vmap(lambda x: ring_all_reduce(x, "i"), axis_name="i")(x)
    np.testing.assert_allclose(summed, np.tile(x.sum(0), (5, 1)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "bad, name", [(np.zeros(2, bool), "bool"), (jax.random.key(0), "key<fry>")]
)
def test_what_is_no_number_is_refused(bad, name):
    with pytest.raises(
        TypeError, match=rf"adds numbers.* got {name} at \['x'\]\['y'\]"
    ):
        jax.vmap(
            lambda _: ring_all_reduce({"x": {"y": bad}}, "i"),
            axis_name="i",
            axis_size=2,
        )(np.zeros(2))


def test_the_check_takes_only_our_word():
    """What is not said to be replicated is still refused."""
    x = np.arange(3.0, dtype=np.float32)
    with pytest.raises(ValueError, match="replication"):
        on(3, lambda x: lax.ppermute(x, "data", [(0, 1), (1, 2), (2, 0)]))(x)
    said = on(3, lambda x: replicated(x, "data"))(x)
    assert said == 0.0  # and a wrong word gives the first device's own
