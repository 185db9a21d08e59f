"""One optimisation step of a method, as a pure function (state, batch) -> state."""

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import optax

from jaxml.export import export
from jaxml.method import Batch, Method, Metrics, ModelState, Params
from jaxml.parallel.collectives import pmean
from jaxml.precision.loss_scale import all_finite
from jaxml.train.guard import gradient_norms
from jaxml.train.state import TrainState
from jaxml.typing import Array, Bool, Float, PRNGKeyArray

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

    If the state has a `loss_scale`, the loss is multiplied by it and the gradient divided
    by it in float32, before the optimizer sees it. Where any gradient on any device then
    is not finite, everything but `step` and the scale itself stays as it was, the
    optimizer's count included, and `after_update` has no effect.

    Args:
        method: the algorithm. Under `axis_name` it must have been built with the same
            name, so that the model state it returns is the same on every device.
        optimizer: any optax transformation.
        key: seed of the run; step `i` draws from `fold_in(key, i)` on every device.
        axis_name: mesh axis the batch is split over, inside `shard_map`.

    Returns:
        A pure function; the caller jits it or hands it to `data_parallel`. It adds to
        the method's metrics `grad_norm`, the global norm of the gradient, and
        `grad_norms`, one norm per parameter array, by which `fit` names a culprit; with
        a loss scale also `loss_scale`, as it was in this step, its `loss_scale_bounds`,
        and `skipped`, 1 or 0.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        step_key = jax.random.fold_in(key, state.step)
        scale = state.loss_scale

        def loss_fn(
            params: Params,
        ) -> tuple[Float[Array, ""], tuple[ModelState, Metrics]]:
            loss, (model_state, metrics) = method.loss(
                params, state.model_state, batch, step_key
            )
            # Mean of the loss, never of the gradient: the replicated params' gradient
            # is summed over the devices by shard_map itself.
            loss = pmean(loss, axis_name)
            if scale is not None:
                loss = scale.scale_loss(loss)
            return loss, (model_state, pmean(metrics, axis_name))

        grads, (model_state, metrics) = jax.grad(loss_fn, has_aux=True)(state.params)
        if scale is not None:
            grads = scale.unscale(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        params, model_state = method.after_update(params, model_state, state.step)
        new = TrainState(state.step + 1, params, model_state, opt_state, scale)
        metrics = {**metrics, **gradient_norms(grads)}
        if scale is None:
            return new, metrics
        is_finite = all_finite(grads, axis_name)
        return _settled(is_finite, new, state), {
            **metrics,
            "loss_scale": scale.scale,
            "loss_scale_bounds": scale.bounds,
            "skipped": 1 - is_finite.astype(jnp.float32),
        }

    return step


def _settled(
    is_finite: Bool[Array, ""], new: TrainState, old: TrainState
) -> TrainState:
    """The new state, or the old one with its data and scale moved on."""

    def choose(new: Array, old: Array) -> Array:
        # Half-precision parameters get float32 gradients, and no state may widen by it.
        return jnp.where(is_finite, new.astype(old.dtype), old)

    kept = jax.tree.map(
        choose, replace(new, loss_scale=None), replace(old, loss_scale=None)
    )
    return replace(kept, step=new.step, loss_scale=old.loss_scale.adjust(is_finite))
