"""U-Net on neurons under an electron microscope: 24 slices to learn from, 6 to be judged by.

    python -m experiments.segmentation.unet_isbi
    python -m experiments.segmentation.unet_isbi --dataset shape_masks   without any files

The defaults are for two CPU cores. The paper's network, sizes and optimizer:

    python -m experiments.segmentation.unet_isbi --padding valid --tile 388
        --widths 64 128 256 512 1024 --no-batch-norm --batch-size 1 --optimizer sgd
        --learning-rate 0.01 --w0 10 --num-steps 40000

Slices are cut at random places, flipped, turned by quarters, warped by a smooth random
field and made lighter or darker, all inside the compiled step. Gaps between cells may be
given the weights of equation 2. For judging, a slice is answered tile by tile. Nothing is
chosen on the test slices but the threshold that V_Rand takes its maximum over, which is
part of that measure. Beside the network stands what the smoothed brightness alone gives.

Measured with the first command (seed 0, 300 steps; JAX 0.10.2, two shared CPU cores under
load, 8 minutes), on the six test slices:

                  pixel error    F1 of membranes    V_Rand    V_Info
    brightness         0.281               0.567     0.868     0.927
    U-Net              0.093               0.783     0.959     0.970

Pixel error and F1 are at one half; the best threshold for V_Rand was 0.9: a membrane that is too
thick costs nothing there, a gap in it joins two cells.

Ronneberger, Fischer and Brox, https://arxiv.org/abs/1505.04597.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from jaxml import data, draw, nn, ops, parallel, segmentation, train
from jaxml.compose import augmented
from jaxml.metrics import cell_regions, membrane_scores
from jaxml.typing import Array, PRNGKeyArray


@dataclass(frozen=True)
class Config:
    """U-Net on membranes."""

    dataset: Literal["isbi_membrane", "shape_masks"] = "isbi_membrane"
    """The micrographs of the data folder, or drawn shapes for cells."""
    widths: tuple[int, ...] = (16, 32, 64, 128)
    """Channels of the levels, the bottom last."""
    padding: Literal["same", "valid"] = "same"
    """Of the convolutions; "valid" is the paper's."""
    batch_norm: bool = True
    """Batch norm after every convolution; the paper has none."""
    dropout: float = 0.5
    """Rate at the bottom."""
    tile: int = 128
    """Pixels that a training sample answers for, along a side."""
    w0: float = 5.0
    """Weight of the gaps between cells, equation 2; 0 has none. The paper's is 10."""
    sigma: float = 5.0
    """How wide such a gap may be, in pixels."""
    elastic: float = 6.0
    """Deviation of the elastic displacements, in pixels."""
    num_steps: int = 300
    """Optimizer updates."""
    batch_size: int = 4
    """Samples per update, over all devices."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """Adam, or momentum 0.99 as in the paper."""
    learning_rate: float = 3e-3
    """Its peak; a cosine leads down to nothing."""
    seed: int = 0
    """Seed of initialisation, data order and augmentation."""
    save_every: int = 100
    """Steps between checkpoints."""
    data_dir: Path | None = None
    """Folder of the original files; by default the one JAXML_DATA_DIR names."""
    distributed: str | None = None
    """Several processes: "auto" on a cluster, or "HOST:PORT,ID/COUNT"."""
    out: Path = Path("runs/unet_isbi")
    """Where everything is written; a run found there is continued."""


SMOKE = Config(dataset="shape_masks", widths=(4, 8), tile=24, num_steps=2, batch_size=8)


def main(config: Config) -> Mapping[str, float]:
    """Trains, judges on the test slices, draws, and returns the scores."""
    parallel.initialize(config.distributed)
    run = train.Run(
        config.out, config, ("out", "save_every", "data_dir", "distributed")
    )
    slices, asked = (load(config, split) for split in ("train", "test"))
    # A short epoch of few slices: each is there many times, cut anew every time.
    slices = {k: np.concatenate([v] * 8) for k, v in slices.items()}
    batches = data.load(
        data.from_arrays({"train": slices}),
        split="train",
        batch_size=config.batch_size,
        seed=config.seed,
    )
    model = network(config)
    names = ("image", "label", "weight")
    method = augmented(segmentation.unet(model), views(config), "data", inputs=names)
    rate = optax.cosine_decay_schedule(config.learning_rate, config.num_steps)
    optimizer = (
        optax.adam(rate) if config.optimizer == "adam" else optax.sgd(rate, 0.99)
    )
    init_key, run_key = jax.random.split(jax.random.key(config.seed))
    mesh = parallel.data_mesh()
    state = train.init_state(method, optimizer, init_key, next(iter(batches)))
    step = train.gradient_step(method, optimizer, run_key, "data")
    state = train.fit(
        parallel.data_parallel(step, mesh),
        parallel.replicate(state, mesh),
        batches,
        config.num_steps,
        run=run,
        log_every=20,
        save_every=config.save_every,
    )
    cells = asked["label"] == 1
    found = probabilities(config, jax.device_get(state), asked["image"])
    results = {
        f"{name}/{measure}": value
        for name, p in (("brightness", brightness(asked["image"])), ("unet", found))
        for measure, value in membrane_scores(p, cells).items()
    }
    if jax.process_index() == 0:
        print(table(results))
        (run.path / "results.json").write_text(json.dumps(results, indent=2) + "\n")
        picture(run.path / "membranes.png", asked["image"], cells, found)
        picture_views(run.path / "views.png", config, slices)
        print(f"\npictures and reports: {config.out}")
    return results


def load(config: Config, split: str) -> dict[str, np.ndarray]:
    """Grey slices, their cells, and the weights of the gaps."""
    if config.dataset == "shape_masks":
        drawn = data.load_arrays("shape_masks", f"{split}[:8]", size=64, max_shapes=8)
        image = np.uint8(drawn["image"].mean(axis=-1, keepdims=True))
        label = np.uint8(drawn["label"] > 0)
    else:
        arrays = data.load_arrays(config.dataset, split, data_dir=config.data_dir)
        image, label = arrays["image"], arrays["label"]
    weight = [
        segmentation.border_weights(
            one == 1, w0=config.w0, sigma=config.sigma, class_weights=(1.0, 1.0)
        )
        for one in label
    ]
    return {"image": image, "label": label, "weight": np.stack(weight)}


def network(config: Config) -> segmentation.UNet:
    """The U-Net of a configuration; it classifies into membrane and cell."""
    return segmentation.UNet(
        2,
        config.widths,
        config.padding,
        config.dropout,
        norm=nn.BatchNorm if config.batch_norm else None,
        axis_name="data",
    )


def sizes(config: Config) -> tuple[int, int]:
    """Side of what the network sees, and of what it answers for."""
    depth = len(config.widths) - 1
    if config.padding == "same":
        return config.tile, config.tile
    return segmentation.unet_sizes(config.tile, depth)


def views(config: Config):
    """Random cuts of a slice, its cells and their weights, all moved alike."""
    side, _ = sizes(config)

    def cut(key: PRNGKeyArray, image: Array, label: Array, weight: Array):
        keys = jax.random.split(key, 4)
        stack = jnp.concatenate(
            [image, label[..., None].astype(image.dtype), weight[..., None]], axis=-1
        )
        short = max(side - min(stack.shape[:2]), 0)
        stack = jnp.pad(stack, ((0, short), (0, short), (0, 0)), "reflect")
        room = jnp.array(stack.shape[:2]) - side + 1
        top, left = jax.random.randint(keys[0], (2,), 0, room)
        stack = jax.lax.dynamic_slice(stack, (top, left, 0), (side, side, 3))
        turns = [lambda x, k=k: jnp.rot90(x, k) for k in range(4)]
        turn, flip = jax.random.randint(keys[1], (2,), 0, jnp.array([4, 2]))
        stack = jax.lax.switch(turn, turns, stack)
        stack = jnp.where(flip == 1, stack[:, ::-1], stack)
        field = segmentation.elastic_field(keys[2], (side, side), std=config.elastic)
        warped = segmentation.warp_image(stack, field)
        contrast, light = jax.random.uniform(
            keys[3], (2,), minval=jnp.array([0.8, -0.1]), maxval=jnp.array([1.25, 0.1])
        )
        return {
            "image": centred(contrast * (warped[..., :1] - 0.5) + 0.5 + light),
            "label": segmentation.warp_labels(stack[..., 1], field).astype(jnp.int32),
            "weight": warped[..., 2],
        }

    return cut


def centred(image: Array) -> Array:
    """Brightness with a mean near 0 and a deviation near 1."""
    return ops.normalize(image, 0.5, 0.25)


def probabilities(
    config: Config, state: train.TrainState, images: np.ndarray
) -> np.ndarray:
    """Of every pixel of whole slices to lie in a cell, tile by tile."""
    model = network(config).clone(axis_name=None)
    seen, answer = sizes(config)
    margin = (seen - answer) // 2
    if config.padding == "same":
        # A margin of more than a pixel's answer depends on.
        answer, margin = min(256, images.shape[1]), 48

    def inside(tiles: Array) -> Array:
        variables = {"params": state.params, **state.model_state}
        logits = model.apply(variables, tiles, train=False)
        return jax.nn.softmax(logits.astype(jnp.float32))[..., 1:]

    @jax.jit
    def whole(image: Array) -> Array:
        image = centred(ops.to_float(image))
        return segmentation.predict_tiles(inside, image, answer, margin)

    return np.concatenate([whole(image[None])[..., 0] for image in images])


def brightness(images: np.ndarray) -> np.ndarray:
    """What a pixel's smoothed brightness says of its chance to lie in a cell."""
    smooth = [ops.gaussian_blur(ops.to_float(image), 2.0, 13) for image in images]
    return np.stack(smooth)[..., 0]


