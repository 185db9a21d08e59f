"""Unit vectors and cosine similarity, with gradients that exist at zero."""

import jax.numpy as jnp
from jax import lax

from jaxml.export import export
from jaxml.typing import Array, Float


@export("ops.unit", since="0.1")
def unit(x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
    """Rows of length one; a zero row has no direction: it stays zero, without gradient.

    >>> unit(jnp.array([[3.0, 4.0]])).tolist()
    [[0.6..., 0.8...]]
    """
    return (x * inverse_norm(x)[..., None]).astype(x.dtype)


@export("ops.inverse_norm", since="0.1")
def inverse_norm(x: Float[Array, "*batch dim"]) -> Float[Array, "*batch"]:
    """One over the length of every row, in float32 or wider; 0 for a zero row.

    Zero is what a dead layer gives, and rows up to 1e-12 long count as that. A large
    number instead would be the factor of their gradient, and one such row in a batch
    would throw the weights out of all bounds.

    >>> inverse_norm(jnp.array([[3.0, 4.0]])).tolist()
    [0.2...]
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    square = jnp.sum(jnp.square(x.astype(wide)), axis=-1)
    is_zero = square <= 1e-24
    # Chosen under the root too, whose gradient at zero is not finite.
    return jnp.where(is_zero, 0.0, lax.rsqrt(jnp.where(is_zero, 1.0, square)))
