"""BYOL on Fashion-MNIST, read through TFDS.

    python -m experiments.ssl.byol_fashion_mnist

Beside `simclr_fashion_mnist.py`: the same encoder, views and number of steps, without
negatives. The protocol stands in `experiments/ssl/protocol.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import optax
import tyro

from experiments.ssl import protocol
from jaxml import ops
from jaxml.compose import augmented
from jaxml.nn import ConvNet
from jaxml.ssl import BYOL, byol, cosine_momentum, is_weight


@dataclass(frozen=True)
class Config:
    """BYOL on Fashion-MNIST."""

    widths: tuple[int, ...] = (32, 64, 128)
    """Channels of the convolutions; the last is the number of features."""
    num_steps: int = 1500
    """Optimizer updates."""
    batch_size: int = 128
    """Images per update, over all devices."""
    learning_rate: float = 0.06
    """Of SGD with momentum 0.9, on a cosine."""
    weight_decay: float = 5e-4
    """Of weights; biases and batch norm have none."""
    head: tuple[int, int] = (512, 128)
    """Widths of the projector and of the predictor; (4096, 256) on ImageNet."""
    momentum: float = 0.99
    """Of the target network at first; it rises to one on a cosine."""
    labels_per_class: int = 10
    """Labels the linear probe may see."""
    neighbours: int = 200
    """Voters of the nearest-neighbour probe."""
    seed: int = 0
    """Seed of initialisation, data order and augmentation."""
    seeds: int = 1
    """Number of consecutive seeds; if more than one, each has a folder of its own."""
    save_every: int = 500
    """Steps between checkpoints."""
    data_dir: Path | None = None
    """Folder of the original files; by default the one JAXML_DATA_DIR names."""
    distributed: str | None = None
    """Several processes: "auto" on a cluster, or "HOST:PORT,ID/COUNT"."""
    out: Path = Path("runs/byol_fashion_mnist")
    """Where everything is written; a run found there is continued."""


def main(config: Config) -> Mapping[str, float]:
    """Trains and judges every seed; returns mean accuracies."""
    return protocol.run_seeds(config, run_one)


def run_one(config: Config) -> protocol.Results:
    """One seed."""
    views = ops.two_views(protocol.garment_view)
    backbone = ConvNet(config.widths, axis_name="data")
    model = BYOL(backbone, config.head, config.head, axis_name="data")
    method = byol(model, momentum=cosine_momentum(config.momentum, config.num_steps))
    rate = optax.cosine_decay_schedule(config.learning_rate, config.num_steps)
    decay = optax.add_decayed_weights(config.weight_decay, mask=is_weight)
    return protocol.pretrain(
        config,
        dataset="fashion_mnist",
        method=augmented(method, views, "data"),
        views=views,
        optimizer=optax.chain(decay, optax.sgd(rate, momentum=0.9)),
    )


if __name__ == "__main__":
    main(tyro.cli(Config))
