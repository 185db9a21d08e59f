"""Collectives that are the identity on one device, so that a loss is written once.

Every function takes `axis_name`: the mesh axis the batch is split over inside
`shard_map`, or None outside of it. What they return is proven replicated (or per device,
where said), so that `shard_map`'s own check accepts it, and their gradients are those of
the global batch.
"""

from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from jaxml.export import export
from jaxml.typing import Array, Int, PRNGKeyArray

Tree = TypeVar("Tree")


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
    # "invarying" tells shard_map's check that all devices hold the same result.
    return lax.all_gather(x, axis_name, tiled=True, to="invarying")


@export("parallel.sample_positions", since="0.1")
def sample_positions(num_local: int, axis_name: str | None) -> Int[Array, "batch"]:
    """Where the local samples stand in the global batch."""
    first = 0 if axis_name is None else lax.axis_index(axis_name) * num_local
    return first + jnp.arange(num_local)


@export("parallel.sample_keys", since="0.1")
def sample_keys(key: PRNGKeyArray, num_local: int, axis_name: str | None) -> Array:
    """One key per local sample, the same for a sample on any number of devices."""
    fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    return fold(key, sample_positions(num_local, axis_name))
