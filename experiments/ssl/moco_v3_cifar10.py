"""MoCo v3 on natural images: CIFAR-10, or a folder of pictures like it.

    python -m experiments.ssl.moco_v3_cifar10                         TFDS's CIFAR-10
    python -m experiments.ssl.moco_v3_cifar10 --dataset cifar10_jpg   pictures in a folder
    python -m experiments.ssl.moco_v3_cifar10 --encoder resnet18 --num-steps 78000

A small vision transformer with fixed positions, whose random patch embedding stays as it
is, or a convolutional encoder. The protocol stands in `experiments/ssl/protocol.py`.

Measured with the second command and `--width 96 --depth 4 --heads 3 --num-steps 234` on
10,000 + 2,000 pictures of CIFAR-10 (seed 0, three epochs; JAX 0.10.2, two shared CPU
cores, 60 minutes), accuracy on the test split in percent:

                 kNN    linear probe, 10 labels per class
    pixels      25.9    26.7
    untrained   30.9    23.9
    trained     34.5    25.7

Three epochs of the small ViT help the neighbours by 4 points and ten labels per class
by 2. (The cores were shared with a dozen other programs.)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import flax.linen as linen
import optax
import tyro

from experiments.ssl import protocol, settings
from jaxml import ops
from jaxml.compose import augmented
from jaxml.nn import VisionTransformer
from jaxml.ops.views import Views
from jaxml.ssl import MoCoV3, cosine_momentum, is_weight, moco_v3


@dataclass(frozen=True)
class Config(settings.Encoders):
    """MoCo v3 on CIFAR-10."""

    encoder: Literal["vit", "convnet", "resnet18"] = "vit"
    """A transformer, a small encoder for a CPU, or ResNet-18 with a CIFAR stem."""
    width: int = 192
    """Of the transformer."""
    depth: int = 6
    """Its blocks."""
    heads: int = 3
    """Its heads of attention."""
    patch_size: int = 4
    """Side of its patches, in pixels."""
    learning_rate: float = 1e-3
    """Peak of AdamW's cosine, which a tenth of the steps leads up to."""
    weight_decay: float = 0.1
    """Of weights; biases and normalisation have none."""
    temperature: float = 0.2
    """Of the contrast."""
    head: tuple[int, int] = (1024, 256)
    """Hidden and last width of projector and predictor; (4096, 256) on ImageNet."""
    momentum: float = 0.99
    """Of the key encoder at first; it rises to one on a cosine."""
    out: Path = Path("runs/moco_v3_cifar10")
    """Where everything is written; a run found there is continued."""


SMOKE = Config(
    dataset="digits",
    width=8,
    depth=1,
    heads=2,
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
    views = ops.two_views(partial(ops.simclr_cifar_view, size=config.size))
    if config.encoder != "vit":
        return learn(config, config.dataset, config.backbone(), views)
    vit = VisionTransformer(
        config.size,
        config.patch_size,
        config.width,
        config.depth,
        config.heads,
        position="sincos",
        axis_name="data",
    )
    return learn(config, config.dataset, vit, views)


def learn(
    config: Any, dataset: str, backbone: linen.Module, views: Views
) -> protocol.Results:
    """What MoCo v3 does on any data set."""
    hidden, last = config.head
    widths = (hidden, hidden, last)
    model = MoCoV3(backbone, widths, (hidden, last), axis_name="data")
    method = moco_v3(
        model,
        momentum=cosine_momentum(config.momentum, config.num_steps),
        temperature=config.temperature,
    )
    rate = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, config.num_steps // 10, config.num_steps
    )
    optimizer = optax.adamw(rate, weight_decay=config.weight_decay, mask=is_weight)
    return protocol.pretrain(
        config,
        dataset=dataset,
        method=augmented(method, views, "data"),
        views=views,
        optimizer=optimizer,
    )


if __name__ == "__main__":
    main(tyro.cli(Config))
