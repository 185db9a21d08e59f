"""A training step in each precision: time and memory, beside torch.autocast.

    python -m experiments.bench.precision

Cross-entropy of 32x32 images, forward, backward and SGD with momentum, compiled by jaxml
and eager in PyTorch. Rounds alternate, medians count; processor time, which is summed over
cores, hardly sees what else the machine does. `times` is against the same library's own
float32; memory is XLA's own account of the buffers of a step, without the state.

2 CPU cores (AVX-512, no bfloat16 units), jax 0.10.2, torch 2.13.0, `--rounds 3`, seed 0:

    model     library, precision       wall ms  processor ms  times  memory MB
    convnet   jaxml float32                113           158   1.00         66
              jaxml mixed_bfloat16          96           141   0.90         61
              jaxml mixed_float16           93           147   0.93         58
              jaxml pure_bfloat16          102           152   0.96         65
              torch float32                 85           148   1.00
              torch autocast bfloat16      147           265   1.80
    vit_tiny  jaxml float32                788          1291   1.00        610
              jaxml mixed_bfloat16        1068          1681   1.30        513
              jaxml mixed_float16          996          1632   1.26        708
              jaxml pure_bfloat16         1054          1770   1.37        556
              torch float32                657          1152   1.00
              torch autocast bfloat16     1943          3366   2.92
    resnet18  jaxml float32               1388          2024   1.00        322
              jaxml mixed_bfloat16        1439          2127   1.05        358
              jaxml mixed_float16         1461          2223   1.10        315
              jaxml pure_bfloat16         1564          2392   1.18        453
              torch float32                979          1688   1.00
              torch autocast bfloat16     2124          3755   2.22

Half precision pays on hardware that has it. This processor converts there and back: it costs
a tenth to a third here and twice as much in PyTorch, which multiplies in bfloat16 without
units for it. Stochastic rounding adds 5 to 12 %.
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
