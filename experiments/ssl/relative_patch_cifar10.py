"""Relative patches of natural images: CIFAR-10, or a folder of pictures like it.

    python -m experiments.ssl.relative_patch_cifar10                         TFDS's CIFAR-10
    python -m experiments.ssl.relative_patch_cifar10 --dataset cifar10_jpg   pictures in a folder
    python -m experiments.ssl.relative_patch_cifar10 --colors project

Patches of 8 pixels, 3 apart and jittered by 1: the nine of them just fill the picture.
Colours are dropped or projected, as in the paper. `pairs.png` shows where the network puts
the second patch. The protocol stands in `experiments/ssl/protocol.py`.

Measured with the second command and `--num-steps 156 --widths 32 64 128` on 10,000 +
2,000 pictures of CIFAR-10 (seed 0, two epochs; JAX 0.10.2, two shared CPU cores, 3
minutes), accuracy on the test split in percent:

                 kNN    linear probe, 10 labels per class
    pixels      25.9    26.7
    untrained   33.9    27.1
    trained     31.6    23.9

Two epochs are too few: the place of one patch in six is told right (chance: one in
eight), and the features are worse than before training.
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
from jaxml import draw, ops, train
from jaxml.compose import augmented
from jaxml.nn import ConvNet
from jaxml.ssl import DIRECTIONS, RelativePatch, pair_views, relative_patch
from jaxml.typing import Array, PRNGKeyArray


@dataclass(frozen=True)
class Config(settings.Photographs):
    """Relative patches on CIFAR-10."""

    widths: tuple[int, ...] = (64, 128, 256)
    """Channels of the encoder; the last is the number of features."""
    head: tuple[int, ...] = (512, 512)
    """Widths of the classifier of both patches; 4096 twice in the paper."""
    patch: int = 8
    """Pixels of a patch."""
    gap: int = 3
    """Pixels between patches."""
    jitter: int = 1
    """Pixels by which a patch is moved at most."""
    colors: Literal["drop", "project", "keep"] = "drop"
    """What closes the shortcut of chromatic aberration; gray pictures have none."""
    pixelated: float = 0.0
    """Probability that a patch is pixelated; of use where it has many pixels."""
    learning_rate: float = 0.05
    """Peak of SGD's cosine schedule, with Nesterov momentum 0.9."""
    weight_decay: float = 5e-4
    """Of the optimizer."""
    out: Path = Path("runs/relative_patch_cifar10")
    """Where everything is written; a run found there is continued."""


SMOKE = Config(
    dataset="digits",
    widths=(8,),
    head=(8,),
    patch=2,
    gap=1,
    jitter=0,
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
    pair = pair_views(
        config.patch,
        gap=config.gap,
        jitter=config.jitter,
        drop=config.colors == "drop",
        pixelated=config.pixelated,
    )

    def views(key: PRNGKeyArray, image: Array) -> dict[str, Array]:
        flip_key, key = jax.random.split(key)
        return pair(key, ops.random_horizontal_flip(flip_key, image))

    model = RelativePatch(
        ConvNet(config.widths, axis_name="data"),
        config.head,
        project=config.colors == "project",
        axis_name="data",
    )

    def pictures(out: Path, state: train.TrainState, split: protocol.Split) -> None:
        images = ops.to_float(split["image"][:12])
        made = jax.vmap(pair)(jax.random.split(jax.random.key(0), len(images)), images)
        patches = made["patch1"], made["patch2"]
        variables = {"params": state.params, **state.model_state}
        _, logits = model.apply(variables, *patches, train=False)
        right, guess = np.asarray(made["direction"]), np.argmax(logits, axis=1)
        rows = [placed(*patches, which, config.gap) for which in (right, guess)]
        draw.save_image_sheet(
            out / "pairs.png",
            np.stack(rows, axis=1).reshape(-1, *rows[0].shape[1:]),
            column_titles=["truth", "guess"] * 3,
        )

    rate = optax.cosine_decay_schedule(config.learning_rate, config.num_steps)
    decay = optax.add_decayed_weights(config.weight_decay)
    optimizer = optax.chain(decay, optax.sgd(rate, momentum=0.9, nesterov=True))
    return protocol.pretrain(
        config,
        dataset=config.dataset,
        method=augmented(relative_patch(model), views, "data"),
        views=views,
        optimizer=optimizer,
        pictures=pictures,
    )


def placed(first: Array, second: Array, direction: np.ndarray, gap: int) -> np.ndarray:
    """Pictures of the first patches with the second ones in the given directions."""
    size = first.shape[1]
    step = size + gap
    side = 3 * size + 2 * gap
    sheet = np.full((len(first), side, side, first.shape[3]), 0.85, np.float32)
    sheet[:, step : step + size, step : step + size] = first
    for i, which in enumerate(direction):
        row, column = (step * (1 + d) for d in DIRECTIONS[which])
        sheet[i, row : row + size, column : column + size] = second[i]
    return sheet.clip(0, 1)


if __name__ == "__main__":
    main(tyro.cli(Config))
