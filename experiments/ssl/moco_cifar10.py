"""MoCo v2 on natural images: CIFAR-10, or a folder of pictures like it.

    python -m experiments.ssl.moco_cifar10                         TFDS's CIFAR-10
    python -m experiments.ssl.moco_cifar10 --dataset cifar10_jpg   pictures in a folder
    python -m experiments.ssl.moco_cifar10 --encoder resnet18 --num-steps 78000

SGD, cosine schedule and the queue, momentum and split batch norm with shuffled keys of the
authors' demonstration on CIFAR-10; `--head 128 --temperature 0.07` is version 1. The protocol
stands in `experiments/ssl/protocol.py`.

Measured with the second command and `--num-steps 240 --widths 32 64 128` on 10,000 + 2,000
pictures of CIFAR-10 (seed 0, three epochs; JAX 0.10.2, two shared CPU cores, 6
minutes), accuracy on the test split in percent:

                 kNN    linear probe, 10 labels per class
    pixels      25.9    26.7
    untrained   33.8    26.1
    trained     36.9    25.2

Three epochs are few: the neighbours agree more often, ten labels per class tell no more.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import optax
import tyro

from experiments.ssl import protocol, settings
from jaxml import ops
from jaxml.compose import augmented
from jaxml.nn import BatchNorm
from jaxml.ssl import Projected, moco


@dataclass(frozen=True)
class Config(settings.Encoders):
    """MoCo v2 on CIFAR-10."""

    learning_rate: float = 0.06
    """Of SGD with momentum 0.9, on a cosine."""
    weight_decay: float = 5e-4
    """Of the optimizer."""
    temperature: float = 0.1
    """Of the contrast."""
    head: tuple[int, ...] = (256, 128)
    """Widths of the projection head; one number is version 1."""
    queue_size: int = 4096
    """Keys of earlier batches that are contrasted with."""
    momentum: float = 0.99
    """Of the key encoder."""
    num_groups: int = 8
    """Parts of the batch with batch statistics of their own."""
    shuffle: bool = True
    """Encode the keys in another order than the queries."""
    out: Path = Path("runs/moco_cifar10")
    """Where everything is written; a run found there is continued."""


SMOKE = Config(
    dataset="digits",
    widths=(8,),
    size=8,
    num_steps=2,
    batch_size=16,
    head=(8,),
    queue_size=40,
    num_groups=8,
    neighbours=5,
    labels_per_class=2,
)


def main(config: Config) -> Mapping[str, float]:
    """Trains and judges every seed; returns mean accuracies."""
    return protocol.run_seeds(config, run_one)


def run_one(config: Config) -> protocol.Results:
    """One seed."""
    views = ops.two_views(partial(ops.moco_v2_view, size=config.size, blur=0))
    norm = partial(BatchNorm, num_groups=config.num_groups)
    backbone = config.backbone(norm=norm)
    method = moco(
        Projected(backbone, config.head, axis_name="data"),
        queue_size=config.queue_size,
        momentum=config.momentum,
        temperature=config.temperature,
        shuffle=config.shuffle,
    )
    rate = optax.cosine_decay_schedule(config.learning_rate, config.num_steps)
    decay = optax.add_decayed_weights(config.weight_decay)
    optimizer = optax.chain(decay, optax.sgd(rate, momentum=0.9))
    return protocol.pretrain(
        config,
        dataset=config.dataset,
        method=augmented(method, views, "data"),
        views=views,
        optimizer=optimizer,
    )


if __name__ == "__main__":
    main(tyro.cli(Config))
