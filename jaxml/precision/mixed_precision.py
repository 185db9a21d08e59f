"""Mixed precision as a transformation of methods: float32 outside, half precision inside.

    method.loss(params, state, batch)  becomes
    float32(method.loss(half(params), state, half(batch)))

The cast is part of what is differentiated, so gradients come back in the dtype of the
parameters. Model state is not cast: running statistics, a queue or a teacher would lose
in half precision what they are kept for, as their steps are smaller than its rounding. A
teacher's forward pass runs in half precision where its modules are given the `dtype`.

What stays in float32 inside is the business of modules and losses, and is checked: see
`jaxml.precision.float32_ops`. The traps: float targets (boxes, depth, times) are inputs
too, so name the `inputs` to cast where there are any; and put `augmented` around
`mixed_precision`, not inside, or the views are float32 and all that follows is.

Reference: Micikevicius et al., "Mixed Precision Training", ICLR 2018,
https://arxiv.org/abs/1710.03740 (sections 3.1 and 3.3, figure 1).
"""

from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxml.export import export
from jaxml.method import Batch, Method, Metrics, ModelState, Params
from jaxml.precision.policy import Policy, cast, cast_like
from jaxml.typing import Array, Float, Int, PRNGKeyArray


@export("precision.mixed_precision", since="0.1")
def mixed_precision(
    method: Method,
    policy: Policy,
    *,
    inputs: Collection[str] | None = None,
    keep: Callable[[str], bool] | None = None,
    axis_name: str | None = None,
) -> Method:
    """`method`, with parameters, computation and outputs in the dtypes of `policy`.

    Model state keeps the dtypes it was made with, whatever the method returns for it.

    Args:
        method: the algorithm.
        policy: from `policy("mixed_bfloat16")`, or your own. float16 needs a loss scale
            in the training state besides.
        inputs: the fields of the batch to cast; None casts all that are floating.
        keep: path of a parameter, as "encoder/norm/scale" -> whether it goes into the
            computation as it is stored. Its module must have been given a `dtype`, or it
            widens all that follows.
        axis_name: mesh axis the batch is split over, or None. With it gradients are
            summed over the devices in the dtype of the parameters, without it in
            half precision. Model state made from parameters alone then needs a `pmean`.

    Raises:
        ValueError: in a step, if a name in `inputs` is not in the batch, or if the model
            state changes its structure.

        method = mixed_precision(simclr(model), policy("mixed_bfloat16"))
    """

    def compute(x: Array) -> Array:
        return cast(_own(x, axis_name), policy.compute_dtype)

    def half_params(params: Params, compute: Callable[[Array], Array]) -> Params:
        def cast_leaf(path: Any, x: Any) -> Any:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            is_kept = keep is not None and keep(name)
            is_cast = jnp.issubdtype(x.dtype, jnp.floating) and not is_kept
            return compute(x) if is_cast and x.dtype != policy.compute_dtype else x

        return jax.tree.map_with_path(cast_leaf, params)

    def half_batch(batch: Batch) -> Batch:
        names = batch.keys() if inputs is None else inputs
        if missing := sorted(set(names) - batch.keys()):
            raise ValueError(
                f"inputs must be fields of the batch, {', '.join(sorted(batch))}, "
                f"got {', '.join(missing)}"
            )
        return {
            **batch,
            **{name: policy.cast_to_compute(batch[name]) for name in names},
        }

    def init(key: PRNGKeyArray, batch: Batch) -> tuple[Params, ModelState]:
        params, model_state = method.init(key, batch)
        return policy.cast_to_param(params), model_state

    def loss(
        params: Params, model_state: ModelState, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[ModelState, Metrics]]:
        value, (new_state, metrics) = method.loss(
            half_params(params, compute), model_state, half_batch(batch), key
        )
        new_state = cast_like(new_state, model_state, "the model state")
        return policy.cast_to_output(value), (
            new_state,
            policy.cast_to_output(metrics),
        )

    def predict(params: Params, model_state: ModelState, batch: Batch) -> Any:
        outputs = method.predict(
            half_params(params, policy.cast_to_compute), model_state, half_batch(batch)
        )
        return policy.cast_to_output(outputs)

    def after_update(
        params: Params, model_state: ModelState, step: Int[Array, ""]
    ) -> tuple[Params, ModelState]:
        new_params, new_state = method.after_update(params, model_state, step)
        return (
            cast_like(new_params, params, "the parameters"),
            cast_like(new_state, model_state, "the model state"),
        )

    return Method(init, loss, predict, after_update)


def _own(x: Array, axis_name: str | None) -> Array:
    """The device's own copy; its transpose is the sum over devices, here before a cast."""
    if axis_name is None:
        return x
    try:
        return lax.pcast(x, axis_name, to="varying")
    except ValueError:  # it is that already: micro-batches come with their own
        return x
