"""Ring all-reduce: the sum over p devices, at a cost per device that hardly grows with p.

The devices stand in a ring, and the array is cut into p chunks. In p - 1 steps of
*reduce-scatter* every device passes a running sum to its neighbour, and adds its own part
of the chunk that arrives; then each device owns one finished chunk, and in p - 1 steps of
*all-gather* the finished chunks go once more around. With four devices that hold a, b, c
and d (a2 is chunk 2 of a; S2 is the sum of chunk 2 over all of them):

    step          device 0 -->  device 1 -->  device 2 -->  device 3 --> (device 0)
    at the start  a0            b1            c2            d3
    reduce 1      d3+a3         a0+b0         b1+c1         c2+d2
    reduce 2      c2+d2+a2      d3+a3+b3      a0+b0+c0      b1+c1+d1
    reduce 3      S1            S2            S3            S0
    gather 4      S1 S0         S2 S1         S3 S2         S0 S3
    gather 5      S1 S0 S3      S2 S1 S0      S3 S2 S1      S0 S3 S2
    gather 6      S1 S0 S3 S2   S2 S1 S0 S3   S3 S2 S1 S0   S0 S3 S2 S1

Every device sends 2 (p - 1) messages of n / p numbers: 2 (p - 1) / p of the array, less
than two arrays whatever p is, and no all-reduce can do with less. The trap is the order
of the sum: chunk j is summed beginning with device j, so the result is the same to the
bit on every device, but not the same to the bit as that of another algorithm.

`lax.psum` is this or a better algorithm, chosen by the compiler: use it. This one is here
to be read, tested and measured.

Reference: Patarasuk and Yuan, "Bandwidth Optimal All-reduce Algorithms for Clusters of
Workstations", Journal of Parallel and Distributed Computing 2009,
https://doi.org/10.1016/j.jpdc.2008.09.002.
"""

from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from jaxml.export import export
from jaxml.typing import Array

Tree = TypeVar("Tree")


@export("parallel.ring_all_reduce", since="0.1")
def ring_all_reduce(tree: Tree, axis_name: str) -> Tree:
    """The sum over the devices of every leaf, as `lax.psum` gives it.

    All leaves of one dtype travel in one buffer, padded to p chunks: 2 (p - 1) messages
    of ceil(n / p) numbers per device and dtype. The result is known to be replicated,
    and the gradient is that of `lax.psum`.

    Args:
        tree: pytree of numbers. Integers wrap around as they do in any sum. In bfloat16
            or float16 the travelling sum is rounded at each of its p - 1 additions: the
            error is at most (p - 1) u / (1 - (p - 1) u) of the sum of the absolute
            values, u = 2**-8 or 2**-11; convert to float32 before if that is too much.
        axis_name: a mesh axis inside `shard_map` (or an axis of `vmap` or `pmap`).

    Raises:
        TypeError: if a leaf holds something else than numbers, such as bool.
    """
    leaves, structure = jax.tree.flatten(tree)
    for path, leaf in jax.tree.leaves_with_path(tree):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.number):
            raise TypeError(
                "ring_all_reduce adds numbers (convert a bool to count it), got "
                f"{jnp.result_type(leaf)} at {jax.tree_util.keystr(path) or 'the root'}"
            )
    by_dtype: dict[Any, list[int]] = {}
    for i, leaf in enumerate(leaves):
        by_dtype.setdefault(jnp.result_type(leaf), []).append(i)
    for indices in by_dtype.values():
        flat: Array = jnp.concatenate([jnp.ravel(leaves[i]) for i in indices])
        inexact = jnp.issubdtype(flat.dtype, jnp.inexact)
        flat = (_ring_sum if inexact else _around)(flat, axis_name)
        for i in indices:
            shape = jnp.shape(leaves[i])
            size = jnp.size(leaves[i])
            leaves[i], flat = flat[:size].reshape(shape), flat[size:]
    return jax.tree.unflatten(structure, leaves)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _ring_sum(x: Array, axis_name: str) -> Array:
    return _around(x, axis_name)


@_ring_sum.defjvp
def _ring_sum_jvp(axis_name: str, primals: Any, tangents: Any) -> tuple[Array, Array]:
    # Linear: the tangents are summed too, and psum knows how that is transposed.
    return _ring_sum(*primals, axis_name), lax.psum(*tangents, axis_name)


def _around(x: Array, axis_name: str) -> Array:
    """Twice around the ring with a flat array."""
    p, me = lax.axis_size(axis_name), lax.axis_index(axis_name)
    ring = [(device, (device + 1) % p) for device in range(p)]
    chunks = jnp.pad(x, (0, -x.size % p)).reshape(p, -1)
    mine = chunks[(me - jnp.arange(p)) % p]  # in the order in which sums arrive here

    total = mine[0]
    for step in range(1, p):
        total = lax.ppermute(total, axis_name, ring) + mine[step]
    finished = [total]  # chunk me + 1; behind it in the ring come me, me - 1, ...
    for _ in range(1, p):
        finished.append(lax.ppermute(finished[-1], axis_name, ring))
    chunks = jnp.stack(finished)[(me + 1 - jnp.arange(p)) % p]
    return replicated(chunks.reshape(-1)[: x.size], axis_name)


def replicated(x: Array, axis_name: str) -> Array:
    """Says to `shard_map`'s check that `x` is the same on every device; nothing moves.

    The check cannot see that an exchange of messages ends with equal copies, and takes
    the caller's word: a wrong word gives each device its own value unnoticed.
    """
    like = jnp.zeros(jnp.shape(x), jnp.result_type(x))
    others = jax.typeof(x).manual_axis_type.varying - {axis_name}
    if others:
        like = lax.pcast(like, tuple(others), to="varying")
    return _replicated_p.bind(x, like)


_replicated_p = Primitive("replicated")
_replicated_p.def_impl(lambda x, like: x)
_replicated_p.def_abstract_eval(lambda x, like: like)
mlir.register_lowering(_replicated_p, lambda ctx, x, like: [x])


def _replicated_batched(args: Any, axes: Any) -> tuple[Array, int]:
    x, like = (
        jnp.broadcast_to(a, jnp.shape(b)) if axis is None else jnp.moveaxis(a, axis, 0)
        for a, b, axis in zip(args, args[::-1], axes, strict=True)
    )
    return _replicated_p.bind(x, like), 0


batching.primitive_batchers[_replicated_p] = _replicated_batched
