"""FCN on drawn shapes, or on photographs: 32s, 16s and 8s nets, and a dilated ResNet.

    python -m experiments.segmentation.fcn_shapes
    python -m experiments.segmentation.fcn_shapes --network fcn32s
    python -m experiments.segmentation.fcn_shapes --network dilated
    python -m experiments.segmentation.fcn_shapes --dataset coco128_masks --image-size 128

Discs, squares and triangles on a patchy ground are made on the spot. COCO128 has a hundred
photographs, of which 80 are to learn from: a network that starts from nothing learns little
more there than what is sky, grass and person. The paper's network:

    python -m experiments.segmentation.fcn_shapes --width 64 --hidden 4096
        --stage-sizes 2 2 3 3 3 --no-batch-norm --padding caffe

The measures are the paper's four, over all pixels of the test split.

Measured with the first command (FCN-8s, seed 0, 1000 steps; JAX 0.10.2, two shared CPU cores
under load, 12 minutes), on 500 drawn pictures of the test split:

    mean IoU              0.759      IoU of ground    0.955
    pixel accuracy        0.954             disk      0.814
    mean accuracy         0.841             square    0.703
    weighted IoU          0.916             triangle  0.563

The other commands were not run to the end.

Long, Shelhamer and Darrell, https://arxiv.org/abs/1411.4038.
"""

import colorsys
import json
from collections.abc import Iterable, Mapping
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
from jaxml.method import Batch
from jaxml.metrics import mean_iou
from jaxml.typing import Array, PRNGKeyArray

STRIDES = {"fcn32s": 32, "fcn16s": 16, "fcn8s": 8}


@dataclass(frozen=True)
class Config:
    """FCN on label maps."""

    dataset: Literal["shape_masks", "coco128_masks"] = "shape_masks"
    """Drawn shapes, or the photographs of the data folder."""
    classes: tuple[str, ...] = ("person", "sky-other-merged", "grass-merged")
    """Of the photographs, the classes that are told; all else is one more."""
    image_size: int = 64
    """Side of the pictures in pixels."""
    network: Literal["fcn32s", "fcn16s", "fcn8s", "dilated"] = "fcn8s"
    """How fine the scores are that are upsampled last."""
    padding: Literal["same", "caffe"] = "same"
    """Of a VGG; "caffe" pads the picture by 100 pixels as the authors did."""
    stage_sizes: tuple[int, ...] = (1, 1, 2, 2, 2)
    """Convolutions in each stage of the VGG."""
    width: int = 16
    """Channels of the first stage."""
    hidden: int = 256
    """Channels of the layers that were dense."""
    batch_norm: bool = True
    """Batch norm in the VGG; the paper has none."""
    num_train: int = 2000
    """Pictures to learn from, if they are drawn."""
    num_test: int = 500
    """Pictures to be judged by, if they are drawn."""
    num_steps: int = 1000
    """Optimizer updates."""
    batch_size: int = 16
    """Pictures per update, over all devices."""
    learning_rate: float = 2e-3
    """Peak of Adam's cosine schedule."""
    seed: int = 0
    """Seed of initialisation, data order and augmentation."""
    save_every: int = 100
    """Steps between checkpoints."""
    data_dir: Path | None = None
    """Folder of the original files; by default the one JAXML_DATA_DIR names."""
    distributed: str | None = None
    """Several processes: "auto" on a cluster, or "HOST:PORT,ID/COUNT"."""
    out: Path = Path("runs/fcn_shapes")
    """Where everything is written; a run found there is continued."""


SMOKE = Config(
    image_size=32,
    stage_sizes=(1, 1, 1, 1, 1),
    width=2,
    hidden=4,
    num_train=16,
    num_test=8,
    num_steps=2,
    batch_size=8,
)


