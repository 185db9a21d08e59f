"""Fully sharded data parallelism: every device keeps 1/N of the state, not all of it.

Under `data_parallel` every device holds the parameters, their gradients and the
optimizer's moments: for Adam four times the parameters. Here each large array of the
state is split over the devices that also split the batch (ZeRO, stage 3), and the
compiler inserts what is missing:

    all-gather      a layer's parameters, before each use, forward and backward
    reduce-scatter  its gradient, to the device that owns the part (or, on backends
                    without one, all-reduce and slice)
    nothing         for the optimizer: it works on the parts.

The step is not told. It runs as on **one** device that holds the whole batch and the
whole state, and XLA's partitioner divides that program: so norms over all parameters
(gradient clipping) or over one array (LARS, LAMB) are right without a word about shards,
which they would not be had each device called the optimizer on its own parts.

The traps. Gathered parameters are kept until the backward pass has used them, so memory
falls as 1/N only for a model that scans over its layers and recomputes them
(`nn.scan` of `nn.remat`): there each turn of the loop gathers one layer. Batch norm
always has the statistics of the whole batch (of its `num_groups`): no device has a batch
of its own. And a kernel that XLA cannot divide is run whole on every device, unless its
caller divides it with `shard_map`.

Reference: Rajbhandari, Rasley, Ruwase and He, "ZeRO: Memory Optimizations Toward Training
Trillion Parameter Models", SC 2020, https://arxiv.org/abs/1910.02054 (stage 3); Zhao et
al., "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel", VLDB 2023,
https://arxiv.org/abs/2304.11277; Xu et al., "GSPMD: General and Scalable Parallelization
for ML Computation Graphs", 2021, https://arxiv.org/abs/2105.04663 (the partitioner).
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxml.export import export
from jaxml.parallel.data_parallel import Step
from jaxml.parallel.mesh import DATA_AXIS, shard_batch

MIN_SIZE = 2**16
"""Numbers in the smallest array that is worth a collective of its own to gather."""


@export("parallel.fsdp_sharding", since="0.1")
def fsdp_sharding(tree: Any, mesh: Mesh, *, min_size: int = MIN_SIZE) -> Any:
    """How the arrays of a state are laid out: a sharding for every leaf.

    An array of at least `min_size` numbers is split along its largest axis among those
    that the number of devices divides (of equal ones the first). Smaller arrays, and
    those without such an axis, are on every device.

    Args:
        tree: pytree of arrays, or of their shapes as from `jax.eval_shape`.
        mesh: a mesh with an axis named `data`.
        min_size: 0 splits whatever can be split.
    """
    devices = mesh.shape[DATA_AXIS]

    def sharding(x: Any) -> NamedSharding:
        shape = np.shape(x)
        splittable = [axis for axis, n in enumerate(shape) if n % devices == 0]
        if not splittable or math.prod(shape) < max(min_size, 1):
            return NamedSharding(mesh, P())
        axis = max(splittable, key=lambda axis: shape[axis])
        return NamedSharding(mesh, P(*[None] * axis, DATA_AXIS))

    return jax.tree.map(sharding, tree)


@export("parallel.fsdp_init", since="0.1")
def fsdp_init(
    init: Callable[..., Any], mesh: Mesh, *, min_size: int = MIN_SIZE
) -> Callable[..., Any]:
    """`init`, its result made in its parts: no device ever holds a whole state.

    The values are those of `init` itself, whatever the number of devices.

        >>> init = functools.partial(init_state, method, optimizer)
        >>> state = fsdp_init(init, mesh)(key, batch)
    """

    def laid_out(*args: Any) -> Any:
        shardings = fsdp_sharding(jax.eval_shape(init, *args), mesh, min_size=min_size)
        return jax.jit(init, out_shardings=shardings)(*args)

    return laid_out


@export("parallel.fsdp", since="0.1")
def fsdp(step: Step, mesh: Mesh, *, min_size: int = MIN_SIZE) -> Step:
    """Runs `step` with the batch and the state split over `data`.

    The same step as for `data_parallel`, with the same results to rounding.

    Args:
        step: (state, batch) -> (state, metrics), built with `axis_name="data"` or
            without: it sees one device, and an axis `data` of size one.
        mesh: from `data_mesh`.
        min_size: as for `fsdp_sharding`, which gives the layout of the state.

    Returns:
        The compiled step. It takes host batches (this process's part of the global
        batch) and donates the state: do not use the old state afterwards. A state that
        is laid out otherwise is laid out first; `fsdp_init` makes it so from the start.
    """
    compiled = program(step, mesh, min_size=min_size)

    def run(state: Any, batch: Any) -> tuple[Any, Any]:
        # A state moves as a whole, so its largest array is asked where it lies.
        largest = max(jax.tree.leaves(state), key=np.size, default=np.zeros(0))
        wanted = fsdp_sharding(largest, mesh, min_size=min_size)
        if not (
            isinstance(largest, jax.Array)
            and largest.sharding.is_equivalent_to(wanted, largest.ndim)
        ):
            wanted = fsdp_sharding(state, mesh, min_size=min_size)
            state = jax.device_put(state, wanted)
        return compiled(state, shard_batch(batch, mesh))

    return run


def program(step: Step, mesh: Mesh, *, min_size: int = MIN_SIZE) -> Any:
    """The jitted part, for arrays laid out already; it can be lowered and looked at."""

    def whole(state: Any, batch: Any) -> tuple[Any, Any]:
        # The axis exists, and nothing is mapped over it: no array gets an axis more.
        alone = jax.vmap(step, in_axes=None, axis_size=1, axis_name=DATA_AXIS)
        state, metrics = jax.tree.map(lambda x: x[0], alone(state, batch))
        layout = fsdp_sharding(state, mesh, min_size=min_size)
        everywhere = NamedSharding(mesh, P())
        return (
            lax.with_sharding_constraint(state, layout),
            lax.with_sharding_constraint(metrics, everywhere),
        )

    return jax.jit(whole, donate_argnums=0)
