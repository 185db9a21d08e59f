"""Pooling of regions and deformable convolution on a CPU against torchvision's C++.

    python -m experiments.bench.dense_ops --torchvision /path/to/folder

The folder holds torchvision with its operators, see `torchvision_operators.py`;
without it jaxml runs alone. One image, float32: features of 100 x 152 with 256 channels and
512 boxes of 16 to 500 pixels, 7 x 7 bins; score maps of 21 classes for the
position-sensitive kinds; for the convolution 64 x 64 with 256 channels, 3 x 3 taps. "both" is
the value and the gradients of features, and for the convolution of kernel, offsets and mask.
Rounds alternate, each run after an untimed one, and medians count: milliseconds of the
clock and of processor time. The floor is what the operation cannot do without, its
multiplications at 100 GFLOP/s and the bytes that each sample reads at 20 GB/s, on one core;
what stays in a core's cache is read faster. "jaxml is" says how many times as fast as
torchvision, by the clock.

2 CPU cores with nothing else to do (AVX-512), jax 0.10.2, torch 2.13.0, torchvision 0.28.0,
7 rounds, seed 0, one minute:

    operation           what  by             ms  of CPU  floor  jaxml is
    roi_align           out   jaxml         7.7     8.5     21
                              torchvision    75      80             9.8x
                        both  jaxml          51      63
                              torchvision   398     408             7.9x
    roi_align adaptive  out   jaxml          31      43     41
                              torchvision   118     123             3.8x
                        both  jaxml          84     116
                              torchvision   643     652             7.7x
    roi_pool            out   jaxml          30      38     10
                              torchvision    90      97             3.0x
                        both  jaxml         136     235
                              torchvision   121     136             0.9x
    ps_roi_align        out   jaxml         9.5     9.5    1.7
                              torchvision    48      51             5.0x
                        both  jaxml          43      56
                              torchvision   162     181             3.8x
    ps_roi_pool         out   jaxml          34      63    0.8
                              torchvision    22      26             0.6x
                        both  jaxml          94     136
                              torchvision    81      98             0.9x
    deform_conv2d v2    out   jaxml          22      41     56
                              torchvision   128     148             5.8x
                        both  jaxml         113     204
                              torchvision  1172    1234            10.3x

What made it fast: a few boxes at a time stay in cache, and the gradient of the features is
added up in place; where boxes need different numbers of samples, one box at a time, so that
none waits for another; a deformable convolution multiplies what one tap has read before it
reads the next. The position-sensitive kinds need one number of every line of cache that a
sample touches, 16 times the bytes of the floor, and go through their boxes from strip to
strip of the image, so that lines serve several. Averages and maxima of whole pixels
(`ps_roi_pool`, the gradients of `roi_pool`) lose. Three
other runs had 6.5x to 9.9x and 8.1x to 8.6x for roi_align, 4.7x to 5.7x and 3.7x to 4.1x for
ps_roi_align, 5.4x to 5.9x and 10.2x to 11.4x for the convolution.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.bench.torchvision_operators import load_operators
from jaxml.ops import deform_conv2d, ps_roi_align, ps_roi_pool, roi_align, roi_pool

Run = Callable[[], Any]
SCALE = 1 / 8


@dataclass(frozen=True)
class Config:
    """What is measured, and how often."""

    torchvision: Path | None = None
    """Folder of a torchvision with its operators."""
    boxes: int = 512
    """Regions of the image."""
    height: int = 100
    """Of the features."""
    width: int = 152
    """Of the features."""
    channels: int = 256
    """Of the features, also for the convolution."""
    classes: int = 21
    """Of the score maps."""
    side: int = 64
    """Of the image that is convolved."""
    only: str = ""
    """Operations whose names contain this."""
    rounds: int = 7
    """Repetitions, of which the median is taken."""
    seed: int = 0
    """Of the inputs."""


SMOKE = Config(boxes=4, height=9, width=12, channels=3, classes=2, side=6, rounds=1)


@dataclass(frozen=True)
class Case:
    """An operation, ours and theirs; gradients are those of all arrays but the last."""

    ours: Callable[..., Any]
    theirs: Callable[..., Any]
    arrays: tuple[np.ndarray, ...]
    floor: float
    """Seconds of the forward pass."""


def main(config: Config) -> Mapping[str, float]:
    """Prints a table, and returns milliseconds and ratios by operation."""
    ops = load_operators(config.torchvision) if config.torchvision else None
    rows: dict[str, float] = {}
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    print("| operation | what | by | ms | ms of CPU | floor | jaxml is |")
    print("|---|---|---|---|---|---|---|")
    for name, case in cases(config, ops).items():
        if config.only not in name:
            continue
        for both in (False, True):
            runs = {"jaxml": our_run(case, both)}
            if ops is not None:
                runs["torchvision"] = their_run(case, both)
            for by, (wall, cpu) in measure(runs, config.rounds).items():
                key = f"{name} {'both' if both else 'out'} {by}"
                rows[key] = 1e3 * wall
                ratio = wall / rows[key.replace("torchvision", "jaxml")] * 1e3
                floor = "" if both else f"{1e3 * case.floor:.1f}"
                cells = (1e3 * wall, 1e3 * cpu)
                text = " | ".join(f"{cell:.1f}" for cell in cells)
                what = "both" if both else "out"
                print(f"| {name} | {what} | {by} | {text} | {floor} | {ratio:.1f}x |")
    return rows


def cases(config: Config, ops: Any) -> dict[str, Case]:
    """The operations by name."""
    rng = np.random.default_rng(config.seed)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    features = normal(config.height, config.width, config.channels)
    scores = normal(config.height, config.width, config.classes * 49)
    boxes = random_boxes(rng, config)
    seen = pixels(boxes, config)
    samples = config.boxes * 49 * 4
    reads = 4 * config.channels  # of a pixel, in bytes
    regions = {
        "roi_align": (roi_align, {"sampling_ratio": 2, "aligned": True}, 4 * samples),
        "roi_align adaptive": (
            roi_align,
            {"sampling_ratio": 0, "aligned": True},
            4 * seen,
        ),
        "roi_pool": (roi_pool, {}, seen),
        "ps_roi_align": (ps_roi_align, {"sampling_ratio": 2}, 4 * samples),
        "ps_roi_pool": (ps_roi_pool, {}, seen),
    }
    found = {}
    for name, (f, options, count) in regions.items():
        x = scores if name.startswith("ps") else features
        own = 4 * config.classes if name.startswith("ps") else reads
        ours = partial(f, output_size=7, spatial_scale=SCALE, **options)
        theirs = partial(their_regions, ops, name.split()[0], options)
        found[name] = Case(ours, theirs, (x, boxes), floor(count * own, 0))
    side, channels = config.side, config.channels
    taps = side * side * 9
    arrays = (
        normal(1, side, side, channels),
        normal(1, side, side, 18),
        0.02 * normal(3, 3, channels, channels),
        rng.random((1, side, side, 9)).astype(np.float32),
    )
    found["deform_conv2d v2"] = Case(
        lambda x, o, k, m, _: deform_conv2d(x, o, k, mask=m),
        partial(their_convolution, ops),
        (*arrays, np.zeros(1, np.float32)),
        floor(taps * 4 * reads, 2 * taps * channels**2),
    )
    return found


def floor(num_bytes: float, flops: float) -> float:
    """Seconds at 20 GB/s and 100 GFLOP/s."""
    return num_bytes / 20e9 + flops / 100e9


def random_boxes(rng: np.random.Generator, config: Config) -> np.ndarray:
    """Boxes in the image, of 16 to 500 pixels a side."""
    size = np.array([config.width, config.height]) / SCALE
    low = rng.uniform(0, 0.9, (config.boxes, 2)) * size[None]
    side = np.exp(rng.uniform(math.log(16), math.log(500), (config.boxes, 2)))
    high = np.minimum(low + side, size[None])
    return np.concatenate([low, high], axis=1).astype(np.float32)


def pixels(boxes: np.ndarray, config: Config) -> float:
    """Pixels of features that bins cover, each bin's rounded up."""
    side = np.ceil((boxes[:, 2:] - boxes[:, :2]) * SCALE / 7)
    return float(49 * side.prod(axis=1).sum())


