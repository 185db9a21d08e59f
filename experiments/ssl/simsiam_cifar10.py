"""SimSiam on natural images: CIFAR-10, or a folder of pictures like it.

    python -m experiments.ssl.simsiam_cifar10                         TFDS's CIFAR-10
    python -m experiments.ssl.simsiam_cifar10 --dataset cifar10_jpg   pictures in a folder

Beside `simclr_cifar10.py`, with the views of the SimSiam paper. The protocol stands in
`experiments/ssl/protocol.py`.

Measured with the second command on 10,000 + 2,000 pictures of CIFAR-10 (seed 0, 800 steps,
which is ten epochs; JAX 0.10.2, two shared CPU cores, 13 minutes), accuracy on the test
split in percent:

                 kNN    linear probe, 10 labels per class
    pixels      25.9    26.7
    untrained   33.8    27.1
    trained     33.1    24.5

Ten epochs are far too few for SimSiam (the paper's runs have 800): it has learned nothing yet
that an untrained encoder does not give.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as linen
import optax
import tyro

from experiments.ssl import protocol, settings
from jaxml import ops
from jaxml.compose import augmented
from jaxml.ops.views import Views
from jaxml.ssl import SimSiam, constant_predictor_rate, simsiam


@dataclass(frozen=True)
class Config(settings.Encoders):
    """SimSiam on CIFAR-10."""

    widths: tuple[int, ...] = (32, 64, 128)
    """Channels of the small encoder; the last is the number of features."""
    learning_rate: float = 0.06
    """Of SGD for a batch of 256, scaled linearly; cosine, constant for the predictor."""
    weight_decay: float = 5e-4
    """Of SGD."""
    dim: int = 512
    """Width of the projector."""
    bottleneck: int = 128
    """Hidden width of the predictor."""
    num_projector_layers: int = 2
    """2 on CIFAR-10, 3 elsewhere."""
    out: Path = Path("runs/simsiam_cifar10")
    """Where everything is written; a run found there is continued."""


def main(config: Config) -> Mapping[str, float]:
    """Trains and judges every seed; returns mean accuracies."""
    return protocol.run_seeds(config, run_one)


def run_one(config: Config) -> protocol.Results:
    """One seed."""
    views = ops.two_views(partial(ops.simsiam_view, size=config.size, blur=0))
    return learn(config, config.dataset, config.backbone(), views)


def learn(
    config: Any, dataset: str, backbone: linen.Module, views: Views
) -> protocol.Results:
    """What SimSiam does on any data set."""
    model = SimSiam(
        backbone,
        dim=config.dim,
        bottleneck=config.bottleneck,
        num_projector_layers=config.num_projector_layers,
        axis_name="data",
    )
    rate = config.learning_rate * config.batch_size / 256

    def sgd(rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
        decay = optax.add_decayed_weights(config.weight_decay)
        return optax.chain(decay, optax.sgd(rate, momentum=0.9))

    encoder = sgd(optax.cosine_decay_schedule(rate, config.num_steps))
    return protocol.pretrain(
        config,
        dataset=dataset,
        method=augmented(simsiam(model), views, "data"),
        views=views,
        optimizer=constant_predictor_rate(encoder, sgd(rate)),
    )


if __name__ == "__main__":
    main(tyro.cli(Config))
