"""SimCLR's two views per image: jaxml jitted, lightly on Pillow, torchvision on tensors.

    python -m experiments.bench.augment

All make the same thing from bytes: two views of each source image, in float32 and without
normalization. At 32 pixels as on CIFAR-10 (half the jitter, no blur), at 96 and 224 as on
ImageNet (blur; 224 from images of 256). The peers work on one image at a time, as in a
worker of a data loader; jaxml on a batch, on all cores. Rounds alternate, medians count.
Columns: source images per second of the clock, and per second of processor time, which is
per core and hardly sees what else the machine does; then how many times the peer's.

2 CPU cores, jax 0.10.2, lightly 1.6.0, torchvision 0.28.0, seed 0:

    pixels  library       images/s  per core  jaxml is, per core
    32      jaxml           12,533    14,171                1.0x
            lightly            698       766               18.5x
            torchvision        554       601               23.6x
    96      jaxml              795       886                1.0x
            lightly            292       314                2.8x
            torchvision        223       232                3.8x
    224     jaxml              146       108                1.0x
            lightly             80        80                1.4x
            torchvision         35        36                3.0x

Small images are where a library that works image by image pays for its Python. At 224 both
are bound by the memory that blur and jitter go through, and Pillow blurs bytes.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.bench.torchvision_operators import declare_operators
from jaxml.ops.augment import View, to_float
from jaxml.ops.views import simclr_cifar_view, simclr_view, two_views

Run = Callable[[], Any]


@dataclass(frozen=True)
class Config:
    """What is measured, and how often."""

    sizes: tuple[int, ...] = (32, 96, 224)
    """Of the views, in pixels; 32 without blur."""
    rounds: int = 9
    """Repetitions, of which the median is taken."""
    batch_pixels: int = 2**19
    """Of the batch that jaxml gets: 512 images of 32, 8 of 256."""
    peer_pixels: int = 2**16
    """Of the images that a peer gets in each round."""
    peers: bool = True
    """Whether to run lightly and torchvision, if they are installed."""
    seed: int = 0
    """Of the images."""


def main(config: Config) -> Mapping[str, Mapping[str, float]]:
    """Prints a table, and returns its rows: images per second, per core and ratio."""
    rng = np.random.default_rng(config.seed)
    rows: dict[str, Mapping[str, float]] = {}
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    print("| views | library | images/s | images/s/core | jaxml is, per core |")
    print("|---|---|---|---|---|")
    for size in config.sizes:
        source = 256 if size == 224 else size
        num, peer_num = (
            max(1, pixels // source**2)
            for pixels in (config.batch_pixels, config.peer_pixels)
        )
        images = photographs(rng, num, source)
        runs = {"jaxml": (num, ours(images, size))}
        if config.peers:
            few = photographs(rng, peer_num, source)
            runs |= {name: (peer_num, f) for name, f in peers(few, size).items()}
        speeds = measure(runs, config.rounds)
        for name, (wall, core) in speeds.items():
            times = speeds["jaxml"][1] / core
            rows[f"{name}_{size}"] = {"wall": wall, "core": core, "times": times}
            print(f"| {size} | {name} | {wall:,.0f} | {core:,.0f} | {times:.1f}x |")
    return rows


def photographs(rng: np.random.Generator, num: int, size: int) -> np.ndarray:
    """Bytes [num, size, size, 3]; what they show does not change the time."""
    return rng.integers(0, 256, (num, size, size, 3), dtype=np.uint8)


def ours(images: np.ndarray, size: int) -> Run:
    """A function that makes two views of every image, compiled."""
    view: View = simclr_cifar_view if size == 32 else simclr_view
    pair = two_views(partial(view, size=size))

    @jax.jit
    def views(key: jax.Array, images: jax.Array) -> Mapping[str, jax.Array]:
        keys = jax.random.split(key, len(images))
        return jax.vmap(pair)(keys, to_float(images))

    on_device = jnp.asarray(images)
    key = jax.random.key(0)
    return lambda: jax.block_until_ready(views(key, on_device))


def peers(images: np.ndarray, size: int) -> dict[str, Run]:
    """The same for the libraries that are installed."""
    try:
        import torch
    except ImportError:
        return {}
    torch.set_num_threads(1)
    declare_operators()
    runs: dict[str, Run] = {}
    small = size == 32
    try:
        from lightly.transforms import SimCLRTransform
        from PIL import Image

        transform = SimCLRTransform(
            input_size=size,
            cj_strength=0.5 if small else 1.0,
            gaussian_blur=0.0 if small else 0.5,
            normalize=None,
        )
        pictures = [Image.fromarray(image) for image in images]
        runs["lightly"] = lambda: [transform(picture) for picture in pictures]
    except ImportError:
        pass
    try:
        from torchvision.transforms import v2

        strength = 0.5 if small else 1.0
        jitter = v2.ColorJitter(*[0.8 * strength] * 3, 0.2 * strength)
        blur = v2.GaussianBlur(size // 10 // 2 * 2 + 1, (0.1, 2.0))
        view = v2.Compose(
            [
                v2.RandomResizedCrop(size, antialias=True),
                v2.RandomHorizontalFlip(),
                v2.RandomApply([jitter], 0.8),
                v2.RandomGrayscale(0.2),
                *([] if small else [v2.RandomApply([blur], 0.5)]),
                v2.ToDtype(torch.float32, scale=True),
            ]
        )
        tensors = list(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous())
        runs["torchvision"] = lambda: [(view(x), view(x)) for x in tensors]
    except ImportError:
        pass
    return runs


def measure(
    runs: Mapping[str, tuple[int, Run]], rounds: int
) -> dict[str, tuple[float, float]]:
    """(images per second, images per second of processor time), medians over rounds."""
    walls: dict[str, list[float]] = {name: [] for name in runs}
    cores: dict[str, list[float]] = {name: [] for name in runs}
    for _, run in runs.values():
        run()  # compiles, warms up
    for _ in range(rounds):
        for name, (num, run) in runs.items():
            wall, core = time.perf_counter(), time.process_time()
            run()
            cores[name].append(num / (time.process_time() - core))
            walls[name].append(num / (time.perf_counter() - wall))
    return {name: (median(walls[name]), median(cores[name])) for name in runs}


if __name__ == "__main__":
    main(tyro.cli(Config))
