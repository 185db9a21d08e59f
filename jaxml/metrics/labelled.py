"""What the probes ask of features and labels before they believe them.

Values are looked at where they can be: under `jit` and `vmap` only shapes are known.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxml.typing import Array


def check_labelled(name: str, features: Array, labels: Array | None = None) -> None:
    """Raises unless features are finite [samples, dim] with one label per sample."""
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(
            f"{name}_features must have shape [samples, dim], got {features.shape}"
        )
    if labels is not None and labels.shape != features.shape[:1]:
        raise ValueError(
            f"{name}_labels must have shape {features.shape[:1]}, got {labels.shape}"
        )
    if is_known(features):
        with jax.ensure_compile_time_eval():
            finite = jnp.all(jnp.isfinite(features), axis=1)
            bad = int(jnp.sum(~finite))
        if bad:
            raise ValueError(
                f"{name}_features must be finite, got NaN or infinity in {bad} of "
                f"{len(features)} rows"
            )


def count_classes(num_classes: int | None, *labels: Array) -> int:
    """The number of classes: as given, or one more than the largest label.

    Raises:
        ValueError: if a label lies outside, or the number must be given under `jit`.
    """
    known = [np.asarray(part) for part in labels if is_known(part)]
    if num_classes is None:
        if len(known) < len(labels):
            raise ValueError("num_classes must be given under jit and vmap, got None")
        num_classes = 1 + max(int(part.max()) for part in known)
    for part in known:
        if part.min() < 0 or part.max() >= num_classes:
            raise ValueError(
                f"labels must be in [0, {num_classes}), "
                f"got {part.min()} to {part.max()}"
            )
    return num_classes


def is_known(x: Any) -> bool:
    """Whether the values of `x` can be looked at here."""
    if isinstance(x, jax.core.Tracer):
        return False
    return getattr(x, "is_fully_addressable", True)
