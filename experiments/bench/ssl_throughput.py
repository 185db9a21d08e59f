"""Images per second of self-supervised training, augmentation included, beside lightly.

    python -m experiments.bench.ssl_throughput
    python -m experiments.bench.ssl_throughput --cases simclr --batch-size 16 --num-steps 3

    simclr    ResNet-18 with a CIFAR stem, two views of 32 pixels
    byol      ResNet-50, two views of 224 pixels
    dino      ViT-S/16, two crops of 224 pixels and eight of 96

A step draws the views, runs forward and backward, and updates everything. Here it is one
compiled program, which takes uint8 images from memory. lightly draws its views with Pillow
and torchvision in the processes of a data loader, beside the step of PyTorch, from the same
images. Below the images per second stands where the time goes: each part is run on its own,
`backward` is what a gradient costs more than a loss, and `optimizer` the rest of the whole,
teacher and queue included, negative where the whole compiles to better than its parts; for
lightly `views` is the loader alone and may overlap.

Where there is a GPU both run on it. On 2 CPU cores with nothing else to do, jax 0.10.2,
PyTorch 2.13.0, seed 0, with `--cases simclr --batch-size 32 --num-steps 3` (100 s) and
`--cases byol dino --batch-size 4 --num-steps 2` (6 minutes), in ms but for the first column:

                       images/s    views   forward   backward   optimizer
    simclr   jaxml         11.1        4       730       1825         311
             lightly       14.3       70       628       1312          38
    byol     jaxml          1.3       27      1739       1477        -275
             lightly        1.2       89      1942       1566         135
    dino     jaxml          0.9       36      1574       3018        -323
             lightly        1.3      110      1524       1573         212

So 0.78, 1.1 and 0.69 of lightly's speed. The views cost next to nothing here; all else is
convolutions and products of matrices, in which XLA's CPU backend is behind PyTorch's oneDNN.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments.bench.throughput_peer import Peer
from jaxml import ops, train
from jaxml.compose import augmented
from jaxml.method import Method
from jaxml.nn import resnet18, resnet50, vit_small
from jaxml.ops import to_float
from jaxml.ops.views import Views
from jaxml.precision import mixed_precision, policy
from jaxml.ssl import BYOL, DINO, SimCLR, byol, dino, simclr

CASES = ("simclr", "byol", "dino")


@dataclass(frozen=True)
class Config:
    """What is trained, on how much, and how often."""

    cases: tuple[str, ...] = CASES
    """Which of the three."""
    batch_size: int = 64
    """Images per step."""
    num_steps: int = 10
    """Timed steps, after one that compiles."""
    small_size: int = 32
    """Of the images and views of SimCLR, in pixels."""
    size: int = 224
    """Of the images and large views of BYOL and DINO, in pixels."""
    local_size: int = 96
    """Of DINO's small crops, in pixels."""
    num_local: int = 8
    """DINO's small crops of each image."""
    num_outputs: int = 65536
    """Of DINO's head."""
    precision: Literal["float32", "mixed_bfloat16"] = "float32"
    """Of this library; lightly runs in float32, or in bfloat16 by autocast."""
    peers: bool = True
    """Whether to run lightly."""
    workers: int = 2
    """Processes of its data loader."""
    seed: int = 0
    """Of images and weights."""


class Case(NamedTuple):
    """A method, its views, and the size of the images."""

    method: Method
    views: Views
    size: int


def main(config: Config) -> Mapping[str, float]:
    """Prints a table; returns images per second as `<case>/<library>`."""
    for name in config.cases:
        if name not in CASES:
            raise ValueError(f"cases must be of {list(CASES)}, got {name!r}")
    results = {}
    for name in config.cases:
        size = config.small_size if name == "simclr" else config.size
        shape = (config.batch_size, size, size, 3)
        rng = np.random.default_rng(config.seed)
        images = rng.integers(0, 256, shape, dtype=np.uint8)
        rows = {"jaxml": measure(config, build(config, name), images)}
        if config.peers:
            rows["lightly"] = Peer(config, name).measure(images)
        for library, seconds in rows.items():
            report(name, library, seconds, config.batch_size)
            results[f"{name}/{library}"] = config.batch_size / seconds["whole"]
    return results


def report(name: str, library: str, seconds: Mapping[str, float], count: int) -> None:
    """One line for the whole, one for its parts."""
    speed = count / seconds["whole"]
    print(f"{name:<8}{library:<9}{speed:10.1f} images/s")
    parts = {part: 1e3 * value for part, value in seconds.items() if part != "whole"}
    cells = [f"{part} {value:.1f}" for part, value in parts.items()]
    print(" " * 17 + ", ".join(cells) + " ms", flush=True)


def build(config: Config, name: str) -> Case:
    """The method as in its paper."""
    if name == "simclr":
        views = partial(ops.simclr_cifar_view, size=config.small_size)
        method = simclr(SimCLR(resnet18(stem="cifar"), (512, 128)), temperature=0.5)
        return Case(method, ops.two_views(views), config.small_size)
    if name == "byol":
        views = partial(ops.byol_views, size=config.size)
        return Case(byol(BYOL(resnet50())), views, config.size)
    backbone = vit_small(image_size=config.size, any_size=True, drop_path=0.1)
    views = partial(
        ops.dino_views,
        num_local=config.num_local,
        global_size=config.size,
        local_size=config.local_size,
    )
    return Case(dino(DINO(backbone, config.num_outputs)), views, config.size)


def measure(config: Config, case: Case, images: np.ndarray) -> dict[str, float]:
    """Seconds of a step and of its parts."""
    method, key = case.method, jax.random.key(config.seed)
    if config.precision != "float32":
        method = mixed_precision(method, policy(config.precision))
    optimizer = optax.adamw(1e-3)
    batch = {"image": jnp.asarray(images)}
    whole = augmented(method, case.views)
    state = jax.jit(partial(train.init_state, whole, optimizer))(key, batch)

    @jax.jit
    def draw(key: Any, images: Any) -> Any:
        keys = jax.random.split(key, len(images))
        return jax.vmap(case.views)(keys, to_float(images))

    views = {**draw(key, batch["image"]), "image": batch["image"]}
    arguments = (state.params, state.model_state, views, key)
    seconds = partial(median_seconds, config.num_steps)
    drawing = seconds(draw, key, batch["image"])
    forward = seconds(jax.jit(method.loss), *arguments)
    gradient = jax.jit(jax.value_and_grad(method.loss, has_aux=True))
    both = seconds(gradient, *arguments)
    step = train.gradient_step(whole, optimizer, key)
    everything = seconds(jax.jit(step), state, batch)
    return {
        "whole": everything,
        "views": drawing,
        "forward": forward,
        "backward": both - forward,
        "optimizer": everything - both - drawing,
    }


def median_seconds(count: int, run: Callable[..., Any], *arguments: Any) -> float:
    """Of `count` calls, after one that compiles."""
    jax.block_until_ready(run(*arguments))
    times = []
    for _ in range(count):
        start = time.perf_counter()
        jax.block_until_ready(run(*arguments))
        times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    main(tyro.cli(Config))
