"""Stops a run at the first step that is not finite, and says where it began."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxml.export import export
from jaxml.method import Batch, Metrics, Params
from jaxml.typing import Array


@export("train.NonFiniteError", since="0.1")
class NonFiniteError(FloatingPointError):
    """A metric or gradient was NaN or infinite; the message names step and culprit."""


def gradient_norms(grads: Params) -> dict[str, Array]:
    """`grad_norms`, one per array in the order of the tree, and their `grad_norm`."""
    # Not flattened: an array split over devices would have to be gathered for that.
    squares = [
        jnp.sum(jnp.square(g.astype(jnp.float32))) for g in jax.tree.leaves(grads)
    ]
    norms = jnp.sqrt(jnp.stack(squares))
    return {"grad_norm": jnp.linalg.norm(norms), "grad_norms": norms}


def scalars(metrics: Metrics) -> dict[str, float]:
    """The metrics that are single numbers, on the host, the loss first.

    Of a step that its loss scale skipped, those that are finite.
    """
    host = _scalars(metrics)
    return {k: v for k, v in host.items() if np.isfinite(v) or not host.get("skipped")}


def check_finite(step: int, metrics: Metrics, batch: Batch, params: Params) -> None:
    """Raises if a metric of this step is not finite.

    A step that its loss scale skipped passes, as long as the scale can still fall.

    Args:
        step: the step the metrics belong to.
        metrics: as returned by the step.
        batch: what the step was given.
        params: any tree of the parameters' structure, for their names.

    Raises:
        NonFiniteError: naming, in this order of blame, the arrays of the batch, the
            metrics and the gradients that are not finite.
    """
    named = _scalars(metrics)
    bad = {k: v for k, v in named.items() if not np.isfinite(v)}
    if not bad:
        return
    lines = [f"step {step} is not finite: " + _listing(bad)]
    if named.get("skipped"):
        scale, smallest = named["loss_scale"], float(metrics["loss_scale_bounds"][0])
        if scale > smallest:
            return
        lines.append(
            f"the loss scale cannot fall below {scale:g}, so it is not float16's range: "
            "the run diverges"
        )
    if fields := _bad_fields(batch):
        lines.append("the batch itself is not: " + _listing(fields))
    if "grad_norms" in metrics:
        norms = np.asarray(metrics["grad_norms"])
        paths = [jax.tree_util.keystr(p) for p, _ in jax.tree.leaves_with_path(params)]
        culprits = {
            p: float(n) for p, n in zip(paths, norms, strict=True) if not np.isfinite(n)
        }
        if len(culprits) == len(paths):
            lines.append("the gradient of every parameter is not: the loss is to blame")
        elif culprits:
            lines.append("gradients that are not: " + _listing(culprits))
    raise NonFiniteError("; ".join(lines))


def _scalars(metrics: Metrics) -> dict[str, float]:
    named = {k: v for k, v in metrics.items() if jnp.ndim(v) == 0}
    host = {k: float(v) for k, v in jax.device_get(named).items()}
    return {k: host[k] for k in sorted(host, key=lambda k: (k != "loss", k))}


def _bad_fields(batch: Batch) -> dict[str, str]:
    found = {}
    for name, value in batch.items():
        for path, leaf in jax.tree.leaves_with_path(value):
            leaf = np.asarray(leaf) if _is_addressable(leaf) else np.zeros(0)
            if np.issubdtype(leaf.dtype, np.floating):
                wrong = np.count_nonzero(~np.isfinite(leaf))
                if wrong:
                    where = name + jax.tree_util.keystr(path)
                    found[where] = f"{wrong} of {leaf.size} numbers"
    return found


def _is_addressable(leaf: Any) -> bool:
    return not isinstance(leaf, jax.Array) or leaf.is_fully_addressable


def _listing(values: Mapping[str, Any], limit: int = 5) -> str:
    shown = [f"{k} ({v})" for k, v in list(values.items())[:limit]]
    rest = len(values) - limit
    return ", ".join(shown) + (f" and {rest} more" if rest > 0 else "")
