"""A queue of the newest embeddings, for contrast with more than the batch holds.

    queue <- the newest `size` of [rows of this step, queue]

Newest rows stand first, whatever the sizes: a batch that does not divide the queue, or is
larger than it, loses nothing but the oldest. All devices hold the same queue and enqueue
the rows of all, in the order of the global batch.

The trap: a queue belongs to the optimizer step. Moved once per micro-batch, a step would
contrast its later samples with its earlier ones. Under `jaxml.compose.accumulated` give it
the rule `merge={"queue": newest_first}`, which enqueues the whole step's rows at its end.

Reference: He et al., "Momentum Contrast for Unsupervised Visual Representation Learning",
CVPR 2020, https://arxiv.org/abs/1911.05722 (section 3.2, algorithm 1). Deviation: the
authors' ring buffer asks that the batch divide the queue.
"""

import jax
import jax.numpy as jnp

from jaxml.export import export
from jaxml.ops.similarity import unit
from jaxml.parallel.collectives import all_gather
from jaxml.typing import Array, Float, PRNGKeyArray


@export("ssl.init_queue", since="0.1")
def init_queue(key: PRNGKeyArray, size: int, dim: int) -> Float[Array, "size dim"]:
    """Random unit rows, as the authors' code starts with.

    Raises:
        ValueError: unless size and dim are positive.
    """
    if size < 1 or dim < 1:
        raise ValueError(f"size and dim must be positive, got {size} and {dim}")
    return unit(jax.random.normal(key, (size, dim)))


@export("ssl.enqueue", since="0.1")
def enqueue(
    queue: Float[Array, "size *rest"],
    rows: Float[Array, "batch *rest"],
    axis_name: str | None = None,
) -> Float[Array, "size *rest"]:
    """The queue with this step's rows in front; without gradient.

    Args:
        queue: newest first.
        rows: of this device; the rows of all devices are enqueued.
        axis_name: mesh axis the batch is split over, or None.

    Raises:
        ValueError: if the rows have another shape than the queue's.

    >>> enqueue(jnp.array([[1.0], [2.0], [3.0]]), jnp.array([[8.0], [9.0]])).tolist()
    [[8.0], [9.0], [1.0]]
    """
    if rows.shape[1:] != queue.shape[1:]:
        raise ValueError(
            f"rows must have the shape of the queue's, got {rows.shape} for "
            f"{queue.shape}"
        )
    rows = all_gather(jax.lax.stop_gradient(rows), axis_name)
    return jnp.concatenate([rows.astype(queue.dtype), queue])[: len(queue)]
