"""Inpainting of natural images: CIFAR-10, or a folder of pictures like it.

    python -m experiments.ssl.inpainting_cifar10                         TFDS's CIFAR-10
    python -m experiments.ssl.inpainting_cifar10 --dataset cifar10_jpg   pictures in a folder
    python -m experiments.ssl.inpainting_cifar10 --region central --window 16

A quarter of each picture is hidden, in blots, in blocks or in the middle; squared error
with a seam and a critic, as in the paper. `paintings.png` shows pictures of the test split,
what is hidden, and what the network puts there. The protocol stands in
`experiments/ssl/protocol.py`.

Measured with the second command and `--num-steps 78 --widths 32 64 128` on 10,000 +
2,000 pictures of CIFAR-10 (seed 0, one epoch; JAX 0.10.2, two shared CPU cores, 7
minutes), accuracy on the test split in percent:

                 kNN    linear probe, 10 labels per class
    pixels      25.9    26.7
    untrained   31.8    26.0
    trained     32.4    24.7

After one epoch holes are filled with the right colour and no edge; the features are what
they were before.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import optax
import tyro

from experiments.ssl import protocol, settings
from jaxml import data, draw, ops, train
from jaxml.compose import augmented
from jaxml.ssl import (
    ContextEncoder,
    PaintingCritic,
    cover,
    hole_views,
    inpainting,
    painter_optimizer,
)
from jaxml.typing import Array, PRNGKeyArray


@dataclass(frozen=True)
class Config(settings.Photographs):
    """Inpainting on CIFAR-10."""

    widths: tuple[int, ...] = (64, 128, 256)
    """Channels of encoder, decoder and critic; the last is the number of features."""
    region: Literal["central", "blocks", "region"] = "region"
    """What is hidden."""
    share: float = 0.25
    """How much is hidden, at most."""
    adversarial: float = 0.001
    """Weight of the adversarial term; 0 leaves the critic out."""
    overlap: int = 2
    """Pixels of the seam; 7 of 128 in the paper."""
    window: int | None = None
    """Side of the square in the middle that the critic sees; by default all."""
    learning_rate: float = 2e-3
    """Of the painter's Adam; the critic has a tenth, as in the paper."""
    out: Path = Path("runs/inpainting_cifar10")
    """Where everything is written; a run found there is continued."""


SMOKE = Config(
    dataset="digits",
    widths=(8, 8),
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
    hide = hole_views(config.region, config.share)

    def views(key: PRNGKeyArray, image: Array) -> dict[str, Array]:
        flip_key, key = jax.random.split(key)
        return hide(key, ops.random_horizontal_flip(flip_key, image))

    described = data.describe(config.dataset, data_dir=config.data_dir)
    channels = described.features["image"][0][-1]
    model = ContextEncoder(config.widths, channels, "data")
    method = inpainting(
        model,
        PaintingCritic(config.widths, "data"),
        adversarial=config.adversarial,
        overlap=config.overlap,
        window=config.window,
        axis_name="data",
    )

    def pictures(out: Path, state: train.TrainState, split: protocol.Split) -> None:
        truth = ops.to_float(split["image"][:8])
        keys = jax.random.split(jax.random.key(0), len(truth))
        hole = jax.vmap(hide)(keys, truth)["hole"]
        variables = {"params": state.params["painter"], **state.model_state["painter"]}
        _, painted = model.apply(variables, cover(truth, hole), train=False)
        columns = [cover(truth, hole), np.where(hole, painted, truth), painted, truth]
        draw.save_image_sheet(
            out / "paintings.png",
            np.stack(columns, axis=1).reshape(-1, *truth.shape[1:]),
            column_titles=["seen", "filled in", "painted", "truth"],
        )

    painter = optax.adam(config.learning_rate, b1=0.5)
    critic = optax.adam(config.learning_rate / 10, b1=0.5)
    with_critic = painter_optimizer(painter, critic)
    return protocol.pretrain(
        config,
        dataset=config.dataset,
        method=augmented(method, views, "data"),
        views=views,
        optimizer=with_critic if config.adversarial else painter,
        pictures=pictures,
    )


if __name__ == "__main__":
    main(tyro.cli(Config))
