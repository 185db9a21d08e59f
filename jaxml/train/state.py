"""The training state: everything a run must save to continue."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxml.export import export
from jaxml.method import Batch, Method, ModelState, Params
from jaxml.precision.loss_scale import LossScale
from jaxml.typing import PRNGKeyArray


@export("train.TrainState", since="0.1")
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Arrays only, so that any part can be saved, replicated or averaged.

    Attributes:
        step: number of batches seen. Steps skipped by a loss scale count here and not
            in the optimizer's own count: data move on, learning rate schedules do not.
        params: what the optimizer updates.
        model_state: what the method carries besides (see `jaxml.method`).
        opt_state: the optimizer's own state.
        loss_scale: for training in float16; None where there is none.
    """

    step: Any
    params: Params
    model_state: ModelState
    opt_state: Any
    loss_scale: Any = None


@export("train.init_state", since="0.1")
def init_state(
    method: Method,
    optimizer: optax.GradientTransformation,
    key: PRNGKeyArray,
    batch: Batch,
    loss_scale: LossScale | None = None,
) -> TrainState:
    """The state before the first step; `batch` is only looked at for its shapes.

    With a `loss_scale`, as `DynamicLossScale.create()`, `gradient_step` scales the loss
    and skips the steps that overflow.
    """

    def init(key: PRNGKeyArray, batch: Batch) -> TrainState:
        params, model_state = method.init(key, batch)
        step = jnp.zeros((), jnp.int32)
        # A copy: the caller's scale must outlive the donation of the state.
        scale = jax.tree.map(jnp.copy, loss_scale)
        return TrainState(step, params, model_state, optimizer.init(params), scale)

    return jax.jit(init)(key, batch)
