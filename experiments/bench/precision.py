"""A training step in each precision: time and memory, beside torch.autocast.

    python -m experiments.bench.precision

Cross-entropy of 32x32 images, forward, backward and SGD with momentum, compiled by jaxml
and eager in PyTorch. Rounds alternate, medians count; processor time, which is summed over
cores, hardly sees what else the machine does. `times` is against the same library's own
float32; memory is XLA's own account of the buffers of a step, without the state.

TABLE

Half precision pays on hardware that has it. A CPU without bfloat16 units converts there
and back, and what is left of the gain is memory.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import tyro

from experiments.bench.classifiers import (
    MODELS,
    Program,
    images,
    measure,
    ours,
    torch_step,
)
from jaxml.method import Batch


@dataclass(frozen=True)
class Config:
    """What is measured, and how often."""

    models: tuple[str, ...] = MODELS
    """Which of the three."""
    policies: tuple[str, ...] = (
        "float32",
        "mixed_bfloat16",
        "mixed_float16",
        "pure_bfloat16",
    )
    """Which precisions; float16 with a dynamic loss scale, pure bfloat16 with stochastic
    rounding."""
    batch_size: int = 32
    """Images in a batch."""
    rounds: int = 7
    """Repetitions, of which the median is taken."""
    peers: bool = True
    """Whether to run PyTorch, if it is installed."""
    seed: int = 0
    """Seed of images and labels."""


SMOKE = Config(("convnet",), ("float32", "mixed_bfloat16"), 2, 1, peers=False)


def main(config: Config) -> Mapping[str, float]:
    """Prints a table, and returns its numbers by name."""
    batch = images(config.batch_size, config.seed)
    results = {}
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    print("| model | library, precision | wall ms | processor ms | times | memory MB |")
    print("|---|---|---|---|---|---|")
    for model in config.models:
        programs = {f"jaxml {p}": ours(model, p, batch) for p in config.policies}
        if config.peers:
            programs |= peers(model, batch)
        speeds = measure(programs, config.rounds)
        for name, (wall, core) in speeds.items():
            own = speeds.get(f"{name.split()[0]} float32")
            times = core / own[1] if own else float("nan")
            memory = programs[name].temporary
            print(
                f"| {model} | {name} | {1e3 * wall:.0f} | {1e3 * core:.0f} "
                f"| {times:.2f} | {'' if memory is None else f'{memory / 1e6:.0f}'} |"
            )
            results |= {
                f"{model}, {name}/wall": wall,
                f"{model}, {name}/core": core,
                f"{model}, {name}/times": times,
            }
    return results


def peers(model: str, batch: Batch) -> dict[str, Program]:
    """PyTorch's eager step in float32 and under autocast, if it is installed."""
    try:
        import torch
    except ImportError:
        return {}
    narrow = ["bfloat16", *(["float16"] if torch.cuda.is_available() else [])]
    try:
        return {"torch float32": torch_step(model, batch)} | {
            f"torch autocast {dtype}": torch_step(model, batch, autocast=dtype)
            for dtype in narrow
        }
    except ImportError as missing:
        print(f"no {model} in PyTorch: {missing}")
        return {}


if __name__ == "__main__":
    main(tyro.cli(Config))
