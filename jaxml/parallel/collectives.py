"""Collectives that are the identity on one device, so that a loss is written once.

Every function takes `axis_name`: the mesh axis the batch is split over inside
`shard_map`, or None outside of it. What they return is proven replicated (or per device,
where said), so that `shard_map`'s own check accepts it, and their gradients are those of
the global batch.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from jaxml.export import export
from jaxml.typing import Array, Int, PRNGKeyArray

Tree = TypeVar("Tree")


def axis_size(axis_name: str | None) -> int:
    """Number of devices along the axis; 1 where there is none."""
    return 1 if axis_name is None else lax.axis_size(axis_name)


@export("parallel.pmean", since="0.1")
def pmean(tree: Tree, axis_name: str | None) -> Tree:
    """Mean over the devices of every leaf."""
    return tree if axis_name is None else lax.pmean(tree, axis_name)


@export("parallel.psum", since="0.1")
def psum(tree: Tree, axis_name: str | None) -> Tree:
    """Sum over the devices of every leaf."""
    return tree if axis_name is None else lax.psum(tree, axis_name)


@export("parallel.all_gather", since="0.1")
def all_gather(x: Array, axis_name: str | None) -> Array:
    """The global batch [devices * batch, ...] on every device, in device order.

    Gradients flow back to the device each row came from.
    """
    if axis_name is None:
        return x
    if lax.axis_size(axis_name) == 1:  # it may be an axis of vmap, as under `fsdp`
        return lax.psum(x, axis_name).astype(x.dtype)
    # "invarying" tells shard_map's check that all devices hold the same result.
    return lax.all_gather(x, axis_name, tiled=True, to="invarying")


@export("parallel.sample_positions", since="0.1")
def sample_positions(num_local: int, axis_name: str | None) -> Int[Array, "batch"]:
    """Where the local samples stand in the global batch."""
    positions = jnp.arange(num_local)
    if axis_name is None or lax.axis_size(axis_name) == 1:
        return positions
    return lax.axis_index(axis_name) * num_local + positions


@export("parallel.sample_keys", since="0.1")
def sample_keys(key: PRNGKeyArray, num_local: int, axis_name: str | None) -> Array:
    """One key per local sample, the same for a sample on any number of devices.

    In a micro-batch of `jaxml.compose.accumulated` too a sample has the key of its
    position in the whole batch.
    """
    positions = sample_positions(num_local, axis_name)
    for index, count in reversed(_micro_batches.get()):
        positions = positions * count + index
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, positions)


_micro_batches: ContextVar[tuple[tuple[Array, int], ...]] = ContextVar(
    "micro_batches", default=()
)


@contextmanager
def micro_batch(index: Int[Array, ""], count: int) -> Iterator[None]:
    """While this lasts, the batch at hand holds every `count`-th sample from `index` on.

    Every `count`-th, not a block: so a micro-batch is made of the same samples on any
    number of devices.
    """
    token = _micro_batches.set((*_micro_batches.get(), (index, count)))
    try:
        yield
    finally:
        _micro_batches.reset(token)


def in_micro_batch() -> bool:
    """Whether a `micro_batch` is at hand."""
    return bool(_micro_batches.get())
