"""Two programs for one training step, compared: the monitor of faults that leave no trace.

A gradient that stops between devices, a teacher that moves with every micro-batch: the loss
falls all the same, and no number in the log is wrong. But the same step is known from a
second program, on one device and in one piece, and from one state and batch both must come
to the same new state. For each part of the state, old s, reference r, program x:

    disagreement = ||x - r|| / max(||r - s||, 1e-4 ||s||)

0 is agreement to the bit, 1 as far off as a step is long; float32 gives 1e-5 to 1e-3.

The traps: dropout or augmentation must not depend on the number of devices, or everything
disagrees. And what is a step of its own by definition does too, such as batch statistics
of a micro-batch: give the reference `BatchNorm(num_groups=k)`.

Reference: the test by which Goyal et al., "Accurate, Large Minibatch SGD", 2017,
https://arxiv.org/abs/1706.02677 (section 3, pitfalls of distributed SGD), name the errors
that it is meant to find; the measure is this library's own.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxml.export import export
from jaxml.method import Batch
from jaxml.metrics.diagnose import DISAGREEMENT

Step = Callable[[Any, Batch], tuple[Any, Any]]
"""(state, batch) -> (state, metrics)."""


@export("metrics.step_disagreement", since="0.1")
def step_disagreement(
    step: Step, reference: Step, state: Any, batch: Batch
) -> dict[str, float]:
    """How far one step of two programs from one state differs, for `diagnose`.

    Args:
        step: the program in doubt, on several devices or in micro-batches.
        reference: on one device, in one piece.
        state: nested, such as a `TrainState`; it is copied, as steps may donate it.
        batch: given to both.

    Returns:
        `disagreement/<part>` for every part of the state, two names deep.

    Raises:
        ValueError: if the programs return states of another structure.

        >>> many = data_parallel(gradient_step(build("data"), sgd, key, "data"), mesh)
        >>> one = jax.jit(gradient_step(build(None), sgd, key))
        >>> diagnose(step_disagreement(many, one, state, batch))
        []
    """
    before = _arrays(state)
    found, expected = (
        _arrays(run(jax.tree.map(jnp.copy, state), batch)[0])
        for run in (step, reference)
    )
    wanted, *got = (
        {(k, v.shape) for k, v in a.items()} for a in (before, found, expected)
    )
    if unlike := sorted({path for shapes in got for path, _ in shapes ^ wanted}):
        raise ValueError(
            "both steps must return a state like the given one, got another at "
            + ", ".join(unlike)
        )
    lengths: dict[str, np.ndarray] = {}
    for path, old in before.items():
        differences = (found[path] - expected[path], expected[path] - old, old)
        squares = np.array([np.sum(np.square(d)) for d in differences])
        part = "/".join(path.split("/")[:2])
        lengths[part] = lengths.get(part, np.zeros(3)) + squares
    return {
        f"{DISAGREEMENT}{part}": float(np.sqrt(apart / max(moved, 1e-8 * old, 1e-60)))
        for part, (apart, moved, old) in lengths.items()
    }


def _arrays(state: Any) -> dict[str, np.ndarray]:
    """The arrays of a state in float64, by their path."""
    leaves = jax.tree.leaves_with_path(jax.device_get(state))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(
            leaf, np.float64
        )
        for path, leaf in leaves
    }
