"""Stochastic rounding: up or down by chance, so that the mean is exact.

A bfloat16 parameter cannot take an update smaller than 2^-9 of itself: rounded to nearest
it stays where it is, forever. Rounded up with the probability of the part cut off,

    sr(x) = low   with probability  (high - x) / (high - low)
            high  with probability  (x - low) / (high - low),    E[sr(x)] = x,

it moves as far as it should on average, without a float32 copy. Here x = p + u is summed
in float32, and 16 random bits are added below the last bit that is kept.

The trap is the optimizer's own averages: made from bfloat16 parameters they would be
bfloat16 and stick as well. Here the optimizer sees float32 and keeps float32.

Reference: Gupta et al., "Deep Learning with Limited Numerical Precision", ICML 2015,
https://arxiv.org/abs/1502.02551 (section 3.1); Zamirai et al., "Revisiting BFloat16
Training", https://arxiv.org/abs/2010.06192 (which keeps the averages in bfloat16 as well).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxml.export import export
from jaxml.method import Params
from jaxml.precision.policy import cast
from jaxml.typing import Array, Float, PRNGKeyArray


@export("precision.round_stochastically", since="0.1")
def round_stochastically(
    key: PRNGKeyArray, x: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """float32 to bfloat16, without bias; infinities and NaN stay what they are.

    Args:
        key: the same key gives the same rounding.
        x: float32.

    Raises:
        ValueError: if `x` is not float32.
    """
    if x.dtype != jnp.float32:
        raise ValueError(f"x must be float32, got {x.dtype}")
    x = jnp.asarray(x)
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    # Bits of a float count magnitudes, so a carry is the step to the next number.
    bits = lax.bitcast_convert_type(x, jnp.uint32) + noise
    rounded = lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), jnp.bfloat16)
    return jnp.where(jnp.isfinite(x), rounded, x.astype(jnp.bfloat16))


class StochasticRoundingState(NamedTuple):
    """How many updates were made, and the state of the optimizer inside."""

    updates: Array
    inner: Any


@export("precision.stochastic_rounding", since="0.1")
def stochastic_rounding(
    optimizer: optax.GradientTransformation, key: PRNGKeyArray
) -> optax.GradientTransformationExtraArgs:
    """`optimizer` for bfloat16 parameters, its updates rounded stochastically.

    The optimizer inside sees gradients and parameters in float32, and its state is
    float32. What comes out lands on bfloat16 numbers under `optax.apply_updates`, so put
    nothing after it in a chain. Parameters of float32 are updated as usual.

    Args:
        optimizer: any optax transformation.
        key: update `i` draws from `fold_in(key, i)`, the same on every device and again
            in a continued run; a step that a loss scale skips draws nothing.

    Raises:
        ValueError: if there are no parameters, or some are of another half precision.

        optimizer = stochastic_rounding(optax.adamw(1e-3), jax.random.key(0))
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def init(params: Params) -> StochasticRoundingState:
        for path, x in jax.tree.leaves_with_path(params):
            if x.dtype.itemsize < 4 and x.dtype != jnp.bfloat16:
                raise ValueError(
                    "stochastic rounding is for parameters of bfloat16, "
                    f"got {x.dtype} at {jax.tree_util.keystr(path)}"
                )
        zero = jnp.zeros((), jnp.int32)
        return StochasticRoundingState(zero, optimizer.init(_widened(params)))

    def update(
        grads: Params,
        state: StochasticRoundingState,
        params: Params | None = None,
        **extra_args: Any,
    ) -> tuple[Params, StochasticRoundingState]:
        if params is None:
            raise ValueError("stochastic rounding needs the parameters, got none")
        wide = _widened(params)
        updates, inner = optimizer.update(
            _widened(grads), state.inner, wide, **extra_args
        )
        step_key = jax.random.fold_in(key, state.updates)
        leaves, structure = jax.tree.flatten(params)
        rounded = [
            _landing(jax.random.fold_in(step_key, i), p, old, u)
            for i, (p, old, u) in enumerate(
                zip(
                    leaves, jax.tree.leaves(wide), jax.tree.leaves(updates), strict=True
                )
            )
        ]
        state = StochasticRoundingState(optax.safe_increment(state.updates), inner)
        return jax.tree.unflatten(structure, rounded), state

    return optax.GradientTransformationExtraArgs(init, update)


def _landing(key: PRNGKeyArray, param: Array, wide: Array, update: Array) -> Array:
    """The float32 step from `param` to the bfloat16 number that p + u is rounded to."""
    if param.dtype != jnp.bfloat16:
        return update
    return round_stochastically(key, wide + update).astype(jnp.float32) - wide


def _widened(tree: Any) -> Any:
    return jax.tree.map(
        lambda x: cast(x, jnp.promote_types(x.dtype, jnp.float32)), tree
    )
