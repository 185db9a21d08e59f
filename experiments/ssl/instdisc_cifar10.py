"""InstDisc on natural images: CIFAR-10, or a folder of pictures like it.

    python -m experiments.ssl.instdisc_cifar10                         TFDS's CIFAR-10
    python -m experiments.ssl.instdisc_cifar10 --dataset cifar10_jpg   pictures in a folder
    python -m experiments.ssl.instdisc_cifar10 --encoder resnet18 --num-steps 78000

The paper's bank, noise and schedule: SGD whose rate falls to a tenth twice. The protocol
stands in `experiments/ssl/protocol.py`.

Measured with the second command and `--num-steps 240 --widths 32 64 128` on 10,000 + 2,000
pictures of CIFAR-10 (seed 0, three epochs; JAX 0.10.2, two shared CPU cores, 3.5
minutes), accuracy on the test split in percent:

                 kNN    linear probe, 10 labels per class
    pixels      25.9    26.7
    untrained   33.8    26.1
    trained     24.8    16.6

Three epochs are too few, and worse than none: the normaliser Z is that of the random bank of
the first step, the loss rises (39, 103, 186 at steps 100, 200 and 240, chance is 9.3) while
the bank fills with features that all lie near one another, and the rate has fallen before
they are apart. `fit` says so: "worse than chance".
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import optax
import tyro

from experiments.ssl import protocol, settings
from jaxml import data, ops
from jaxml.compose import augmented
from jaxml.ssl import Projected, instdisc
from jaxml.typing import Array, PRNGKeyArray


@dataclass(frozen=True)
class Config(settings.Encoders):
    """InstDisc on CIFAR-10."""

    learning_rate: float = 0.03
    """Of SGD with momentum 0.9; a tenth after three and four fifths of the steps."""
    weight_decay: float = 5e-4
    """Of the optimizer."""
    temperature: float = 0.1
    """Of the softmax over images; 0.07 on ImageNet."""
    dim: int = 128
    """Size of the embedding."""
    num_noise: int | None = 4096
    """Images drawn against each; None is the softmax over all."""
    momentum: float = 0.5
    """Weight of what the bank holds."""
    proximal: float = 0.0
    """Lambda of the proximal term."""
    out: Path = Path("runs/instdisc_cifar10")
    """Where everything is written; a run found there is continued."""


SMOKE = Config(
    dataset="digits",
    widths=(8,),
    size=8,
    num_steps=2,
    batch_size=16,
    dim=8,
    num_noise=40,
    neighbours=5,
    labels_per_class=2,
)


def main(config: Config) -> Mapping[str, float]:
    """Trains and judges every seed; returns mean accuracies."""
    return protocol.run_seeds(config, run_one)


def run_one(config: Config) -> protocol.Results:
    """One seed."""

    def views(key: PRNGKeyArray, image: Array) -> dict[str, Array]:
        return {"view": ops.moco_v2_view(key, image, size=config.size, blur=0)}

    backbone = config.backbone()
    described = data.describe(config.dataset, data_dir=config.data_dir)
    method = instdisc(
        Projected(backbone, (config.dim,), axis_name="data"),
        described.sizes["train"],
        temperature=config.temperature,
        num_noise=config.num_noise,
        momentum=config.momentum,
        proximal=config.proximal,
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
        with_index=True,
    )


if __name__ == "__main__":
    main(tyro.cli(Config))
