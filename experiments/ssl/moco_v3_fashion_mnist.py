"""MoCo v3 on Fashion-MNIST, read through TFDS.

    python -m experiments.ssl.moco_v3_fashion_mnist

Beside `simclr_fashion_mnist.py`: the same encoder, views and number of steps, with the keys
of a slow copy. The protocol stands in `experiments/ssl/protocol.py`.
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
from jaxml.ssl import MoCoV3, cosine_momentum, is_weight, moco_v3


@dataclass(frozen=True)
class Config:
    """MoCo v3 on Fashion-MNIST."""

    widths: tuple[int, ...] = (32, 64, 128)
    """Channels of the convolutions; the last is the number of features."""
    num_steps: int = 1500
    """Optimizer updates."""
    batch_size: int = 128
    """Images per update, over all devices."""
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
    out: Path = Path("runs/moco_v3_fashion_mnist")
    """Where everything is written; a run found there is continued."""


def main(config: Config) -> Mapping[str, float]:
    """Trains and judges every seed; returns mean accuracies."""
    return protocol.run_seeds(config, run_one)


def run_one(config: Config) -> protocol.Results:
    """One seed."""
    views = ops.two_views(protocol.garment_view)
    backbone = ConvNet(config.widths, axis_name="data")
    hidden, last = config.head
    widths = (hidden, hidden, last)
    model = MoCoV3(backbone, widths, (hidden, last), axis_name="data")
    method = moco_v3(
        model,
        momentum=cosine_momentum(config.momentum, config.num_steps),
        temperature=config.temperature,
    )
    rate = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, config.num_steps // 10, config.num_steps
    )
    optimizer = optax.adamw(rate, weight_decay=config.weight_decay, mask=is_weight)
    return protocol.pretrain(
        config,
        dataset="fashion_mnist",
        method=augmented(method, views, "data"),
        views=views,
        optimizer=optimizer,
    )


if __name__ == "__main__":
    main(tyro.cli(Config))
