"""Rotation on natural images: CIFAR-10, or a folder of pictures like it.

    python -m experiments.ssl.rotation_cifar10                         TFDS's CIFAR-10
    python -m experiments.ssl.rotation_cifar10 --dataset cifar10_jpg   pictures in a folder
    python -m experiments.ssl.rotation_cifar10 --encoder resnet18 --num-steps 78000

The paper's recipe: images are flipped and moved, then turned; SGD whose rate falls to a
fifth three times. The protocol stands in
`experiments/ssl/protocol.py`.

Measured with the second command and `--num-steps 156 --widths 32 64 128` on 10,000 +
2,000 pictures of CIFAR-10 (seed 0, two epochs; JAX 0.10.2, two shared CPU cores, 8
minutes), accuracy on the test split in percent:

                 kNN    linear probe, 10 labels per class
    pixels      25.9    26.7
    untrained   33.9    27.1
    trained     35.7    24.0

Two epochs teach the network to turn a bit more than half of the pictures right (chance:
a quarter), and the neighbours to agree a little more often; ten labels per class tell
less.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import optax
import tyro

from experiments.ssl import protocol, settings
from jaxml import ops
from jaxml.compose import augmented
from jaxml.ssl import Rotation, rotation
from jaxml.typing import Array, PRNGKeyArray


@dataclass(frozen=True)
class Config(settings.Encoders):
    """Rotation on CIFAR-10."""

    learning_rate: float = 0.1
    """Of SGD with Nesterov momentum 0.9; a fifth after 30, 60 and 80 % of the steps."""
    weight_decay: float = 5e-4
    """Of the optimizer."""
    out: Path = Path("runs/rotation_cifar10")
    """Where everything is written; a run found there is continued."""


SMOKE = Config(
    dataset="digits",
    widths=(8,),
    size=8,
    num_steps=2,
    batch_size=16,
    neighbours=5,
    labels_per_class=2,
)


def main(config: Config) -> Mapping[str, float]:
    """Trains and judges every seed; returns mean accuracies."""
    return protocol.run_seeds(config, run_one)


def run_one(config: Config) -> protocol.Results:
    """One seed."""

    def views(key: PRNGKeyArray, image: Array) -> dict[str, Array]:
        flip_key, key = jax.random.split(key)
        moved = ops.pad_and_crop(key, image, padding=config.size // 8)
        return {"view": ops.random_horizontal_flip(flip_key, moved)}

    backbone = config.backbone()
    rate = optax.piecewise_constant_schedule(
        config.learning_rate,
        {int(config.num_steps * part): 0.2 for part in (0.3, 0.6, 0.8)},
    )
    decay = optax.add_decayed_weights(config.weight_decay)
    optimizer = optax.chain(decay, optax.sgd(rate, momentum=0.9, nesterov=True))
    return protocol.pretrain(
        config,
        dataset=config.dataset,
        method=augmented(rotation(Rotation(backbone, "data")), views, "data"),
        views=views,
        optimizer=optimizer,
    )


if __name__ == "__main__":
    main(tyro.cli(Config))
