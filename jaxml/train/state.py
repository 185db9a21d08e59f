"""The training state: everything a run must save to continue."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxml.export import export
from jaxml.method import Batch, Method, ModelState, Params
from jaxml.typing import PRNGKeyArray


@export("train.TrainState", since="0.1")
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Arrays only, so that any part can be saved, replicated or averaged.

    Attributes:
        step: number of updates made.
        params: what the optimizer updates.
        model_state: what the method carries besides (see `jaxml.method`).
        opt_state: the optimizer's own state.
    """

    step: Any
    params: Params
    model_state: ModelState
    opt_state: Any


@export("train.init_state", since="0.1")
def init_state(
    method: Method,
    optimizer: optax.GradientTransformation,
    key: PRNGKeyArray,
    batch: Batch,
) -> TrainState:
    """The state before the first step; `batch` is only looked at for its shapes."""

    def init(key: PRNGKeyArray, batch: Batch) -> TrainState:
        params, model_state = method.init(key, batch)
        step = jnp.zeros((), jnp.int32)
        return TrainState(step, params, model_state, optimizer.init(params))

    return jax.jit(init)(key, batch)
