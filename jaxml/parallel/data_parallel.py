"""Data parallelism: the same step on every device, each with its part of the batch."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxml.export import export
from jaxml.parallel.mesh import DATA_AXIS, replicate, shard_batch
from jaxml.parallel.ring_all_reduce import replicated

Step = Callable[[Any, Any], tuple[Any, Any]]
"""(state, batch) -> (state, metrics)."""


@export("parallel.data_parallel", since="0.1")
def data_parallel(step: Step, mesh: Mesh) -> Step:
    """Runs `step` with the batch split over `data` and everything else replicated.

    Args:
        step: (state, batch) -> (state, metrics). It must average its loss over the axis
            `data`: build it with `axis_name="data"`. What it returns is checked to be
            the same on every device.
        mesh: from `data_mesh`.

    Returns:
        The compiled step. It takes host batches (this process's part of the global
        batch) and donates the state: do not use the old state afterwards. A state that
        lies elsewhere, as before the first step, is put on the mesh.
    """
    compiled = program(step, mesh)
    everywhere = NamedSharding(mesh, P())

    def run(state: Any, batch: Any) -> tuple[Any, Any]:
        # Left to `jit`, another layout would be another program, compiled for one call.
        # A state moves as a whole, so one leaf is asked: asking all takes a millisecond.
        first = next(iter(jax.tree.leaves(state)), None)
        if getattr(first, "sharding", None) != everywhere:
            state = replicate(state, mesh)
        return compiled(state, shard_batch(batch, mesh))

    return run


def program(step: Step, mesh: Mesh) -> Any:
    """The jitted part, for arrays on the mesh; it can be lowered and looked at."""
    sharded = jax.shard_map(
        step, mesh=mesh, in_specs=(P(), P(DATA_AXIS)), out_specs=(P(), P())
    )
    return jax.jit(sharded, donate_argnums=0)


@export("parallel.pmap_parallel", since="0.1")
def pmap_parallel(step: Step, mesh: Mesh) -> Step:
    """`data_parallel` for code written around `jax.pmap`: every array has a device axis.

    State and batch come as [devices, ...], as `flax.jax_utils.replicate` and
    `flax.training.common_utils.shard` make them, and state and metrics leave so. Under
    `pmap` itself the step would go wrong without a word: there the gradient of a mean
    over devices is the device's own.

    Args:
        step: as for `data_parallel`. The copies of the state are taken to be the same.
        mesh: from `data_mesh`; its devices are those of the leading axis.
    """

    def local(state: Any, batch: Any) -> tuple[Any, Any]:
        state, batch = jax.tree.map(lambda x: x[0], (state, batch))
        state = jax.tree.map(lambda x: replicated(x, DATA_AXIS), state)
        return jax.tree.map(lambda x: x[None], step(state, batch))

    along = P(DATA_AXIS)
    sharded = jax.shard_map(local, mesh=mesh, in_specs=along, out_specs=along)
    return jax.jit(sharded, donate_argnums=0)
