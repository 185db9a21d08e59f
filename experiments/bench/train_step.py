"""A whole training step beside PyTorch's: ResNet-18, a small ViT, three convolutions.

    python -m experiments.bench.train_step

Cross-entropy of 32x32 images, forward, backward and SGD with momentum. PyTorch runs the
same network from torchvision or timm: eager with images as NCHW and as NHWC, and through
`torch.compile`. Rounds alternate, medians count. `ratio` is a program's wall time divided
by this library's in the same precision: above 1 it is slower. `first` is what the first
step takes more than the others, which is compilation.

2 CPU cores (AVX-512), jax 0.10.2, torch 2.13.0, batch 64, 7 rounds, seed 0:

    model     program              wall ms  processor ms  ratio  first s
    convnet   jaxml                    205           345   1.00      2.7
              torch eager, NCHW        154           307   0.75      0.1
              torch eager, NHWC        122           240   0.59      0.0
              torch.compile, NCHW      137           273   0.67      0.0
              torch.compile, NHWC      126           254   0.61      0.0
    resnet18  jaxml                   1953          3101   1.00     15.7
              torch eager, NCHW       1557          2985   0.80      2.0
              torch eager, NHWC       1111          2172   0.57      0.0
              torch.compile, NCHW     1101          2194   0.56     40.9
              torch.compile, NHWC     1140          2227   0.58     18.6
    vit_tiny  jaxml                   1468          2508   1.00      4.1
              torch eager, NCHW       1016          1907   0.69      0.1
              torch eager, NHWC        922          1795   0.63      0.0
              torch.compile, NCHW      977          1906   0.67     30.3
              torch.compile, NHWC      871          1708   0.59     20.9

On this processor PyTorch is ahead, and the reason lies below both: a product of float32
matrices of the sizes of the ViT runs at 100 to 140 GFLOP/s in XLA's CPU backend and at 200
to 260 in PyTorch's oneDNN, whatever XLA's flags (XNNPACK, YNNPACK, oneDNN) say. What could
be done above that floor was: the gradient of a convolution's kernel is a product of
matrices over cached blocks of patches (`jaxml.nn.conv`), without which the step of ResNet-18
takes 1.33 times as long (2164 and 2872 ms, alternating) and that of the three convolutions
1.35 times; batch norm is two passes; the optimizer runs in place on a donated state.
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

POLICIES = {"float32": None, "mixed_bfloat16": "bfloat16"}
"""Names of our precisions, and the narrow dtype of PyTorch's autocast."""


@dataclass(frozen=True)
class Config:
    """What is measured, and how often."""

    models: tuple[str, ...] = MODELS
    """Which of the three."""
    policies: tuple[str, ...] = ("float32",)
    """Which precisions: float32, mixed_bfloat16."""
    batch_size: int = 64
    """Images in a batch."""
    rounds: int = 9
    """Repetitions, of which the median is taken."""
    peers: bool = True
    """Whether to run PyTorch, if it is installed."""
    compile: bool = True
    """Whether to run `torch.compile` too (half a minute per network)."""
    seed: int = 0
    """Seed of images and labels."""


SMOKE = Config(("convnet",), ("float32",), 2, 1, peers=False)


def main(config: Config) -> Mapping[str, float]:
    """Prints a table, and returns its ratios and times by name."""
    for policy in config.policies:
        if policy not in POLICIES:
            raise ValueError(f"policy must be one of {list(POLICIES)}, got {policy!r}")
    batch = images(config.batch_size, config.seed)
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    print("| model | precision | program | wall ms | processor ms | ratio | first s |")
    print("|---|---|---|---|---|---|---|")
    results = {}
    for model in config.models:
        for policy in config.policies:
            programs = {"jaxml": ours(model, policy, batch)}
            if config.peers:
                programs |= peers(model, batch, POLICIES[policy], config.compile)
            speeds = measure(programs, config.rounds)
            for name, (wall, core) in speeds.items():
                ratio = wall / speeds["jaxml"][0]
                results |= {
                    f"{model}, {policy}, {name}/wall": wall,
                    f"{model}, {policy}, {name}/ratio": ratio,
                }
                print(
                    f"| {model} | {policy} | {name} | {1e3 * wall:.0f} "
                    f"| {1e3 * core:.0f} | {ratio:.2f} | {programs[name].first:.1f} |",
                    flush=True,
                )
    return results


def peers(
    model: str, batch: Batch, autocast: str | None, compile: bool
) -> dict[str, Program]:
    """PyTorch's steps, those for which everything is installed."""
    forms = {
        "torch eager, NCHW": {"channels_last": False},
        "torch eager, NHWC": {},
        "torch.compile, NCHW": {"channels_last": False, "compile": True},
        "torch.compile, NHWC": {"compile": True},
    }
    programs = {}
    for name, options in forms.items():
        if options.get("compile") and not compile:
            continue
        try:
            programs[name] = torch_step(model, batch, autocast=autocast, **options)
        except ImportError as missing:
            print(f"no {name}: {missing}")
    return programs


if __name__ == "__main__":
    main(tyro.cli(Config))
