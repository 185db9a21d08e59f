"""Unit vectors and cosine similarity, with gradients that exist at zero."""

import jax.numpy as jnp
from jax import lax

from jaxml.export import export
from jaxml.typing import Array, Float


@export("ops.unit", since="0.1")
def unit(x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
    """Rows of length one; a zero row stays zero, and so does its gradient's direction.

    >>> unit(jnp.array([[3.0, 4.0]])).tolist()
    [[0.6..., 0.8...]]
    """
    # The floor sits under the root: the norm itself has no gradient at zero.
    square = jnp.sum(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True)
    return (x * lax.rsqrt(jnp.maximum(square, 1e-24))).astype(x.dtype)
