"""DINO on natural images: CIFAR-10, or a folder of pictures like it.

    python -m experiments.ssl.dino_cifar10                         TFDS's CIFAR-10
    python -m experiments.ssl.dino_cifar10 --dataset cifar10_jpg   pictures in a folder
    python -m experiments.ssl.dino_cifar10 --encoder resnet18 --num-steps 78000

Two large crops and several small ones of each picture, without blur, for a small vision
transformer (or ResNet-18). `attention.png` shows what each head of the transformer's
last block looks at. The protocol stands in `experiments/ssl/protocol.py`.

Measured with the second command and `--width 96 --depth 4 --heads 3 --num-steps 312` on
10,000 + 2,000 pictures of CIFAR-10 (seed 0, two epochs; JAX 0.10.2, two shared CPU
cores, 19 minutes), accuracy on the test split in percent:

                 kNN    linear probe, 10 labels per class
    pixels      25.9    26.7
    untrained   27.8    23.9
    trained     27.8    22.5

Two epochs are too few for DINO: teacher and student still give all outputs alike (`fit`
says so: "uniform output", the loss is that of chance), and the features tell what they
did before training.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import flax.linen as linen
import jax
import optax
import tyro

from experiments.ssl import protocol, settings
from jaxml import draw, ops, train
from jaxml.compose import augmented
from jaxml.nn import VisionTransformer, resnet18
from jaxml.ops.views import Views
from jaxml.ssl import DINO, class_attention, cosine_momentum, dino, dino_optimizer
from jaxml.typing import Array, PRNGKeyArray


@dataclass(frozen=True)
class Config(settings.Photographs):
    """DINO on CIFAR-10."""

    encoder: Literal["vit", "resnet18"] = "vit"
    """A transformer, or the ResNet-18 with a CIFAR stem of the literature."""
    width: int = 192
    """Of the transformer."""
    depth: int = 6
    """Its blocks."""
    heads: int = 3
    """Its heads of attention."""
    patch_size: int = 4
    """Side of its patches, in pixels."""
    drop_path: float = 0.1
    """Rate of stochastic depth of the student."""
    size: int = 32
    """Of the large crops, in pixels; whole patches."""
    num_local: int = 6
    """Small crops of each image."""
    local_size: int = 16
    """Of the small crops, in pixels; whole patches."""
    batch_size: int = 64
    """Images per update, over all devices."""
    learning_rate: float = 5e-4
    """Peak of AdamW's cosine, which a tenth of the steps leads up to."""
    weight_decay: tuple[float, float] = (0.04, 0.4)
    """Of weights, at the first step and at the last."""
    num_outputs: int = 2048
    """Of the head; 65,536 on ImageNet."""
    head: tuple[int, ...] = (512, 512, 128)
    """Widths of its layers; (2048, 2048, 256) on ImageNet."""
    temperature: tuple[float, float] = (0.04, 0.07)
    """Of the teacher, at first and after a tenth of the steps."""
    momentum: float = 0.996
    """Of the teacher at first; it rises to one on a cosine."""
    freeze_steps: int = 50
    """Steps in which the last layer stays."""
    out: Path = Path("runs/dino_cifar10")
    """Where everything is written; a run found there is continued."""


SMOKE = Config(
    dataset="digits",
    width=8,
    depth=1,
    heads=2,
    size=8,
    num_local=1,
    local_size=4,
    num_steps=2,
    batch_size=16,
    num_outputs=5,
    head=(8, 4),
    freeze_steps=1,
    neighbours=5,
    labels_per_class=2,
)


def main(config: Config) -> Mapping[str, float]:
    """Trains and judges every seed; returns mean accuracies."""
    return protocol.run_seeds(config, run_one)


def run_one(config: Config) -> protocol.Results:
    """One seed."""
    large = partial(crop, size=config.size, area=(0.4, 1))
    views = ops.multi_crop(
        large,
        partial(crop, size=config.local_size, area=(0.05, 0.4)),
        config.num_local,
        global2=partial(large, solarize=0.2),
    )
    vit = transformer(config, config.size)
    if config.encoder == "vit":
        return learn(config, config.dataset, vit, views, partial(picture, vit))
    resnet = resnet18(stem="cifar", axis_name="data")
    return learn(config, config.dataset, resnet, views)


def transformer(config: Any, size: int) -> VisionTransformer:
    """A ViT for large crops of a size, and for small ones."""
    return VisionTransformer(
        size,
        config.patch_size,
        config.width,
        config.depth,
        config.heads,
        drop_path=config.drop_path,
        any_size=True,
        axis_name="data",
    )


def learn(
    config: Any,
    dataset: str,
    backbone: linen.Module,
    views: Views,
    pictures: protocol.Pictures | None = None,
) -> protocol.Results:
    """What DINO does on any data set."""
    warm_up = config.num_steps // 10
    method = dino(
        DINO(backbone, config.num_outputs, config.head, axis_name="data"),
        momentum=cosine_momentum(config.momentum, config.num_steps),
        teacher_temperature=optax.linear_schedule(*config.temperature, warm_up),
        freeze_steps=config.freeze_steps,
    )
    rate = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, warm_up, config.num_steps, 1e-6
    )
    optimizer = dino_optimizer(rate, config.num_steps, weight_decay=config.weight_decay)
    return protocol.pretrain(
        config,
        dataset=dataset,
        method=augmented(method, views, "data"),
        views=views,
        optimizer=optimizer,
        pictures=pictures,
    )


def crop(
    key: PRNGKeyArray,
    image: Array,
    *,
    size: int,
    area: tuple[float, float],
    solarize: float = 0,
) -> Array:
    """A crop with the paper's colors and without its blur."""
    keys = jax.random.split(key, 5)
    jitter = partial(
        ops.color_jitter, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1
    )
    image = ops.random_resized_crop(keys[0], image, size, area=area)
    image = ops.random_horizontal_flip(keys[1], image)
    image = ops.apply_with_probability(keys[2], 0.8, jitter, image)
    image = ops.random_grayscale(keys[3], image, 0.2)
    return ops.random_solarize(keys[4], image, solarize)


def picture(
    backbone: VisionTransformer,
    path: Path,
    state: train.TrainState,
    split: protocol.Split,
) -> None:
    """What the heads of the teacher's last block look at."""
    images = ops.to_float(split["image"][:8])
    params = state.model_state["teacher"]["params"]["backbone"]
    weights = class_attention(backbone, params, images)
    draw.save_attention(path / "attention.png", images, weights)


if __name__ == "__main__":
    main(tyro.cli(Config))
