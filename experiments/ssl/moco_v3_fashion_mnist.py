"""MoCo v3 on Fashion-MNIST, read through TFDS.

    python -m experiments.ssl.moco_v3_fashion_mnist

Beside `simclr_fashion_mnist.py`: the same encoder, views and number of steps, with the keys
of a slow copy. The protocol stands in `experiments/ssl/protocol.py`.

Measured with `--num-steps 469` (seed 0, one epoch; JAX 0.10.2, two shared CPU cores, 5
minutes), accuracy on the test split in percent:

                 kNN    linear probe, 10 labels per class
    pixels      79.1    71.4
    untrained   71.5    61.2
    trained     75.6    65.3

One epoch adds four points to the random features, and leaves the pixels ahead.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import tyro

from experiments.ssl import moco_v3_cifar10, protocol, settings
from jaxml import ops
from jaxml.nn import ConvNet


@dataclass(frozen=True)
class Config(settings.SmallPictures):
    """MoCo v3 on Fashion-MNIST."""

    widths: tuple[int, ...] = (32, 64, 128)
    """Channels of the convolutions; the last is the number of features."""
    learning_rate: float = 1e-3
    """Peak of AdamW's cosine, which a tenth of the steps leads up to."""
    weight_decay: float = 0.1
    """Of weights; biases and normalisation have none."""
    temperature: float = 0.2
    """Of the contrast."""
    head: tuple[int, int] = (512, 128)
    """Hidden and last width of projector and predictor; (4096, 256) on ImageNet."""
    momentum: float = 0.99
    """Of the key encoder at first; it rises to one on a cosine."""
    out: Path = Path("runs/moco_v3_fashion_mnist")
    """Where everything is written; a run found there is continued."""


def main(config: Config) -> Mapping[str, float]:
    """Trains and judges every seed; returns mean accuracies."""
    return protocol.run_seeds(config, run_one)


def run_one(config: Config) -> protocol.Results:
    """One seed."""
    backbone = ConvNet(config.widths, axis_name="data")
    views = ops.two_views(protocol.garment_view)
    return moco_v3_cifar10.learn(config, "fashion_mnist", backbone, views)


if __name__ == "__main__":
    main(tyro.cli(Config))
