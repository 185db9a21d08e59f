"""Colorization of natural images: CIFAR-10, or a folder of pictures like it.

    python -m experiments.ssl.colorization_cifar10                         TFDS's CIFAR-10
    python -m experiments.ssl.colorization_cifar10 --dataset cifar10_jpg   pictures in a folder
    python -m experiments.ssl.colorization_cifar10 --mix 1                 no rebalancing

The paper's bins, soft codes, rebalancing and annealed mean; the share of each colour is
counted in the training split. `colours.png` shows pictures of the test split in gray, as
the network colours them, and in truth. The protocol stands in `experiments/ssl/protocol.py`.

Measured with the second command and `--num-steps 156 --widths 32 64 128 --up-width 64`
on 10,000 + 2,000 pictures of CIFAR-10 (seed 0, two epochs; JAX 0.10.2, two shared CPU
cores, 8 minutes), accuracy on the test split in percent:

                 kNN    linear probe, 10 labels per class
    pixels      25.9    26.7
    untrained   30.1    19.2
    trained     35.1    24.2

Two epochs of colours help the neighbours by 5 points and ten labels per class likewise; in
the pictures the sky is blue, and all else brown.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import optax
import tyro

from experiments.ssl import protocol, settings
from jaxml import data, draw, ops, train
from jaxml.compose import augmented
from jaxml.ssl import (
    Colorization,
    color_prior,
    color_weights,
    colorization,
    colorize,
    gamut_bins,
)
from jaxml.typing import Array, PRNGKeyArray


@dataclass(frozen=True)
class Config(settings.Photographs):
    """Colorization on CIFAR-10."""

    widths: tuple[int, ...] = (64, 128, 256)
    """Channels of the encoder's blocks; the last is the number of features."""
    layers: int = 2
    """Convolutions of a block."""
    up_width: int = 128
    """Channels where colours are told."""
    grid: int = 10
    """Distance of the bins, in units of Lab."""
    mix: float = 0.5
    """Share of the uniform distribution in the prior; 1 weighs all pixels alike."""
    temperature: float = 0.38
    """Of the annealed mean."""
    counted: int = 5000
    """Training pictures in which colours are counted."""
    learning_rate: float = 1e-3
    """Peak of AdamW's cosine schedule, which a twentieth of the steps leads up to."""
    weight_decay: float = 1e-3
    """Of AdamW."""
    out: Path = Path("runs/colorization_cifar10")
    """Where everything is written; a run found there is continued."""


def main(config: Config) -> Mapping[str, float]:
    """Trains and judges every seed; returns mean accuracies."""
    return protocol.run_seeds(config, run_one)


def run_one(config: Config) -> protocol.Results:
    """One seed."""
    source = {"name": config.dataset, "data_dir": config.data_dir}
    images = data.load_arrays(split=f"train[:{config.counted}]", **source)["image"]
    bins = gamut_bins(config.grid)
    weights = color_weights(color_prior(images, bins), bins, mix=config.mix)
    low, high = weights.min(), weights.max()
    print(f"{len(bins)} bins, weights {low:.3g} to {high:.3g}")
    # Two halvings, one doubling: colours are told of every second pixel.
    blocks = [
        (width, config.layers, 2 if i < 2 else 1, 2 if i >= 2 else 1)
        for i, width in enumerate(config.widths)
    ]
    model = Colorization(blocks, config.up_width, len(bins), "data")

    def views(key: PRNGKeyArray, image: Array) -> dict[str, Array]:
        flip_key, key = jax.random.split(key)
        side = image.shape[0]
        crop = ops.random_resized_crop(key, image, side, area=(0.5, 1.0))
        return {"view": ops.random_horizontal_flip(flip_key, crop)}

    def pictures(out: Path, state: train.TrainState, split: protocol.Split) -> None:
        truth = ops.to_float(split["image"][:8])
        light = ops.rgb_to_lab(truth)[..., :1]
        variables = {"params": state.params, **state.model_state}
        _, logits = model.apply(variables, light / 50 - 1, train=False)
        gray = np.repeat(light / 100, 3, axis=-1)
        mean, mode = (
            colorize(truth, logits, bins, t) for t in (1.0, config.temperature)
        )
        columns = [gray, mean, mode, truth]
        draw.save_image_sheet(
            out / "colours.png",
            np.stack(columns, axis=1).reshape(-1, *truth.shape[1:]),
            column_titles=["lightness", "mean", "annealed", "truth"],
        )

    rate = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, config.num_steps // 20, config.num_steps
    )
    method = colorization(model, bins, weights, temperature=config.temperature)
    return protocol.pretrain(
        config,
        dataset=config.dataset,
        method=augmented(method, views, "data"),
        views=views,
        optimizer=optax.adamw(rate, weight_decay=config.weight_decay),
        pictures=pictures,
    )


if __name__ == "__main__":
    main(tyro.cli(Config))
