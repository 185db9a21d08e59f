"""Deep InfoMax on natural images: CIFAR-10, or a folder of pictures like it.

    python -m experiments.ssl.deep_infomax_cifar10                         TFDS's CIFAR-10
    python -m experiments.ssl.deep_infomax_cifar10 --dataset cifar10_jpg   pictures in a folder
    python -m experiments.ssl.deep_infomax_cifar10 --alpha 1 --beta 0 --gamma 1   DIM(G)

The paper's encoder, critics and prior, Adam for the encoder and for the discriminator;
images as they are. The default is DIM(L) with InfoNCE. The protocol stands in
`experiments/ssl/protocol.py`.

Measured with the second command and `--num-steps 156 --widths 32 64 128` on 10,000 +
2,000 pictures of CIFAR-10 (seed 0, two epochs; JAX 0.10.2, two shared CPU cores, 10
minutes), accuracy on the test split in percent:

                 kNN    linear probe, 10 labels per class
    pixels      25.9    26.7
    untrained   24.5    20.6
    trained     31.6    21.7

The code of 64 numbers tells more after two epochs than before (its neighbours 7
points), and still no more than the pixels do to ten labels per class.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import optax
import tyro

from experiments.ssl import protocol, settings
from jaxml.compose import augmented
from jaxml.ssl import (
    InfoMaxEncoder,
    LocalCritic,
    deep_infomax,
    prior_optimizer,
)
from jaxml.typing import Array, PRNGKeyArray


@dataclass(frozen=True)
class Config(settings.Photographs):
    """Deep InfoMax on CIFAR-10."""

    widths: tuple[int, ...] = (64, 128, 256)
    """Channels of the convolutions."""
    hidden: int = 1024
    """Width of the hidden layer."""
    dim: int = 64
    """Size of the code, which is what is judged."""
    alpha: float = 0.0
    """Weight of the global information."""
    beta: float = 1.0
    """Weight of the local information."""
    gamma: float = 0.1
    """Weight of the prior."""
    estimator: Literal["jsd", "dv", "info_nce"] = "info_nce"
    """Of information."""
    critic: Literal["dot", "concat"] = "dot"
    """Which local critic."""
    critic_width: int = 512
    """Of the local critic; 2048 in the paper."""
    learning_rate: float = 1e-4
    """Of Adam, for the encoder with its critics and for the discriminator."""
    out: Path = Path("runs/deep_infomax_cifar10")
    """Where everything is written; a run found there is continued."""


SMOKE = Config(
    dataset="digits",
    widths=(8, 8),
    hidden=8,
    dim=4,
    critic_width=8,
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
        del key
        return {"image": image}

    encoder = InfoMaxEncoder(
        config.widths, len(config.widths) - 1, config.hidden, config.dim, "data"
    )
    method = deep_infomax(
        encoder,
        alpha=config.alpha,
        beta=config.beta,
        gamma=config.gamma,
        estimator=config.estimator,
        local_critic=LocalCritic(config.critic, config.critic_width),
        axis_name="data",
    )
    adam = optax.adam(config.learning_rate)
    return protocol.pretrain(
        config,
        dataset=config.dataset,
        method=augmented(method, views, "data"),
        views=views,
        optimizer=prior_optimizer(adam, adam),
    )


if __name__ == "__main__":
    main(tyro.cli(Config))
