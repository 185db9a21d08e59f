"""A teacher: a slow copy of the network, the exponential moving average of its parameters.

    teacher <- m teacher + (1 - m) params,      after every optimizer step

The momentum m is a number, or a schedule over steps: BYOL's and DINO's rises to one on a
cosine, m = final - (final - base) (cos(pi k / K) + 1) / 2.

The traps. The teacher moves once per optimizer step, never per micro-batch: that is what
`Method.after_update` is for. It must be a copy: if it shares buffers with the parameters,
donating the state fails. And it is kept in float32 or wider: in bfloat16 a step of
0.001 times a small difference rounds to nothing, and the teacher stands still.

Reference: Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS 2017,
https://arxiv.org/abs/1703.01780 (equation 2); He et al., "Momentum Contrast for
Unsupervised Visual Representation Learning", CVPR 2020, https://arxiv.org/abs/1911.05722
(equation 2); Grill et al., "Bootstrap Your Own Latent", NeurIPS 2020,
https://arxiv.org/abs/2006.07733 (section 3.3, the schedule).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxml.export import export
from jaxml.method import Params
from jaxml.typing import Array, Float, Int

Momentum = float | Callable[[Int[Array, ""]], Float[Array, ""]]
"""A number in [0, 1], or step -> number."""


@export("ssl.init_teacher", since="0.1")
def init_teacher(params: Params) -> Params:
    """A copy with its own buffers, in float32 or wider."""

    def copy(x: Array) -> Array:
        return jnp.array(x, jnp.promote_types(x.dtype, jnp.float32), copy=True)

    return jax.tree.map(copy, params)


@export("ssl.move_teacher", since="0.1")
def move_teacher(
    teacher: Params, params: Params, momentum: Momentum, step: Int[Array, ""]
) -> Params:
    """The teacher after one optimizer step.

    Args:
        teacher: from `init_teacher`.
        params: after the optimizer step.
        momentum: the teacher's weight: 1 leaves it, 0 makes it the params.
        step: what a schedule is asked for.

    Raises:
        ValueError: if a number is not in [0, 1].

    >>> step = jnp.array(0)
    >>> float(move_teacher(jnp.array(1.0), jnp.array(0.0), 0.75, step))
    0.75
    """
    m = momentum(step) if callable(momentum) else momentum
    if isinstance(m, float | int) and not 0 <= m <= 1:
        raise ValueError(f"the teacher's momentum must be in [0, 1], got {m}")
    # As a difference, so that equal ones stay equal to the bit.
    return jax.tree.map(
        lambda old, new: old + (1 - m) * (new.astype(old.dtype) - old), teacher, params
    )


@export("ssl.cosine_momentum", since="0.1")
def cosine_momentum(base: float, num_steps: int, final: float = 1.0) -> Momentum:
    """From `base` at step 0 to `final` at `num_steps`, and there it stays.

    Raises:
        ValueError: if a momentum is not in [0, 1], or there are no steps.

    >>> schedule = cosine_momentum(0.996, 100)
    >>> [round(float(schedule(jnp.array(k))), 3) for k in (0, 50, 100, 200)]
    [0.996, 0.998, 1.0, 1.0]
    """
    if not (0 <= base <= 1 and 0 <= final <= 1):
        raise ValueError(f"momentum must be in [0, 1], got {base} and {final}")
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")

    def schedule(step: Int[Array, ""]) -> Float[Array, ""]:
        done = jnp.minimum(step / num_steps, 1)
        return final - (final - base) * (jnp.cos(math.pi * done) + 1) / 2

    return schedule
