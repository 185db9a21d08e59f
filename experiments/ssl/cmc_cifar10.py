"""CMC on natural images: CIFAR-10, or a folder of pictures like it.

    python -m experiments.ssl.cmc_cifar10                         TFDS's CIFAR-10
    python -m experiments.ssl.cmc_cifar10 --dataset cifar10_jpg   pictures in a folder
    python -m experiments.ssl.cmc_cifar10 --num-noise 16384 --num-steps 78000

Two views, lightness and colours of CIE Lab, and a small encoder for each; gray pictures
are split into their halves. The protocol stands in
`experiments/ssl/protocol.py`.

Measured with the second command and `--num-steps 156 --widths 24 48 96` on 10,000 +
2,000 pictures of CIFAR-10 (seed 0, two epochs; JAX 0.10.2, two shared CPU cores, 14
minutes), accuracy on the test split in percent:

                 kNN    linear probe, 10 labels per class
    pixels      25.9    26.7
    untrained   30.9    26.6
    trained     29.7    19.8

After two epochs the two encoders do not agree yet (`fit` says so: "unrelated
positives", the loss is that of chance), and the features are worse than before
training.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import tyro

from experiments.ssl import protocol, settings
from jaxml import data, ops
from jaxml.compose import augmented
from jaxml.nn import ConvNet
from jaxml.ssl import CMC, cmc, split_lab
from jaxml.typing import Array, PRNGKeyArray


@dataclass(frozen=True)
class Config(settings.Photographs):
    """CMC on CIFAR-10."""

    widths: tuple[int, ...] = (48, 96, 192)
    """Channels of each view's encoder; features are twice the last."""
    size: int = 32
    """Of the views, in pixels."""
    learning_rate: float = 0.03
    """Of SGD with momentum 0.9; a tenth after three and four fifths of the steps."""
    weight_decay: float = 5e-4
    """Of the optimizer."""
    temperature: float = 0.1
    """Of the softmax over images; 0.07 on ImageNet."""
    dim: int = 128
    """Size of the embedding."""
    num_noise: int = 4096
    """Images drawn against each; 16384 on ImageNet."""
    momentum: float = 0.5
    """Weight of what a bank holds."""
    out: Path = Path("runs/cmc_cifar10")
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


def halves(images: Array) -> tuple[Array, Array]:
    """Two views of a picture without colour: its left and its right half."""
    left, right = jnp.split(images, 2, axis=2)
    return left, right


def run_one(config: Config) -> protocol.Results:
    """One seed."""

    def views(key: PRNGKeyArray, image: Array) -> dict[str, Array]:
        flip_key, key = jax.random.split(key)
        crop = ops.random_resized_crop(key, image, config.size, area=(0.2, 1.0))
        return {"view": ops.random_horizontal_flip(flip_key, crop)}

    described = data.describe(config.dataset, data_dir=config.data_dir)
    is_colour = described.features["image"][0][-1] == 3
    model = CMC(
        [ConvNet(config.widths, axis_name="data") for _ in range(2)],
        config.dim,
        split_lab if is_colour else halves,
        axis_name="data",
    )
    method = cmc(
        model,
        described.sizes["train"],
        temperature=config.temperature,
        num_noise=config.num_noise,
        momentum=config.momentum,
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