def table(results: Mapping[str, float]) -> str:
    """One line for each way to tell cells."""
    names = dict.fromkeys(name.partition("/")[0] for name in results)
    measures = dict.fromkeys(name.partition("/")[2] for name in results)
    lines = ["\non the test slices", " " * 12 + "".join(f"{m:>13}" for m in measures)]
    for name in names:
        cells = "".join(f"{results[f'{name}/{m}']:13.4f}" for m in measures)
        lines.append(f"{name:<12}{cells}")
    return "\n".join(lines)


def picture(
    path: Path, images: np.ndarray, cells: np.ndarray, found: np.ndarray
) -> None:
    """Rows of slices: as they are, true and predicted cells, and where they differ."""
    rows = []
    for image, truth, p in list(zip(images, cells, found, strict=True))[::2]:
        grey = np.repeat(image / 255.0, 3, axis=-1)
        membrane = p < 0.5
        wrong = grey.copy()
        wrong[membrane & truth] = 0.35 * wrong[membrane & truth] + [0, 0.25, 0.65]
        wrong[~membrane & ~truth] = 0.35 * wrong[~membrane & ~truth] + [0.65, 0.05, 0]
        probability = np.repeat(p[..., None], 3, axis=-1)
        rows += [grey, coloured(truth), coloured(~membrane), probability, wrong]
    draw.save_image_sheet(
        path,
        np.clip(rows, 0, 1),
        column_titles=[
            "slice",
            "true cells",
            "predicted cells",
            "probability of cell",
            "missed membrane red, invented blue",
        ],
    )


def coloured(cells: np.ndarray) -> np.ndarray:
    """Each connected cell in a colour of its own, membranes black."""
    regions = cell_regions(cells)
    colours = np.random.default_rng(0).uniform(0.25, 1, (regions.max() + 1, 3))
    colours[0] = 0
    return colours[regions]


def picture_views(path: Path, config: Config, slices: Mapping[str, np.ndarray]) -> None:
    """What the network is trained on: cuts, their cells and their weights."""
    few = [slices[name][:4] for name in ("image", "label", "weight")]
    few[0] = ops.to_float(few[0])
    drawn = jax.vmap(views(config))(jax.random.split(jax.random.key(0), 4), *few)
    image = np.clip(0.25 * np.asarray(drawn["image"])[..., 0] + 0.5, 0, 1)
    weight = np.asarray(drawn["weight"]) / np.asarray(drawn["weight"]).max()
    label = np.asarray(drawn["label"], np.float32)
    sheet = np.stack([image, label, weight], axis=1).reshape(-1, *image.shape[1:])
    draw.save_image_sheet(path, sheet, column_titles=["cut", "cells", "weights"])


if __name__ == "__main__":
    main(tyro.cli(Config))
