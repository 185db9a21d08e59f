"""Evaluation: a method's predictions over a whole split, exact to the last sample."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from jaxml.export import export
from jaxml.method import Batch, Method
from jaxml.metrics.metric import Metric
from jaxml.train.state import TrainState


@export("train.predict", since="0.1")
def predict(method: Method, state: TrainState, batches: Iterable[Batch]) -> Any:
    """The method's outputs for every sample, in order, on the host.

    Args:
        method: its `predict` is compiled once for each batch shape.
        state: the trained state.
        batches: a finite number of batches; samples whose `mask` is False are left out.

    Raises:
        ValueError: if there is no batch.
    """
    outputs = []
    for batch in batches:
        out = jax.device_get(
            _jit(method.predict)(state.params, state.model_state, batch)
        )
        if "mask" in batch:
            keep = np.asarray(batch["mask"])
            out = jax.tree.map(lambda x, keep=keep: x[keep], out)
        outputs.append(out)
    if not outputs:
        raise ValueError("predict needs at least one batch, got none")
    return jax.tree.map(lambda *xs: np.concatenate(xs), *outputs)


@export("train.evaluate", since="0.1")
def evaluate(
    method: Method, state: TrainState, batches: Iterable[Batch], metric: Metric
) -> Mapping[str, float]:
    """A metric over every sample, counted once; padding is left out by its `mask`.

    Raises:
        ValueError: if there is no batch.
    """
    accumulator = None
    for batch in batches:
        accumulator = metric.init() if accumulator is None else accumulator
        outputs = _jit(method.predict)(state.params, state.model_state, batch)
        accumulator = _jit(metric.update)(accumulator, outputs, batch)
    if accumulator is None:
        raise ValueError("evaluate needs at least one batch, got none")
    return metric.compute(accumulator)


@functools.lru_cache(maxsize=32)
def _jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled once for each function, not once for each call."""
    return jax.jit(function)
