"""The mesh of devices, and how arrays lie on it."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxml.export import export, export_constant
from jaxml.parallel.fingerprint import assert_replicated

DATA_AXIS = export_constant("parallel.DATA_AXIS", "data", since="0.1")
"""The mesh axis that batches are split over."""


@export("parallel.data_mesh", since="0.1")
def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A one-axis mesh named `data` over all (or the given) devices of all hosts."""
    devices = jax.devices() if devices is None else devices
    if not devices:
        raise ValueError("data_mesh needs at least one device, got none")
    return jax.make_mesh(
        (len(devices),), (DATA_AXIS,), (AxisType.Auto,), devices=devices
    )


@export("parallel.shard_batch", since="0.1")
def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """Puts a host batch on the mesh, split over its first axis.

    Args:
        batch: pytree of arrays [local batch, ...]: this process's part of the global
            batch, its rows in the order of the processes.
        mesh: a mesh with an axis named `data`.

    Raises:
        ValueError: if the batch does not divide by this process's devices.
    """
    sharding = NamedSharding(mesh, P(DATA_AXIS))
    devices = sum(d.process_index == jax.process_index() for d in mesh.devices.flat)

    def is_there(x: Any) -> bool:
        return isinstance(x, jax.Array) and x.sharding == sharding

    leaves, structure = jax.tree.flatten(batch)
    for x in leaves:
        if not is_there(x) and (np.ndim(x) == 0 or len(x) % devices):
            raise ValueError(
                "the batch must divide by the number of devices, "
                f"got shape {np.shape(x)} on {devices} devices"
            )
    if all(is_there(x) for x in leaves):
        return batch
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)  # all leaves at once: half the time
    make = jax.make_array_from_process_local_data
    leaves = [x if is_there(x) else make(sharding, np.asarray(x)) for x in leaves]
    return jax.tree.unflatten(structure, leaves)


@export("parallel.replicate", since="0.1")
def replicate(tree: Any, mesh: Mesh, *, broadcast: bool = False) -> Any:
    """Puts the same values on every device of the mesh.

    Args:
        tree: pytree of arrays.
        mesh: from `data_mesh`.
        broadcast: where there are several processes, whether the values of the first are
            sent to the others. If not, all must have the same, and that is checked.

    Raises:
        ValueError: naming a leaf of which two processes hold different bits, as after
            two seeds or two checkpoints; from then on they would train two models.
    """
    sharding = NamedSharding(mesh, P())
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    if broadcast:
        tree = multihost_utils.broadcast_one_to_all(tree)
    make = jax.make_array_from_process_local_data
    tree = jax.tree.map(lambda x: make(sharding, np.asarray(x)), tree)
    assert_replicated(tree, mesh)
    return tree
