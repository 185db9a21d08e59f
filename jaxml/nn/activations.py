"""Activations: those of `jax.nn`, and here what it lacks."""

import math

import jax
import jax.numpy as jnp
from jax import lax

from jaxml.typing import Array, Float


@jax.custom_jvp
def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The exact GELU, x Phi(x), Phi being the standard normal's distribution function.

    Equal to `jax.nn.gelu(x, approximate=False)`, but with its derivative spelled out: that
    of the error function is refused inside `shard_map` by jax 0.12.

    Reference: Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016,
    https://arxiv.org/abs/1606.08415 (equation 1).
    """
    return x * _phi(x)


@gelu.defjvp
def _gelu_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    ((x,), (tangent,)) = primals, tangents
    share = _phi(x)
    density = jnp.exp(-jnp.square(x) / 2) * jnp.asarray(
        1 / math.sqrt(2 * math.pi), x.dtype
    )
    return x * share, (share + x * density) * tangent


def _phi(x: Array) -> Array:
    # erfc keeps the relative accuracy of the left tail, where 1 + erf would cancel.
    return lax.erfc(-x * jnp.asarray(math.sqrt(0.5), x.dtype)) / 2
