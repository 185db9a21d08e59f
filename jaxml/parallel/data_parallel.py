"""Data parallelism: the same step on every device, each with its part of the batch."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxml.export import export
from jaxml.parallel.mesh import DATA_AXIS, shard_batch


@export("parallel.data_parallel", since="0.1")
def data_parallel(
    step: Callable[[Any, Any], tuple[Any, Any]], mesh: Mesh
) -> Callable[[Any, Any], tuple[Any, Any]]:
    """Runs `step` with the batch split over `data` and everything else replicated.

    Args:
        step: (state, batch) -> (state, metrics). It must average its loss over the axis
            `data`: build it with `axis_name="data"`. What it returns is checked to be
            the same on every device.
        mesh: from `data_mesh`.

    Returns:
        The compiled step. It takes host batches (this process's part of the global
        batch) and donates the state: do not use the old state afterwards.
    """
    sharded = jax.shard_map(
        step, mesh=mesh, in_specs=(P(), P(DATA_AXIS)), out_specs=(P(), P())
    )
    compiled = jax.jit(sharded, donate_argnums=0)

    def run(state: Any, batch: Any) -> tuple[Any, Any]:
        return compiled(state, shard_batch(batch, mesh))

    return run
