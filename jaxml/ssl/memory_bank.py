"""A memory bank: the last embedding of every sample of the data set.

    bank[i] <- unit(m bank[i] + (1 - m) v_i)        for the samples of this step

All devices hold the same bank and write the rows of all of them. If a sample stands twice
in a step, its last occurrence in the global batch is written: a scatter with duplicates
would leave it to chance which one is, and eight devices would not equal one.

The trap: read before you write, or a sample is compared with itself. Under
`jaxml.compose.accumulated` give the bank the rule `merge={"bank": changed_rows}`: a step
writes once, and all micro-batches read the bank as it was.

Reference: Wu, Xiong, Yu and Lin, "Unsupervised Feature Learning via Non-Parametric
Instance Discrimination", CVPR 2018, https://arxiv.org/abs/1805.01978 (section 3.2; the
average with m = 0.5 is that of the authors' code).
"""

import jax
import jax.numpy as jnp

from jaxml.compose import Merge
from jaxml.export import export, export_constant
from jaxml.ops.similarity import unit
from jaxml.parallel.collectives import all_gather
from jaxml.typing import Array, Float, Int, PRNGKeyArray


@export("ssl.init_bank", since="0.1")
def init_bank(key: PRNGKeyArray, num: int, dim: int) -> Float[Array, "num dim"]:
    """Random unit rows, one for every sample.

    Raises:
        ValueError: unless num and dim are positive.
    """
    if num < 1 or dim < 1:
        raise ValueError(f"num and dim must be positive, got {num} and {dim}")
    return unit(jax.random.normal(key, (num, dim)))


@export("ssl.update_bank", since="0.1")
def update_bank(
    bank: Float[Array, "num dim"],
    indices: Int[Array, "batch"],
    rows: Float[Array, "batch dim"],
    momentum: float = 0.5,
    axis_name: str | None = None,
) -> Float[Array, "num dim"]:
    """The bank with this step's rows averaged in; without gradient.

    Args:
        bank: unit rows.
        indices: which sample each row is of, in [0, num); others are dropped.
        rows: unit rows, of this device; those of all devices are written.
        momentum: weight of what the bank holds.
        axis_name: mesh axis the batch is split over, or None.

    Raises:
        ValueError: if the shapes do not fit, or the momentum is not in [0, 1].

    >>> bank = jnp.array([[1.0, 0.0], [1.0, 0.0]])
    >>> update_bank(bank, jnp.array([1]), jnp.array([[0.0, 1.0]]), 0.0).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    if rows.shape != (*indices.shape, bank.shape[1]):
        raise ValueError(
            f"rows must be one for each of {len(indices)} indices, of dim "
            f"{bank.shape[1]}, got {rows.shape}"
        )
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum must be in [0, 1], got {momentum}")
    bank = jnp.asarray(bank)
    rows = all_gather(jax.lax.stop_gradient(rows), axis_name).astype(bank.dtype)
    indices = all_gather(indices, axis_name)
    order = jnp.arange(len(indices))
    last = jnp.full(len(bank), -1).at[indices].max(order, mode="drop")
    is_last = last[indices] == order
    mixed = unit(momentum * bank[indices] + (1 - momentum) * rows)
    nowhere = len(bank)
    inside = is_last & (indices >= 0) & (indices < len(bank))
    return bank.at[jnp.where(inside, indices, nowhere)].set(mixed, mode="drop")


changed_rows = export_constant(
    "ssl.changed_rows",
    Merge(
        lambda old, new, samples: new - old,
        lambda old, parts: old + jnp.sum(parts, axis=0),
    ),
    since="0.1",
)
"""For `jaxml.compose.accumulated`: every micro-batch changes the rows of its own samples,
so that the changes add up. A sample that stands in two micro-batches gets both changes."""
