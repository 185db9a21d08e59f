"""InvaSpread on natural images: CIFAR-10, or a folder of pictures like it.

    python -m experiments.ssl.invaspread_cifar10                         TFDS's CIFAR-10
    python -m experiments.ssl.invaspread_cifar10 --dataset cifar10_jpg   pictures in a folder
    python -m experiments.ssl.invaspread_cifar10 --encoder resnet18 --num-steps 78000

The paper's batch, temperature and embedding: the image itself, only flipped and
cropped, and its augmented copy. SGD whose rate falls to a tenth twice. The protocol stands
in `experiments/ssl/protocol.py`.

Measured with the second command and `--num-steps 160 --widths 32 64 128` on 10,000 + 2,000
pictures of CIFAR-10 (seed 0, two epochs; JAX 0.10.2, two shared CPU cores, 3.5
minutes), accuracy on the test split in percent:

                 kNN    linear probe, 10 labels per class
    pixels      25.9    26.7
    untrained   33.9    27.1
    trained     41.5    27.2

Two epochs are enough for the neighbours, not for a classifier of ten labels per class.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import jax
import optax
import tyro

from experiments.ssl import protocol, settings
from jaxml import ops
from jaxml.compose import augmented
from jaxml.ssl import Projected, invaspread
from jaxml.typing import Array, PRNGKeyArray


@dataclass(frozen=True)
class Config(settings.Encoders):
    """InvaSpread on CIFAR-10."""

    learning_rate: float = 0.03
    """Of SGD with momentum 0.9; a tenth after three and four fifths of the steps."""
    weight_decay: float = 5e-4
    """Of the optimizer."""
    temperature: float = 0.1
    """Of both softmaxes."""
    dim: int = 128
    """Size of the embedding."""
    variant: Literal["paper", "code"] = "paper"
    """Which of the two forms of the loss."""
    out: Path = Path("runs/invaspread_cifar10")
    """Where everything is written; a run found there is continued."""


SMOKE = Config(
    dataset="digits",
    widths=(8,),
    size=8,
    num_steps=2,
    batch_size=16,
    dim=8,
    neighbours=5,
    labels_per_class=2,
)


def main(config: Config) -> Mapping[str, float]:
    """Trains and judges every seed; returns mean accuracies."""
    return protocol.run_seeds(config, run_one)


def run_one(config: Config) -> protocol.Results:
    """One seed."""

    def nearly_itself(key: PRNGKeyArray, image: Array) -> Array:
        flip_key, key = jax.random.split(key)
        crop = partial(ops.random_resized_crop, size=config.size, area=(0.6, 1.0))
        return ops.random_horizontal_flip(flip_key, crop(key, image))

    copy = partial(ops.moco_v2_view, size=config.size, blur=0)
    views = ops.two_views(nearly_itself, copy)
    backbone = config.backbone()
    method = invaspread(
        Projected(backbone, (config.dim,), axis_name="data"),
        temperature=config.temperature,
        variant=config.variant,
    )
    fifth = config.num_steps // 5
    rate = optax.piecewise_constant_schedule(
        config.learning_rate, {3 * fifth: 0.1, 4 * fifth: 0.1}
    )
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
