"""Clipping of gradients array by array, as DINO does it.

    g <- g min(1, c / |g|)      for every array of parameters on its own

Clipping by the norm of all gradients together slows every layer down where one explodes;
this keeps the one in bounds and leaves the others as they are.

The trap: what counts as one array. A transformer whose blocks are stacked (`scan=True`) is
clipped by the norm over all its blocks.

Reference: Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV
2021, https://arxiv.org/abs/2104.14294 (c = 3, the authors' code).
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxml.export import export
from jaxml.method import Params
from jaxml.typing import Array


@export("ssl.clip_each", since="0.1")
def clip_each(max_norm: float) -> optax.GradientTransformation:
    """An optax transformation: no array's gradient is longer than `max_norm`.

    Raises:
        ValueError: if `max_norm` is not positive.

    >>> clip = clip_each(5.0)
    >>> grads = {"a": jnp.array([6.0, 8.0]), "b": jnp.array([0.5])}
    >>> {name: g.tolist() for name, g in clip.update(grads, clip.init(grads))[0].items()}
    {'a': [3.0, 4.0], 'b': [0.5]}
    """
    if not max_norm > 0:
        raise ValueError(f"max_norm must be positive, got {max_norm}")

    def clip(g: Array) -> Array:
        norm = jnp.linalg.norm(g.astype(jnp.promote_types(g.dtype, jnp.float32)))
        return (g * (max_norm / jnp.maximum(norm, max_norm))).astype(g.dtype)

    def update(updates: Any, state: Any, params: Params | None = None) -> Any:
        del params
        return jax.tree.map(clip, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
