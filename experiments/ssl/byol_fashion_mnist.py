"""BYOL on Fashion-MNIST, read through TFDS.

    python -m experiments.ssl.byol_fashion_mnist

Beside `simclr_fashion_mnist.py`: the same encoder, views and number of steps, without
negatives. The protocol stands in `experiments/ssl/protocol.py`.

Measured (seed 0, 1,500 steps, which is three epochs; JAX 0.10.2, two shared CPU cores, 13
minutes), accuracy on the test split in percent:

                 kNN    linear probe, 10 labels per class
    pixels      79.1    71.4
    untrained   71.5    61.2
    trained     75.8    64.0

Between SimSiam and SimCLR: without negatives, three epochs do not reach the pixels either.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import tyro

from experiments.ssl import byol_cifar10, protocol, settings
from jaxml import ops
from jaxml.nn import ConvNet


@dataclass(frozen=True)
class Config(settings.SmallPictures):
    """BYOL on Fashion-MNIST."""

    widths: tuple[int, ...] = (32, 64, 128)
    """Channels of the convolutions; the last is the number of features."""
    learning_rate: float = 0.06
    """Of SGD with momentum 0.9, on a cosine."""
    weight_decay: float = 5e-4
    """Of weights; biases and batch norm have none."""
    head: tuple[int, int] = (512, 128)
    """Widths of the projector and of the predictor; (4096, 256) on ImageNet."""
    momentum: float = 0.99
    """Of the target network at first; it rises to one on a cosine."""
    out: Path = Path("runs/byol_fashion_mnist")
    """Where everything is written; a run found there is continued."""


def main(config: Config) -> Mapping[str, float]:
    """Trains and judges every seed; returns mean accuracies."""
    return protocol.run_seeds(config, run_one)


def run_one(config: Config) -> protocol.Results:
    """One seed."""
    backbone = ConvNet(config.widths, axis_name="data")
    views = ops.two_views(protocol.garment_view)
    return byol_cifar10.learn(config, "fashion_mnist", backbone, views)


if __name__ == "__main__":
    main(tyro.cli(Config))
