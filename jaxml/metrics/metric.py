"""What jaxml calls a metric: sums that a run over a split adds up, and their quotient.

An accumulator holds sums, never running means, so that a split cut into any batches, on
any number of devices, gives one and the same number: two accumulators merge by
`jax.tree.map(jnp.add, a, b)`, devices by `lax.psum`. Samples whose `batch["mask"]` is
False are padding and never count, not even if their outputs are NaN.

The trap: a float32 sum stops growing once it is 2**24 times its next term. Means are kept
as a sum and the rounding error it has lost so far, which holds 48 bits.

Reference: Knuth, "The Art of Computer Programming", volume 2, section 4.2.2, theorem B;
on the web as Ogita, Rump and Oishi, "Accurate Sum and Dot Product", SIAM J. Sci. Comput.
2005, https://doi.org/10.1137/030601818 (algorithm 3.1).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxml.export import export
from jaxml.method import Batch
from jaxml.typing import Array, Bool, Float

Accumulator = Any
"""A pytree of sums."""


@export("metrics.Metric", since="0.1")
class Metric(NamedTuple):
    """One evaluation over a split, as pure functions. Build it once: `update` is jitted.

    Attributes:
        init: () -> accumulator, all zeros.
        update: (accumulator, outputs, batch) -> accumulator; jittable.
        compute: (accumulator) -> {name: float}, on the host.
    """

    init: Callable[[], Accumulator]
    update: Callable[[Accumulator, Any, Batch], Accumulator]
    compute: Callable[[Accumulator], Mapping[str, float]]


@export("metrics.mean_of", since="0.1")
def mean_of(name: str, fn: Callable[[Any, Batch], Array]) -> Metric:
    """The mean of `fn(outputs, batch)` over every sample that the mask keeps.

    Args:
        name: what the mean is called.
        fn: gives one value per sample [batch], or more of them [batch, ...], which then
            count alike. A mask [batch] or [batch, ...] speaks of the leading axes.

    Raises:
        ValueError: (update) if the mask's axes are not the leading ones of the values;
            (compute) if nothing was counted.

    >>> error = mean_of("error", lambda outputs, batch: jnp.abs(outputs - batch["y"]))
    >>> batch = {"y": jnp.zeros(3), "mask": jnp.array([True, True, False])}
    >>> total = error.update(error.init(), jnp.array([1.0, 2.0, 9.0]), batch)
    >>> error.compute(total)
    {'error': 1.5}
    """

    def init() -> Accumulator:
        return {"sum": jnp.zeros(2), "count": jnp.zeros(2)}

    def update(total: Accumulator, outputs: Any, batch: Batch) -> Accumulator:
        values = jnp.asarray(fn(outputs, batch)).astype(jnp.float32)
        mask = sample_mask(batch, values.shape)
        # where, not a product: the outputs of padding may be NaN.
        return {
            "sum": _add(total["sum"], jnp.sum(jnp.where(mask, values, 0.0))),
            "count": _add(total["count"], jnp.sum(mask, dtype=jnp.float32)),
        }

    def compute(total: Accumulator) -> Mapping[str, float]:
        count = _value(total["count"])
        if count == 0:
            raise ValueError(f"{name} must count a sample, got none that is not masked")
        return {name: _value(total["sum"]) / count}

    return Metric(init, update, compute)


@export("metrics.combine", since="0.1")
def combine(**metrics: Metric) -> Metric:
    """Several metrics in one pass over the split.

    A metric of one number takes its keyword as its name; one of several numbers keeps
    their names behind it, `keyword/name`.

    >>> both = combine(nll=mean_of("mean", lambda outputs, batch: outputs))
    >>> both.compute(both.update(both.init(), jnp.array([1.0, 3.0]), {}))
    {'nll': 2.0}
    """
    if not metrics:
        raise ValueError("combine needs at least one metric, got none")

    def init() -> Accumulator:
        return {key: metric.init() for key, metric in metrics.items()}

    def update(total: Accumulator, outputs: Any, batch: Batch) -> Accumulator:
        return {
            key: metric.update(total[key], outputs, batch)
            for key, metric in metrics.items()
        }

    def compute(total: Accumulator) -> Mapping[str, float]:
        values: dict[str, float] = {}
        for key, metric in metrics.items():
            row = metric.compute(total[key])
            alone = len(row) == 1
            values |= {key if alone else f"{key}/{name}": v for name, v in row.items()}
        return values

    return Metric(init, update, compute)


def sample_mask(batch: Batch, shape: tuple[int, ...]) -> Bool[Array, "..."]:
    """`batch["mask"]`, or all True, spread over the axes that follow its own."""
    if "mask" not in batch:
        return jnp.ones(shape, bool)
    mask = jnp.asarray(batch["mask"]).astype(bool)
    if mask.shape != shape[: mask.ndim]:
        raise ValueError(
            "the mask's axes must be the leading axes of the values, "
            f"got mask {mask.shape} and values {shape}"
        )
    mask = mask.reshape(mask.shape + (1,) * (len(shape) - mask.ndim))
    return jnp.broadcast_to(mask, shape)


def _add(total: Float[Array, "2"], term: Float[Array, ""]) -> Float[Array, "2"]:
    """Adds to a (sum, lost) pair; the two together are exact for one addition."""
    old, lost = total
    new = old + term
    part = new - old
    return jnp.stack([new, lost + ((old - (new - part)) + (term - part))])


def _value(total: Float[Array, "2"]) -> float:
    value, lost = np.asarray(jax.device_get(total), np.float64)
    return float(value + lost if np.isfinite(value) else value)
