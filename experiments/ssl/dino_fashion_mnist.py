"""DINO on Fashion-MNIST, read through TFDS.

    python -m experiments.ssl.dino_fashion_mnist

A small vision transformer, the views of `simclr_fashion_mnist.py` as large crops, and small
ones of their parts. `attention.png` shows what each head of the last block looks at. The
protocol stands in `experiments/ssl/protocol.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import optax
import tyro

from experiments.ssl import protocol
from jaxml import draw, ops, train
from jaxml.compose import augmented
from jaxml.nn import VisionTransformer
from jaxml.ssl import DINO, class_attention, cosine_momentum, dino, dino_optimizer
from jaxml.typing import Array, PRNGKeyArray


@dataclass(frozen=True)
class Config:
    """DINO on Fashion-MNIST."""

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
    num_local: int = 6
    """Small crops of each image."""
    local_size: int = 16
    """Of the small crops, in pixels; whole patches."""
    num_steps: int = 1500
    """Optimizer updates."""
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
    labels_per_class: int = 10
    """Labels the linear probe may see."""
    neighbours: int = 200
    """Voters of the nearest-neighbour probe."""
    seed: int = 0
    """Seed of initialisation, data order and augmentation."""
    seeds: int = 1
    """Number of consecutive seeds; if more than one, each has a folder of its own."""
    save_every: int = 500
    """Steps between checkpoints."""
    data_dir: Path | None = None
    """Folder of the original files; by default the one JAXML_DATA_DIR names."""
    distributed: str | None = None
    """Several processes: "auto" on a cluster, or "HOST:PORT,ID/COUNT"."""
    out: Path = Path("runs/dino_fashion_mnist")
    """Where everything is written; a run found there is continued."""


def main(config: Config) -> Mapping[str, float]:
    """Trains and judges every seed; returns mean accuracies."""
    return protocol.run_seeds(config, run_one)


def run_one(config: Config) -> protocol.Results:
    """One seed."""
    small = partial(part, size=config.local_size)
    views = ops.multi_crop(protocol.garment_view, small, config.num_local)
    backbone = VisionTransformer(
        28,
        config.patch_size,
        config.width,
        config.depth,
        config.heads,
        drop_path=config.drop_path,
        any_size=True,
        axis_name="data",
    )
    method = dino(
        DINO(backbone, config.num_outputs, config.head, axis_name="data"),
        momentum=cosine_momentum(config.momentum, config.num_steps),
        teacher_temperature=optax.linear_schedule(
            *config.temperature, config.num_steps // 10
        ),
        freeze_steps=config.freeze_steps,
    )
    rate = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, config.num_steps // 10, config.num_steps, 1e-6
    )
    optimizer = dino_optimizer(rate, config.num_steps, weight_decay=config.weight_decay)
    return protocol.pretrain(
        config,
        dataset="fashion_mnist",
        method=augmented(method, views, "data"),
        views=views,
        optimizer=optimizer,
        pictures=partial(picture, backbone),
    )


def part(key: PRNGKeyArray, image: Array, *, size: int) -> Array:
    """A small crop of a view."""
    view_key, key = jax.random.split(key)
    view = protocol.garment_view(view_key, image)
    return ops.random_resized_crop(key, view, size, area=(0.1, 0.4))


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
