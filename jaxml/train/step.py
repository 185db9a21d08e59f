"""One optimisation step of a method, as a pure function (state, batch) -> state."""

from collections.abc import Callable

import jax
import optax

from jaxml.export import export
from jaxml.method import Batch, Method, Metrics, ModelState, Params
from jaxml.parallel.collectives import pmean
from jaxml.train.guard import gradient_norms
from jaxml.train.state import TrainState
from jaxml.typing import Array, Float, PRNGKeyArray

Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
"""What `fit` drives. The state has a `step` count; metrics are named scalars."""


@export("train.gradient_step", since="0.1")
def gradient_step(
    method: Method,
    optimizer: optax.GradientTransformation,
    key: PRNGKeyArray,
    axis_name: str | None = None,
) -> Step:
    """The usual step: loss, gradient, optimizer, then the method's `after_update`.

    Args:
        method: the algorithm. Under `axis_name` it must have been built with the same
            name, so that the model state it returns is the same on every device.
        optimizer: any optax transformation.
        key: seed of the run; step `i` draws from `fold_in(key, i)` on every device.
        axis_name: mesh axis the batch is split over, inside `shard_map`.

    Returns:
        A pure function; the caller jits it or hands it to `data_parallel`. It adds to
        the method's metrics `grad_norm`, the global norm of the gradient, and
        `grad_norms`, one norm per parameter array, by which `fit` names a culprit.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        step_key = jax.random.fold_in(key, state.step)

        def loss_fn(
            params: Params,
        ) -> tuple[Float[Array, ""], tuple[ModelState, Metrics]]:
            loss, (model_state, metrics) = method.loss(
                params, state.model_state, batch, step_key
            )
            # Mean of the loss, never of the gradient: the replicated params' gradient
            # is summed over the devices by shard_map itself.
            return pmean(loss, axis_name), (model_state, pmean(metrics, axis_name))

        grads, (model_state, metrics) = jax.grad(loss_fn, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        params, model_state = method.after_update(params, model_state, state.step)
        return (
            TrainState(state.step + 1, params, model_state, opt_state),
            {**metrics, **gradient_norms(grads)},
        )

    return step
