"""SimCLR on natural images: CIFAR-10, or a folder of pictures like it.

    python -m experiments.ssl.simclr_cifar10                         TFDS's CIFAR-10
    python -m experiments.ssl.simclr_cifar10 --dataset cifar10_jpg   pictures in a folder
    python -m experiments.ssl.simclr_cifar10 --encoder resnet18 --batch-size 512

The default encoder is one that a CPU can train. The protocol stands in
`experiments/ssl/protocol.py`.

Measured with the second command on 10,000 + 2,000 pictures of CIFAR-10 (seed 0, 800 steps,
which is ten epochs; JAX 0.10.2, two shared CPU cores, 11 minutes), accuracy on the test
split in percent:

                 kNN    linear probe, 10 labels per class
    pixels      25.9    26.7
    untrained   33.8    27.1
    trained     42.1    29.6
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as linen
import optax
import tyro

from experiments.ssl import protocol, settings
from jaxml import ops
from jaxml.compose import augmented
from jaxml.ops.views import Views
from jaxml.ssl import SimCLR, simclr


@dataclass(frozen=True)
class Config(settings.Encoders):
    """SimCLR on CIFAR-10."""

    widths: tuple[int, ...] = (32, 64, 128)
    """Channels of the small encoder; the last is the number of features."""
    learning_rate: float = 1e-3
    """Peak of AdamW's cosine schedule, which a twentieth of the steps leads up to."""
    weight_decay: float = 1e-4
    """Of AdamW."""
    temperature: float = 0.5
    """Of NT-Xent."""
    head: tuple[int, ...] = (512, 128)
    """Widths of the projection head."""
    out: Path = Path("runs/simclr_cifar10")
    """Where everything is written; a run found there is continued."""


def main(config: Config) -> Mapping[str, float]:
    """Trains and judges every seed; returns mean accuracies."""
    return protocol.run_seeds(config, run_one)


def run_one(config: Config) -> protocol.Results:
    """One seed."""
    views = ops.two_views(partial(ops.simclr_cifar_view, size=config.size))
    return learn(config, config.dataset, config.backbone(), views)


def learn(
    config: Any, dataset: str, backbone: linen.Module, views: Views
) -> protocol.Results:
    """What SimCLR does on any data set."""
    model = SimCLR(backbone, config.head, axis_name="data")
    rate = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, config.num_steps // 20, config.num_steps
    )
    return protocol.pretrain(
        config,
        dataset=dataset,
        method=augmented(simclr(model, temperature=config.temperature), views, "data"),
        views=views,
        optimizer=optax.adamw(rate, weight_decay=config.weight_decay),
    )


if __name__ == "__main__":
    main(tyro.cli(Config))