def our_run(case: Case, both: bool) -> Run:
    """Compiled, as a function of nothing."""
    arrays = tuple(map(jnp.asarray, case.arrays))
    if not both:
        f = jax.jit(case.ours)
        return lambda: jax.block_until_ready(f(*arrays))

    @jax.jit
    def value_and_gradients(pull: jax.Array, *arrays: jax.Array) -> Any:
        *inputs, last = arrays
        out, transpose = jax.vjp(lambda *a: case.ours(*a, last), *inputs)
        return out, transpose(pull)

    pull = jnp.ones(jax.eval_shape(case.ours, *arrays).shape)
    return lambda: jax.block_until_ready(value_and_gradients(pull, *arrays))


def their_run(case: Case, both: bool) -> Run:
    """The same by torchvision, whose channels come first."""
    import torch

    first = [
        a.transpose(2, 0, 1)[None]
        if a.ndim == 3
        else a.transpose(3, 2, 0, 1)
        if a.shape[:2] == (3, 3)
        else np.moveaxis(a, -1, 1)
        if a.ndim == 4
        else a
        for a in case.arrays
    ]
    tensors = [torch.from_numpy(np.ascontiguousarray(a)) for a in first]
    pull = torch.ones_like(case.theirs(*tensors))

    def forward() -> None:
        with torch.no_grad():
            case.theirs(*tensors)

    def value_and_gradients() -> None:
        inputs = [t.requires_grad_() for t in tensors[:-1]]
        torch.autograd.grad(case.theirs(*tensors), inputs, pull)

    return value_and_gradients if both else forward


def their_regions(
    ops: Any, name: str, options: Mapping[str, Any], x: Any, boxes: Any
) -> Any:
    """An operator of torchvision, by name."""
    import torch

    boxes = torch.cat([torch.zeros(len(boxes), 1), boxes], dim=1)
    return getattr(ops, name)(x, boxes, 7, spatial_scale=SCALE, **options)


def their_convolution(ops: Any, *tensors: Any) -> Any:
    """The deformable convolution of torchvision, of zeros around the image."""
    x, offsets, kernel, mask, _ = tensors
    return ops.deform_conv2d(x, offsets, kernel, padding=1, mask=mask)


def measure(runs: Mapping[str, Run], rounds: int) -> dict[str, tuple[float, float]]:
    """Seconds by the clock and of processor time, in alternation.

    An untimed run goes before each: what it reads is in the caches, as what another layer
    has just made would be.
    """
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for run in runs.values():
        run()  # compiles, warms up
    for _ in range(rounds):
        for name, run in runs.items():
            run()
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            cpu = time.process_time() - cpu
            times[name].append((time.perf_counter() - wall, cpu))
    return {
        name: (median(t[0] for t in found), median(t[1] for t in found))
        for name, found in times.items()
    }


if __name__ == "__main__":
    main(tyro.cli(Config))
