"""A ring of devices is one device, forward, backward and beyond, in 1/P of the memory."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxml.attention import attention, ring_attention, unzigzag, zigzag

AXIS = "sequence"


def mesh_of(devices):
    kinds = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh((devices,), (AXIS,), kinds, devices=jax.devices()[:devices])


def on_ring(devices, *, check=True, **options):
    """`ring_attention` as a function of whole arrays."""
    rows = P(None, AXIS)
    split = jax.shard_map(
        partial(ring_attention, axis_name=AXIS, return_lse=True, **options),
        mesh=mesh_of(devices),
        in_specs=(rows, rows, rows),
        out_specs=(rows, rows),
        check_vma=check,
    )
    if not options.get("is_zigzag"):
        return jax.jit(split)
    there, back = partial(zigzag, devices=devices), partial(unzigzag, devices=devices)
    return jax.jit(lambda *x: jax.tree.map(back, split(*map(there, x))))


def make(rng, length=32, keys=None, dtype=np.float32):
    shapes = (length, 4, 6), (keys or length, 2, 6), (keys or length, 2, 3)
    return [jnp.asarray(rng.normal(size=(2, *shape)), dtype) for shape in shapes]


def scalar(f):
    def value(*x):
        out, lse = f(*x)
        return jnp.sum(jnp.sin(out)) + jnp.sum(lse**2)

    return value


@pytest.mark.parametrize(
    "devices, options",
    [
        (1, {"is_causal": True, "is_zigzag": True}),
        (2, {"is_causal": True}),
        (4, {"is_causal": True, "is_zigzag": True}),
        (4, {"scale": 0.7, "logits_soft_cap": 1.0}),
        (8, {"is_causal": True, "check": False}),
    ],
    ids=str,
)
def test_it_is_attention_with_its_gradients(rng, devices, options):
    qkv = make(rng)
    plain = {k: v for k, v in options.items() if k not in ("is_zigzag", "check")}
    one = jax.jit(
        partial(attention, return_lse=True, implementation="reference", **plain)
    )
    ring = on_ring(devices, **options)
    chex.assert_trees_all_close(ring(*qkv), one(*qkv), rtol=1e-5, atol=1e-5)
    actual, expected = (
        jax.jit(jax.grad(scalar(f), (0, 1, 2)))(*qkv) for f in (ring, one)
    )
    chex.assert_trees_all_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_keys_of_another_length(rng):
    qkv = make(rng, 16, 24)
    one = attention(*qkv, return_lse=True, implementation="reference")
    chex.assert_trees_all_close(on_ring(4)(*qkv), one, rtol=1e-5, atol=1e-5)


def test_forward_mode_and_second_order(rng):
    qkv, along = make(rng, 8), make(rng, 8)
    ring = scalar(on_ring(2, is_causal=True, is_zigzag=True))
    one = scalar(
        partial(attention, return_lse=True, is_causal=True, implementation="reference")
    )

    def derivatives(f):
        change = lambda *x: jax.jvp(f, x, tuple(along))[1]
        return change(*qkv), jax.grad(change, (0, 1, 2))(*qkv)

    run = jax.jit(derivatives, static_argnums=0)
    chex.assert_trees_all_close(run(ring), run(one), rtol=1e-3, atol=1e-4)


def test_half_precision_is_merged_in_float32(rng):
    """Eight devices err no more than one does."""
    qkv = make(rng, dtype=jnp.bfloat16)
    one = jax.jit(partial(attention, return_lse=True))
    truth, _ = one(*(x.astype(jnp.float32) for x in qkv))
    error = lambda f: np.abs(np.float32(f(*qkv)[0]) - np.asarray(truth)).max()
    assert error(on_ring(8)) <= 2 * error(one)


@pytest.mark.parametrize("length", [2, 12, 48])
def test_zigzag_gives_every_device_the_same_work(length):
    """Pairs of query and key that see each other, per device."""
    devices = length // 2 if length < 12 else 6 if length == 12 else 8
    order = np.asarray(zigzag(jnp.arange(length), devices, axis=0))
    chex.assert_trees_all_equal(unzigzag(order, devices, axis=0), jnp.arange(length))
    work = (order + 1).reshape(devices, -1).sum(1)
    assert len(set(work.tolist())) == 1


def memory(devices, length, **options):
    """Bytes per device: arguments, results and temporaries of a gradient."""
    shape = jax.ShapeDtypeStruct(
        (1, length, 4, 32),
        jnp.float32,
        sharding=NamedSharding(mesh_of(devices), P(None, AXIS)),
    )
    f = jax.grad(scalar(on_ring(devices, **options)), (0, 1, 2))
    made = jax.jit(f).lower(shape, shape, shape).compile().memory_analysis()
    return (
        made.temp_size_in_bytes
        + made.argument_size_in_bytes
        + made.output_size_in_bytes
    )


def test_memory_per_device_is_one_part():
    """Four times the devices, a quarter, up to tiles and what is in flight."""
    assert memory(8, 2**15) <= 0.4 * memory(2, 2**15)


def test_bad_input_is_refused(rng):
    with pytest.raises(ValueError, match="one length if causal"):
        on_ring(2, is_causal=True)(*make(rng, 8, 12))
    with pytest.raises(ValueError, match="even length in zigzag order, got 1"):
        ring_attention(*make(rng, 1), axis_name=AXIS, is_zigzag=True)
    with pytest.raises(ValueError, match="must divide into 8 pieces, got 12"):
        zigzag(jnp.ones((1, 12)), 4)
