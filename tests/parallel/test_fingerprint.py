"""Fingerprints against the formula in Python integers, and every way to differ."""

import hashlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxml.parallel import assert_replicated, data_mesh, fingerprint, replicate


def mix(x):
    x = (x ^ (x >> 16)) * 0x85EBCA6B % 2**32
    x = (x ^ (x >> 13)) * 0xC2B2AE35 % 2**32
    return x ^ (x >> 16)


def by_hand(path, x):
    """The module's formula, one word at a time."""
    words = np.frombuffer(np.asarray(x).tobytes(), "<u4").tolist()
    text = f"{path} {x.dtype} {x.shape}"
    header = hashlib.blake2s(text.encode(), digest_size=8).digest()
    row = []
    for seed in np.frombuffer(header, "<u4").tolist():
        sums = sum(mix(w ^ mix((i + seed) % 2**32)) for i, w in enumerate(words))
        row.append(mix(sums % 2**32 ^ seed))
    return row


def test_formula(rng):
    tree = {
        "a": rng.normal(size=(3, 5)).astype(np.float32),
        "b": [
            rng.integers(0, 2**31, size=7, dtype=np.int32),
            np.zeros((2, 0), np.float32),
        ],
        "c": rng.normal(size=4),  # float64: two words a number
    }
    actual = fingerprint(tree)
    assert actual.shape == (4, 2)
    assert actual.dtype == jnp.uint32
    expected = [
        by_hand(path, x)
        for path, x in zip(
            ["['a']", "['b'][0]", "['b'][1]", "['c']"],
            jax.tree.leaves(tree),
            strict=True,
        )
    ]
    assert actual.tolist() == expected


def rows(*trees):
    return [tuple(np.asarray(fingerprint(tree)).ravel().tolist()) for tree in trees]


def test_equal_trees_have_equal_fingerprints(rng):
    x = rng.normal(size=(4, 6)).astype(np.float32)
    same = rows(
        {"w": x}, {"w": x.copy()}, {"w": jnp.asarray(x)}, {"w": np.asfortranarray(x)}
    )
    assert len(set(same)) == 1


def test_every_bit_counts(rng):
    """All 32 bits of all 40 numbers, in both words of the fingerprint."""
    words = rng.integers(0, 2**32, size=40, dtype=np.uint32)
    flips = np.uint32(1) << np.arange(32, dtype=np.uint32)
    changed = np.tile(words, (40, 32, 1))
    changed[np.arange(40), :, np.arange(40)] ^= flips[None]
    prints = jax.vmap(fingerprint)(changed.reshape(-1, 40))[:, 0]
    original = fingerprint(words)[0]
    assert bool(jnp.all(prints != original[None]))
    assert len(np.unique(prints, axis=0)) == 40 * 32


def test_order_dtype_shape_and_path_count():
    x = np.float32([[1, 2, 3], [4, 5, 6]])
    different = rows(
        {"w": x},
        {"w": x[::-1]},
        {"w": x.T},
        {"w": x.reshape(6)},
        {"w": x.view(np.int32)},
        {"v": x},
        {"w": np.where(x == 1, 2, np.where(x == 2, 1, x))},  # two numbers swapped
    )
    assert len(set(different)) == len(different)
    a, b = fingerprint({"a": x, "b": -x}), fingerprint({"a": -x, "b": x})
    assert not np.any(a == b)


def test_bits_not_values():
    zero, minus, nan = np.float32([0.0, -0.0, np.nan])
    assert len(set(rows(zero, minus))) == 2
    assert len(set(rows(nan, nan.copy()))) == 1


@pytest.mark.parametrize(
    "dtype",
    [
        *("bool", "int8", "uint16", "int32", "float16", "float32", "complex64"),
        *("bfloat16", "float8_e4m3fn", "int4", "uint4", "float4_e2m1fn"),
    ],
)
def test_host_and_device_agree_on_every_dtype(dtype):
    dtype = getattr(ml_dtypes, dtype, dtype)
    x = np.array([0, 1, 1, 0, 1]).astype(dtype)
    y = np.array([0, 1, 0, 1, 1]).astype(dtype)
    host_x, host_y, device_x, device_y = rows(x, y, jnp.asarray(x), jnp.asarray(y))
    assert host_x == device_x != host_y == device_y


