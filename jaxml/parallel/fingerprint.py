"""Fingerprints: whether two trees of arrays are the same to the bit, in 8 bytes a leaf.

Data parallelism rests on all devices and hosts holding the same parameters, and nothing
tells when they do not: each trains its own model and the loss still falls. A leaf's
fingerprint is two sums over its 32-bit words w_i,

    sum_i mix(w_i xor mix(i + seed))  mod 2**32,       mix: a bijection that scatters bits,

begun with a hash of the leaf's path, dtype and shape. As `mix` is a bijection, one
changed word always changes the sum; any other difference goes unseen once in 2**64. The
trap: equal means equal to the bit, so 0.0 and -0.0 differ, and so do two NaNs of
different bits.

Reference: the mixing function is the finaliser of Appleby's MurmurHash3,
https://github.com/aappleby/smhasher.
"""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxml.export import export
from jaxml.typing import Array


@export("parallel.fingerprint", since="0.1")
def fingerprint(tree: Any) -> Array:
    """One row of two uint32 for every leaf, in the order of `jax.tree.leaves`.

    It sees values, order, path, dtype and shape, and does not depend on how an array is
    spread over devices, nor on the machine. It can be jitted.

    Args:
        tree: pytree of arrays of any dtype, NumPy's included; random keys too.

        >>> a = fingerprint({"w": np.float32([1, 2])})
        >>> b = fingerprint({"w": np.float32([2, 1])})
        >>> a.shape, bool((a == b).any())
        ((1, 2), False)
    """
    leaves = jax.tree.leaves_with_path(tree)
    headers = np.array([_header(path, x) for path, x in leaves], np.uint32)
    return _rows([_host_words(x) for _, x in leaves], headers.reshape(-1, 2))


@export("parallel.assert_replicated", since="0.1")
def assert_replicated(tree: Any, mesh: Mesh) -> None:
    """Raises unless every device of the mesh holds the same bits of every leaf.

    An array that is *called* replicated need not be: the copies are compared themselves.
    All processes of the mesh must call it; each finds the same.

    Args:
        tree: pytree of arrays on the mesh, as `replicate` puts them there.
        mesh: any mesh.

    Raises:
        ValueError: naming the first leaf that differs and the first device on which it
            does; or a leaf that is not laid out as one copy per device of the mesh.
    """
    leaves = jax.tree.leaves_with_path(tree)
    devices = list(mesh.devices.flat)
    for path, x in leaves:
        sharding = getattr(x, "sharding", None)
        if sharding is None or not (
            sharding.is_fully_replicated and sharding.device_set == set(devices)
        ):
            raise ValueError(
                f"{_name(path)} must have one copy on each of {len(devices)} devices, "
                f"got {sharding or type(x).__name__}"
            )
    headers = np.array([_header(path, x) for path, x in leaves], np.uint32)

    # Unchecked: the check would take the copies to be the same.
    @jax.jit
    @jax.shard_map(mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)
    def of_every_device(arrays: list[Array]) -> Array:
        return lax.all_gather(_rows(arrays, headers.reshape(-1, 2)), mesh.axis_names)

    rows = np.asarray(of_every_device([x for _, x in leaves]))
    different = np.argwhere(
        (rows != rows[:1]).any(axis=-1).T
    )  # leaf first, then device
    if len(different):
        leaf, device = different[0]
        raise ValueError(
            f"{_name(leaves[leaf][0])} must be the same on all devices, got "
            f"{rows[device, leaf].tobytes().hex()} on {devices[device]} and "
            f"{rows[0, leaf].tobytes().hex()} on {devices[0]}"
        )


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path) or "the array"


def _header(path: Any, x: Any) -> np.ndarray:
    dtype = x.dtype if hasattr(x, "dtype") else np.asarray(x).dtype
    text = f"{jax.tree_util.keystr(path)} {dtype} {np.shape(x)}"
    return np.frombuffer(hashlib.blake2s(text.encode(), digest_size=8).digest(), "<u4")


def _host_words(x: Any) -> Array:
    """The words of a host array; JAX would narrow 64 bits. Device arrays as they are."""
    if isinstance(x, jax.Array):
        return x
    x = np.ascontiguousarray(_whole_bytes(np.asarray(x)))
    if x.dtype.itemsize >= 4:
        return x.reshape(-1).view(np.uint32)
    return x.reshape(-1).view(f"u{x.dtype.itemsize}").astype(np.uint32)


@jax.jit
def _rows(leaves: list[Array], headers: Array) -> Array:
    rows = [_row(_words(x), header) for x, header in zip(leaves, headers, strict=True)]
    return jnp.stack(rows) if rows else jnp.zeros((0, 2), jnp.uint32)


def _words(x: Array) -> Array:
    """The bits of an array as uint32, one or more for a number, as in NumPy's memory."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = jnp.stack([x.real, x.imag], axis=-1)
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    x = _whole_bytes(x)
    word = jnp.dtype(f"uint{8 * min(x.dtype.itemsize, 4)}")
    return lax.bitcast_convert_type(x, word).astype(jnp.uint32)


def _whole_bytes(x: Array) -> Array:
    """Numbers of less than a byte made wider, which is exact."""
    is_float = jnp.issubdtype(x.dtype, jnp.floating)
    info = jnp.finfo if is_float else jnp.iinfo
    is_real = is_float or jnp.issubdtype(x.dtype, jnp.integer)
    return x.astype(np.float32) if is_real and info(x.dtype).bits < 8 else x


def _row(words: Array, header: Array) -> Array:
    # Not flattened: a sharded array would have to be gathered for that.
    positions = jnp.zeros(words.shape, jnp.uint32)
    for axis, size in enumerate(words.shape):
        positions *= np.uint32(size)
        positions += lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    sums = [
        jnp.sum(_mix(words ^ _mix(positions + h)), dtype=jnp.uint32) for h in header
    ]
    return _mix(jnp.stack(sums) ^ header)


def _mix(x: Array) -> Array:
    """A bijection of uint32 in which every bit of the result depends on all of `x`."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
