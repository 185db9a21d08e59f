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
    return (x * inverse_norm(x)[..., None]).astype(x.dtype)


@export("ops.inverse_norm", since="0.1")
def inverse_norm(x: Float[Array, "*batch dim"]) -> Float[Array, "*batch"]:
    """One over the length of every row, in float32 or wider; 1e12 for a zero row.

    >>> inverse_norm(jnp.array([[3.0, 4.0]])).tolist()
    [0.2...]
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    # The floor sits under the root: the norm itself has no gradient at zero.
    square = jnp.sum(jnp.square(x.astype(wide)), axis=-1)
    return lax.rsqrt(jnp.maximum(square, 1e-24))
