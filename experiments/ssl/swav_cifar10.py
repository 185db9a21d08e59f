"""SwAV on natural images: CIFAR-10, or a folder of pictures like it.

    python -m experiments.ssl.swav_cifar10                         TFDS's CIFAR-10
    python -m experiments.ssl.swav_cifar10 --dataset cifar10_jpg   pictures in a folder
    python -m experiments.ssl.swav_cifar10 --encoder resnet18 --num-steps 78000

Two large and four small crops, as many prototypes as a small set has use for, and a
queue; prototypes stay for the first steps. The protocol stands in
`experiments/ssl/protocol.py`.

Measured with the second command and `--num-steps 160 --widths 32 64 128` on 10,000 + 2,000
pictures of CIFAR-10 (seed 0, two epochs; JAX 0.10.2, two shared CPU cores, 6.5
minutes), accuracy on the test split in percent:

                 kNN    linear probe, 10 labels per class
    pixels      25.9    26.7
    untrained   33.8    26.1
    trained     32.2    24.5

Two epochs, a third of them with frozen prototypes, are too few for SwAV: it is worse than the
untrained encoder.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import optax
import tyro

from experiments.ssl import protocol, settings
from jaxml import ops
from jaxml.compose import augmented
from jaxml.ssl import Projected, swav
from jaxml.typing import Array, PRNGKeyArray


@dataclass(frozen=True)
class Config(settings.Encoders):
    """SwAV on CIFAR-10."""

    learning_rate: float = 1e-3
    """Peak of AdamW's cosine schedule, which a twentieth of the steps leads up to."""
    weight_decay: float = 1e-4
    """Of the optimizer."""
    temperature: float = 0.1
    """Of the predictions."""
    epsilon: float = 0.05
    """Of the codes."""
    head: tuple[int, ...] = (512, 128)
    """Widths of the projection head."""
    num_prototypes: int = 300
    """Clusters; 3000 on ImageNet."""
    num_local: int = 4
    """Small crops of each image."""
    local_size: int = 16
    """Of the small crops, in pixels."""
    queue_size: int = 1024
    """Embeddings of each large crop that help to share out the prototypes."""
    queue_start: int = 200
    """Step from which the queue is used."""
    freeze_steps: int = 50
    """Steps in which the prototypes stay."""
    out: Path = Path("runs/swav_cifar10")
    """Where everything is written; a run found there is continued."""


SMOKE = Config(
    dataset="digits",
    widths=(8,),
    size=8,
    num_steps=2,
    batch_size=16,
    head=(8, 4),
    num_prototypes=5,
    num_local=1,
    local_size=6,
    queue_size=40,
    queue_start=1,
    neighbours=5,
    labels_per_class=2,
)


def main(config: Config) -> Mapping[str, float]:
    """Trains and judges every seed; returns mean accuracies."""
    return protocol.run_seeds(config, run_one)


def run_one(config: Config) -> protocol.Results:
    """One seed."""
    large = partial(ops.simclr_cifar_view, size=config.size)

    def small(key: PRNGKeyArray, image: Array) -> Array:
        crop_key, key = jax.random.split(key)
        crop = ops.random_resized_crop(
            crop_key, image, config.local_size, area=(0.1, 0.4)
        )
        jitter = partial(
            ops.color_jitter, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1
        )
        return ops.apply_with_probability(key, 0.8, jitter, crop)

    views = ops.multi_crop(large, small, config.num_local)
    backbone = config.backbone()
    model = Projected(backbone, config.head, normalize=True, axis_name="data")
    method = swav(
        model,
        num_prototypes=config.num_prototypes,
        temperature=config.temperature,
        epsilon=config.epsilon,
        queue_size=config.queue_size,
        queue_start=config.queue_start,
        freeze_steps=config.freeze_steps,
    )
    rate = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, config.num_steps // 20, config.num_steps
    )
    return protocol.pretrain(
        config,
        dataset=config.dataset,
        method=augmented(method, views, "data"),
        views=views,
        optimizer=optax.adamw(rate, weight_decay=config.weight_decay),
    )


if __name__ == "__main__":
    main(tyro.cli(Config))
