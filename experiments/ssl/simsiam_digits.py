"""SimSiam on scikit-learn's 8x8 handwritten digits.

    python -m experiments.ssl.simsiam_digits

Beside `simclr_digits.py`: the same encoder, views, batch and number of steps, without
negatives. The protocol stands in `experiments/ssl/protocol.py`.

Measured (seed 0, 1,500 steps, JAX 0.10.2, two shared CPU cores, 7 minutes), accuracy on
the test split in percent:

                 kNN    linear probe, 10 labels per class
    pixels      98.3    88.7
    untrained   96.3    88.7
    trained     98.3    96.6
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import tyro

from experiments.ssl import protocol, settings, simsiam_cifar10
from jaxml import ops
from jaxml.nn import ConvNet


@dataclass(frozen=True)
class Config(settings.SmallPictures):
    """SimSiam on 8x8 digits."""

    batch_size: int = 256
    """Images per update, over all devices."""
    learning_rate: float = 0.1
    """Of SGD for a batch of 256, scaled linearly; cosine, constant for the predictor."""
    weight_decay: float = 1e-4
    """Of SGD."""
    widths: tuple[int, ...] = (32, 64, 128)
    """Channels of the convolutions; the last is the number of features."""
    dim: int = 256
    """Width of the projector."""
    bottleneck: int = 64
    """Hidden width of the predictor."""
    num_projector_layers: int = 3
    """2 on CIFAR-10, 3 elsewhere."""
    neighbours: int = 10
    """Voters of the nearest-neighbour probe."""
    out: Path = Path("runs/simsiam_digits")
    """Where everything is written; a run found there is continued."""


def main(config: Config) -> Mapping[str, float]:
    """Trains and judges every seed; returns mean accuracies."""
    return protocol.run_seeds(config, run_one)


def run_one(config: Config) -> protocol.Results:
    """One seed."""
    backbone = ConvNet(config.widths, axis_name="data")
    views = ops.two_views(ops.digit_view)
    return simsiam_cifar10.learn(config, "digits", backbone, views)


if __name__ == "__main__":
    main(tyro.cli(Config))
