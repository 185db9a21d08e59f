"""BYOL on natural images: CIFAR-10, or a folder of pictures like it.

    python -m experiments.ssl.byol_cifar10                         TFDS's CIFAR-10
    python -m experiments.ssl.byol_cifar10 --dataset cifar10_jpg   pictures in a folder
    python -m experiments.ssl.byol_cifar10 --encoder resnet18 --num-steps 78000

The views of small pictures, without blur; as in the paper the second one is solarized at
times. The protocol stands in `experiments/ssl/protocol.py`.

Measured with the second command and `--widths 32 64 128 --num-steps 234` on 10,000 +
2,000 pictures of CIFAR-10 (seed 0, three epochs; JAX 0.10.2, two shared CPU cores, 7
minutes), accuracy on the test split in percent:

                 kNN    linear probe, 10 labels per class
    pixels      25.9    26.7
    untrained   33.9    27.1
    trained     32.1    22.3

Three epochs are too few for BYOL, as they are for SimSiam: the features tell less than
before training.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as linen
import jax
import optax
import tyro

from experiments.ssl import protocol, settings
from jaxml import ops
from jaxml.compose import augmented
from jaxml.ops.views import Views
from jaxml.ssl import BYOL, byol, cosine_momentum, is_weight
from jaxml.typing import Array, PRNGKeyArray


@dataclass(frozen=True)
class Config(settings.Encoders):
    """BYOL on CIFAR-10."""

    learning_rate: float = 0.06
    """Of SGD with momentum 0.9, on a cosine."""
    weight_decay: float = 5e-4
    """Of weights; biases and batch norm have none."""
    head: tuple[int, int] = (1024, 256)
    """Widths of the projector and of the predictor; (4096, 256) on ImageNet."""
    momentum: float = 0.99
    """Of the target network at first; it rises to one on a cosine."""
    out: Path = Path("runs/byol_cifar10")
    """Where everything is written; a run found there is continued."""


SMOKE = Config(
    dataset="digits",
    widths=(8,),
    size=8,
    num_steps=2,
    batch_size=16,
    head=(8, 4),
    neighbours=5,
    labels_per_class=2,
)


def main(config: Config) -> Mapping[str, float]:
    """Trains and judges every seed; returns mean accuracies."""
    return protocol.run_seeds(config, run_one)


def run_one(config: Config) -> protocol.Results:
    """One seed."""
    first = partial(ops.simclr_cifar_view, size=config.size)

    def second(key: PRNGKeyArray, image: Array) -> Array:
        view_key, key = jax.random.split(key)
        return ops.random_solarize(key, first(view_key, image), 0.2)

    views = ops.two_views(first, second)
    return learn(config, config.dataset, config.backbone(), views)


def learn(
    config: Any, dataset: str, backbone: linen.Module, views: Views
) -> protocol.Results:
    """What BYOL does on any data set."""
    model = BYOL(backbone, config.head, config.head, axis_name="data")
    method = byol(model, momentum=cosine_momentum(config.momentum, config.num_steps))
    rate = optax.cosine_decay_schedule(config.learning_rate, config.num_steps)
    decay = optax.add_decayed_weights(config.weight_decay, mask=is_weight)
    return protocol.pretrain(
        config,
        dataset=dataset,
        method=augmented(method, views, "data"),
        views=views,
        optimizer=optax.chain(decay, optax.sgd(rate, momentum=0.9)),
    )


if __name__ == "__main__":
    main(tyro.cli(Config))
