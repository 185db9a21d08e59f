"""Prefix sums of numbers on a grid, faster than XLA's own on a CPU.

Products with a triangle of ones within blocks, and again over the totals of the blocks.

The trap: float64 sums by products are only exact where the numbers are (`fixed_point.snap`).

Reference: Dakkak et al., "Accelerating Reduction and Scan Using Tensor Core Units", ICS
2019, https://arxiv.org/abs/1811.09736 (section 4).
"""

import jax
import jax.numpy as jnp

from jaxml.typing import Array, Float

BLOCK = 32
"""Places whose prefix sums are one product."""


@jax.custom_batching.custom_vmap
def prefix_sums(x: Float[Array, "*batch rows"]) -> Float[Array, "*batch rows"]:
    """Sums up to and with each place; exact, as the numbers lie on a grid."""
    n = x.shape[-1]
    block = min(n, BLOCK)
    triangle = jnp.triu(jnp.ones((block, block), x.dtype))
    if n <= BLOCK:
        return x @ triangle
    blocks = -(-n // BLOCK)
    edges = [(0, 0)] * (x.ndim - 1)
    padded = jnp.pad(x, [*edges, (0, blocks * BLOCK - n)])
    within = padded.reshape(*x.shape[:-1], blocks, BLOCK) @ triangle
    before = prefix_sums(within[..., -1])
    before = jnp.pad(before[..., :-1], [*edges, (1, 0)])
    return (within + before[..., None]).reshape(*x.shape[:-1], -1)[..., :n]


@prefix_sums.def_vmap
def _(axis_size: int, in_batched: list[bool], x: Array) -> tuple[Array, bool]:
    """One more leading axis; `jax.vmap` alone would narrow the products to float32."""
    del axis_size, in_batched
    with jax.enable_x64(True):
        return prefix_sums(x), True
