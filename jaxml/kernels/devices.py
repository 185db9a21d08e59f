"""The accelerator that is here, and what stands in for it; nothing is loaded to ask."""

from typing import Any

import jax


def capability() -> str | None:
    """Compute capability of the GPU here; None where there is none."""
    if jax.default_backend() != "gpu":
        return None
    return str(getattr(jax.devices()[0], "compute_capability", None))


def device_kind() -> str:
    """The accelerator here, or nothing."""
    if jax.default_backend() == "cpu":
        return ""
    return jax.devices()[0].device_kind


def gpu_interpreter() -> Any:
    """What runs a Hopper kernel on a CPU, or None."""
    if jax.__version_info__ < (0, 12):
        return None  # it loses track of barriers before
    from jax.experimental.pallas import mosaic_gpu as plgpu

    return getattr(plgpu, "InterpretGPUParams")()  # noqa: B009, later than 0.10
