"""What jaxml calls a method: an algorithm as pure functions over explicit state.

A family module builds a `Method`; `jaxml.train` runs one. Neither imports the other.
Methods are values, so they compose like optax transformations: see `jaxml.compose`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxml.typing import Array, Float, Int, PRNGKeyArray

Batch = Mapping[str, Any]
"""Named arrays, the sample axis first; `mask` (True = count it) marks padding."""

Params = Any
"""What the optimizer updates."""

ModelState = Any
"""What it does not: running statistics, a teacher, a queue."""

Metrics = Mapping[str, Float[Array, ""]]
"""Named scalars, to be averaged over devices."""

LossFn = Callable[
    [Params, ModelState, Batch, PRNGKeyArray],
    tuple[Float[Array, ""], tuple[ModelState, Metrics]],
]


def keep(
    params: Params, model_state: ModelState, step: Int[Array, ""]
) -> tuple[Params, ModelState]:
    """The `after_update` of methods that need none."""
    del step
    return params, model_state


class Method(NamedTuple):
    """One algorithm trained by gradients.

    Attributes:
        init: (key, batch) -> (params, model_state).
        loss: (params, model_state, batch, key) -> (loss, (model_state, metrics)). What
            depends on the forward pass alone (a queue, a centre) changes here. Under
            `shard_map` the model state comes out the same on every device.
        predict: (params, model_state, batch) -> outputs, for evaluation; the sample
            axis first.
        after_update: (params, model_state, step) -> (params, model_state), run after
            each optimizer update: move a teacher, renormalise prototypes.
    """

    init: Callable[[PRNGKeyArray, Batch], tuple[Params, ModelState]]
    loss: LossFn
    predict: Callable[[Params, ModelState, Batch], Any]
    after_update: Callable[
        [Params, ModelState, Int[Array, ""]], tuple[Params, ModelState]
    ] = keep
