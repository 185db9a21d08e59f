"""CPC on natural images: CIFAR-10, or a folder of pictures like it.

    python -m experiments.ssl.cpc_cifar10                         TFDS's CIFAR-10
    python -m experiments.ssl.cpc_cifar10 --dataset cifar10_jpg   pictures in a folder
    python -m experiments.ssl.cpc_cifar10 --directions 1 --no-normalize --no-augment

Patches of 8 pixels, half overlapping, on a grid of 7 x 7, as many as the papers cut from
ImageNet. The default is version 2, the last line version 1. The protocol stands in
`experiments/ssl/protocol.py`.

Measured with the second command and `--num-steps 156 --widths 32 64 128` on 10,000 +
2,000 pictures of CIFAR-10 (seed 0, half an epoch; JAX 0.10.2, two shared CPU cores, 24
minutes), accuracy on the test split in percent:

                 kNN    linear probe, 10 labels per class
    pixels      25.9    26.7
    untrained   28.5    24.1
    trained     27.0    24.1

Half an epoch: the loss has fallen from 7.01, which is chance, to 6.90, the features all point
nearly one way (`fit` says so: "complete collapse"), and tell no more than before training.
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
from jaxml.ssl import CPC, PatchEncoder, cpc, patch_views
from jaxml.typing import Array, PRNGKeyArray


@dataclass(frozen=True)
class Config(settings.Photographs):
    """CPC on CIFAR-10."""

    widths: tuple[int, ...] = (64, 128, 256)
    """Channels of the patch encoder; the last is the number of features."""
    context_width: int = 256
    """Of the context network."""
    context_layers: int = 5
    """Of the context network."""
    ahead: int = 3
    """Rows ahead that are predicted; 5 in the papers."""
    directions: int = 4
    """From how many sides is predicted; 1 in version 1."""
    normalize: bool = True
    """Layer norm in both networks, as in version 2."""
    augment: bool = True
    """Augment every patch on its own, as in version 2."""
    patch: int = 8
    """Pixels of a patch."""
    stride: int = 4
    """Pixels between patches."""
    batch_size: int = 32
    """Images per update, over all devices."""
    learning_rate: float = 1e-3
    """Peak of Adam's cosine schedule, which a twentieth of the steps leads up to."""
    out: Path = Path("runs/cpc_cifar10")
    """Where everything is written; a run found there is continued."""


SMOKE = Config(
    dataset="digits",
    widths=(8,),
    context_width=8,
    context_layers=1,
    ahead=1,
    patch=4,
    stride=2,
    num_steps=2,
    batch_size=8,
    neighbours=5,
    labels_per_class=2,
)


def main(config: Config) -> Mapping[str, float]:
    """Trains and judges every seed; returns mean accuracies."""
    return protocol.run_seeds(config, run_one)


def run_one(config: Config) -> protocol.Results:
    """One seed."""

    def jitter(key: PRNGKeyArray, patch: Array) -> Array:
        flip_key, color_key, gray_key = jax.random.split(key, 3)
        patch = ops.random_horizontal_flip(flip_key, patch)
        patch = ops.color_jitter(
            color_key, patch, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1
        )
        return ops.random_grayscale(gray_key, patch, 0.25)

    views = patch_views(config.patch, config.stride, jitter if config.augment else None)
    model = CPC(
        PatchEncoder(config.widths, config.normalize),
        config.context_width,
        config.context_layers,
        config.ahead,
        config.directions,
        config.normalize,
        config.patch,
        config.stride,
        axis_name="data",
    )
    rate = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, config.num_steps // 20, config.num_steps
    )
    return protocol.pretrain(
        config,
        dataset=config.dataset,
        method=augmented(cpc(model), views, "data"),
        views=views,
        optimizer=optax.adam(rate),
    )


if __name__ == "__main__":
    main(tyro.cli(Config))