def test_host_numbers_of_64_bits_are_not_narrowed():
    assert len(set(rows(np.float64(1), np.float64(1 + 1e-12), np.float32(1)))) == 3
    assert len(set(rows(np.int64(1), np.int64(2**32 + 1)))) == 2
    assert len(set(rows(1.5, np.float64(1.5)))) == 1


def test_random_keys():
    a, b, c = jax.random.key(0), jax.random.key(1), jax.random.key(0, impl="rbg")
    assert len(set(rows(a, b, c, a))) == 3


def test_layout_and_jit_do_not_matter(rng):
    x = rng.normal(size=(16, 8)).astype(np.float32)
    spread = jax.device_put(x, NamedSharding(data_mesh(), P(None, "data")))
    expected = fingerprint({"w": x}).tolist()
    assert fingerprint({"w": spread}).tolist() == expected
    assert jax.jit(fingerprint)({"w": jnp.asarray(x)}).tolist() == expected


def test_tree_without_leaves():
    assert fingerprint({"a": None}).shape == (0, 2)


def uneven(copies, mesh):
    """Called replicated, and not."""
    shards = [
        jax.device_put(x, d) for x, d in zip(copies, mesh.devices.flat, strict=True)
    ]
    return jax.make_array_from_single_device_arrays(
        copies[0].shape, NamedSharding(mesh, P()), shards
    )


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_replicated_trees_pass(rng, devices):
    mesh = data_mesh(jax.devices()[:devices])
    tree = {
        "w": rng.normal(size=(3, 2)).astype(np.float32),
        "n": np.int32(3),
        "e": None,
    }
    assert_replicated(replicate(tree, mesh), mesh)
    assert_replicated({}, mesh)


def test_first_difference_is_named(rng):
    """The first leaf in the tree's order, and the first device on which it differs."""
    mesh = data_mesh(jax.devices()[:4])
    x = rng.normal(size=5).astype(np.float32)
    bump = np.nextafter(x, np.float32(9))
    tree = {
        "a": uneven([x] * 4, mesh),
        "b": {"kernel": uneven([x, x, bump, bump], mesh)},
        "c": uneven([x, bump, x, x], mesh),
    }
    third, first = (jax.devices()[i] for i in (2, 0))
    with pytest.raises(
        ValueError, match=r"\['b'\]\['kernel'\] must be the same"
    ) as error:
        assert_replicated(tree, mesh)
    assert f"on {third}" in str(error.value)
    assert f"on {first}" in str(error.value)


def test_step_that_averages_nothing_is_found_out(rng):
    """The mistake this is for: unchecked, every device keeps its own gradient."""
    mesh = data_mesh()
    params = replicate({"w": np.ones(3, np.float32)}, mesh)

    @jax.shard_map(mesh=mesh, in_specs=(P(), P("data")), out_specs=P(), check_vma=False)
    def update(params, x):
        grads = jax.grad(lambda p: jnp.mean(p["w"][None] * x))(params)
        return jax.tree.map(jnp.subtract, params, grads)

    after = update(params, rng.normal(size=(8, 3)).astype(np.float32))
    assert after["w"].sharding.is_fully_replicated  # so it says
    with pytest.raises(ValueError, match=r"\['w'\] must be the same on all devices"):
        assert_replicated(after, mesh)


@pytest.mark.parametrize("kind", ["numpy", "one device", "split", "fewer devices"])
def test_what_is_not_laid_out_as_copies_is_refused(kind):
    mesh, x = data_mesh(), np.zeros(8, np.float32)
    bad = {
        "numpy": x,
        "one device": jnp.asarray(x),
        "split": jax.device_put(x, NamedSharding(mesh, P("data"))),
        "fewer devices": replicate(x, data_mesh(jax.devices()[:4])),
    }[kind]
    with pytest.raises(ValueError, match=r"\['x'\] must have one copy on each of 8"):
        assert_replicated({"x": bad}, mesh)