def main(config: Config) -> Mapping[str, float]:
    """Trains, judges on the test split, draws, and returns the measures."""
    parallel.initialize(config.distributed)
    run = train.Run(
        config.out, config, ("out", "save_every", "data_dir", "distributed")
    )
    source, parts = dataset(config)
    described = data.describe(**source)
    batches = data.load(
        split=parts["train"], batch_size=config.batch_size, seed=config.seed, **source
    )
    asked = data.load_arrays(split=parts["test"], **source)
    method = augmented(
        segmentation.fcn(network(config, len(described.classes))),
        view,
        "data",
        inputs=("image", "label"),
    )
    optimizer = optax.adam(
        optax.warmup_cosine_decay_schedule(
            0.0, config.learning_rate, config.num_steps // 20, config.num_steps
        )
    )
    init_key, run_key = jax.random.split(jax.random.key(config.seed))
    mesh = parallel.data_mesh()
    state = train.init_state(method, optimizer, init_key, next(iter(batches)))
    step = train.gradient_step(method, optimizer, run_key, "data")
    metric = mean_iou(len(described.classes), class_names=described.classes)

    state = train.fit(
        parallel.data_parallel(step, mesh),
        parallel.replicate(state, mesh),
        batches,
        config.num_steps,
        run=run,
        log_every=20,
        save_every=config.save_every,
    )
    results = known(train.evaluate(method, state, slices(asked), metric))
    if jax.process_index() == 0:
        print("\non the test split")
        for name, value in results.items():
            print(f"{name:<20}{value:8.4f}")
        (run.path / "results.json").write_text(json.dumps(results, indent=2) + "\n")
        few = {name: array[:8] for name, array in asked.items()}
        predicted = train.predict(method, state, slices(few))
        picture(run.path / "labels.png", few["image"], few["label"], predicted)
        print(f"\npictures and reports: {config.out}")
    return results


def dataset(config: Config) -> tuple[dict, dict[str, str]]:
    """The arguments that `jaxml.data` takes, and which part is for what."""
    if config.dataset == "shape_masks":
        parts = {
            "train": f"train[:{config.num_train}]",
            "test": f"test[:{config.num_test}]",
        }
        return {"name": "shape_masks", "size": config.image_size}, parts
    options = {"image_size": config.image_size, "only": config.classes}
    source = {"name": config.dataset, "data_dir": config.data_dir, **options}
    return source, {"train": "train", "test": "test"}


def network(
    config: Config, num_classes: int
) -> segmentation.FCN | segmentation.DilatedFCN:
    """The network of a configuration."""
    if config.network == "dilated":
        options = {"width": config.width, "axis_name": "data"}
        return segmentation.DilatedFCN(
            nn.resnet18(**options, **nn.dilated(8)),
            num_classes,
            hidden=2 * config.width,
            axis_name="data",
        )
    backbone = nn.VGG(
        config.stage_sizes,
        width=config.width,
        norm=nn.BatchNorm if config.batch_norm else None,
        first_padding={"same": 1, "caffe": 100}[config.padding],
        axis_name="data",
    )
    return segmentation.FCN(
        backbone,
        num_classes,
        stride=STRIDES[config.network],
        padding=config.padding,
        hidden=config.hidden,
        axis_name="data",
    )


def view(key: PRNGKeyArray, image: Array, label: Array) -> dict[str, Array]:
    """A picture and its labels, which may both look the other way."""
    flip = jax.random.bernoulli(key)
    return {
        "image": jnp.where(flip, image[:, ::-1], image),
        "label": jnp.where(flip, label[:, ::-1], label),
    }


def slices(split: Mapping[str, np.ndarray], size: int = 50) -> Iterable[Batch]:
    """A split in batches, in order."""
    for i in range(0, len(split["image"]), size):
        yield {name: split[name][i : i + size] for name in ("image", "label")}


def known(values: Mapping[str, float]) -> dict[str, float]:
    """What has a value: a class that nowhere occurs has none."""
    return {name: value for name, value in values.items() if np.isfinite(value)}


def picture(
    path: Path, images: np.ndarray, labels: np.ndarray, predicted: np.ndarray
) -> None:
    """Each row a picture, its labels, and what was predicted."""
    top = max(labels[labels < 255].max(initial=0), predicted.max()) + 1
    wheel = [colorsys.hsv_to_rgb(k / max(top - 1, 1), 0.75, 0.95) for k in range(top)]
    colours = np.full((256, 3), 0.5)  # what is not labelled is grey
    colours[1:top] = wheel[: top - 1]
    colours[0] = 0
    rows = np.stack(
        [np.asarray(ops.to_float(images)), colours[labels], colours[predicted]], axis=1
    )
    draw.save_image_sheet(
        path,
        rows.reshape(-1, *images.shape[1:]),
        column_titles=["picture", "labels", "predicted"],
        scale=max(1, round(128 / images.shape[1])),
    )


if __name__ == "__main__":
    main(tyro.cli(Config))
