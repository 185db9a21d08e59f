"""Jigsaw puzzles of natural images: CIFAR-10, or a folder of pictures like it.

    python -m experiments.ssl.jigsaw_cifar10                         TFDS's CIFAR-10
    python -m experiments.ssl.jigsaw_cifar10 --dataset cifar10_jpg   pictures in a folder
    python -m experiments.ssl.jigsaw_cifar10 --num-permutations 1000 --num-steps 78000

Nine tiles of 8 pixels, each cropped from a cell of 10, the share that the paper has.
`puzzles.png` shows puzzles of the test split and how the network solves them. The protocol
stands in `experiments/ssl/protocol.py`.

Measured with the second command and `--num-steps 156 --widths 32 64 128` on 10,000 +
2,000 pictures of CIFAR-10 (seed 0, two epochs; JAX 0.10.2, two shared CPU cores, 6
minutes), accuracy on the test split in percent:

                 kNN    linear probe, 10 labels per class
    pixels      25.9    26.7
    untrained   32.2    21.0
    trained     32.4    23.6

Two epochs are too few for a puzzle of 100 permutations: 2 to 4 % of a batch are solved
(chance: 1 %), and the features gain nothing but for the few labels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments.ssl import protocol, settings
from jaxml import draw, ops, train
from jaxml.compose import augmented
from jaxml.nn import ConvNet
from jaxml.ssl import (
    Jigsaw,
    hamming_distances,
    hamming_permutations,
    jigsaw,
    jigsaw_views,
    shuffle_tiles,
)
from jaxml.typing import Array, PRNGKeyArray


@dataclass(frozen=True)
class Config(settings.Photographs):
    """Jigsaw puzzles on CIFAR-10."""

    widths: tuple[int, ...] = (64, 128, 256)
    """Channels of the encoder; the last is the number of features."""
    dim: int = 128
    """Size of a tile's code; 512 in the paper."""
    head: tuple[int, ...] = (512,)
    """Widths of the classifier's hidden layers; 4096 in the paper."""
    grid: int = 3
    """Tiles a side."""
    tile: int = 8
    """Pixels of a tile."""
    num_permutations: int = 100
    """That are told apart; 1000 in the paper."""
    rule: Literal["mean", "max", "middle"] = "max"
    """By which permutations are chosen; "mean" is the paper's."""
    grayscale: float = 0.3
    """Share of pictures that are made gray."""
    channel_jitter: int = 1
    """Pixels by which the colours of a tile are moved against each other; 2 in the paper."""
    learning_rate: float = 0.05
    """Peak of SGD's cosine schedule, with Nesterov momentum 0.9."""
    weight_decay: float = 5e-4
    """Of the optimizer."""
    out: Path = Path("runs/jigsaw_cifar10")
    """Where everything is written; a run found there is continued."""


SMOKE = Config(
    dataset="digits",
    widths=(8,),
    dim=4,
    head=(8,),
    grid=2,
    tile=3,
    num_permutations=6,
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
    permutations = hamming_permutations(
        config.num_permutations, config.grid**2, rule=config.rule
    )
    mean, least = hamming_distances(permutations)
    print(f"permutations differ in {mean:.2f} places on average, in {least} at least")
    cut = jigsaw_views(
        (config.grid, config.grid),
        config.tile,
        grayscale=config.grayscale,
        channel_jitter=config.channel_jitter,
    )

    def views(key: PRNGKeyArray, image: Array) -> dict[str, Array]:
        flip_key, key = jax.random.split(key)
        return cut(key, ops.random_horizontal_flip(flip_key, image))

    model = Jigsaw(
        ConvNet(config.widths, axis_name="data"),
        config.num_permutations,
        config.dim,
        config.head,
        axis_name="data",
    )

    def pictures(out: Path, state: train.TrainState, split: protocol.Split) -> None:
        images = ops.to_float(split["image"][:6])
        keys = jax.random.split(jax.random.key(0), len(images))
        tiles = jax.vmap(cut)(keys, images)["tiles"]
        drawn = np.arange(len(images)) * 7 % config.num_permutations
        shown = shuffle_tiles(tiles, permutations[drawn])
        variables = {"params": state.params, **state.model_state["encoder"]}
        _, logits = model.apply(variables, shown, train=False)
        guessed = permutations[np.argmax(logits, axis=1)]
        solved = shuffle_tiles(shown, np.argsort(guessed, axis=1))
        rows = [assembled(t, config.grid) for t in (shown, solved, tiles)]
        draw.save_image_sheet(
            out / "puzzles.png",
            np.stack(rows, axis=1).reshape(-1, *rows[0].shape[1:]),
            column_titles=["puzzle", "solved", "truth"],
        )

    rate = optax.cosine_decay_schedule(config.learning_rate, config.num_steps)
    decay = optax.add_decayed_weights(config.weight_decay)
    optimizer = optax.chain(decay, optax.sgd(rate, momentum=0.9, nesterov=True))
    return protocol.pretrain(
        config,
        dataset=config.dataset,
        method=augmented(jigsaw(model, permutations), views, "data"),
        views=views,
        optimizer=optimizer,
        pictures=pictures,
    )


def assembled(tiles: Array, grid: int) -> np.ndarray:
    """Tiles side by side, with a white line around each."""
    edge = ((0, 0), (0, 0), (0, 1), (0, 1), (0, 0))
    x = jnp.pad(tiles, edge, constant_values=1.0)
    count, _, height, width, channels = x.shape
    x = x.reshape(count, grid, grid, height, width, channels).swapaxes(2, 3)
    return np.asarray(x.reshape(count, grid * height, grid * width, channels))


if __name__ == "__main__":
    main(tyro.cli(Config))
