"""Receptive fields of backbones: what a unit can see, and what counts for it.

    python -m experiments.ops.receptive_field_backbones
    python -m experiments.ops.receptive_field_backbones --drawn resnet50 --seeds 8
    python -m experiments.ops.receptive_field_backbones --drawn      the table alone

A table of the size and stride of every stage of every backbone, read off the networks'
jaxprs. Of those in `--drawn`, fresh ones, `effective.png` shows the pixels whose gradient
counts for the central unit: a bell far smaller than the square that the unit may see, which
is framed where it is smaller than the image. `width` is twice the bell's standard deviation,
of squared gradients, in pixels.

Measured (JAX 0.10.2), size and stride in pixels of the last stage, by `--drawn` with nothing
behind it:

    resnet18  435 / 32    resnet50 fpn, p2      459 / 4     darknet19  374 / 32
    resnet34  899 / 32    resnet50 fpn, p5      491 / 32    darknet53  725 / 32
    resnet50  427 / 32    vgg16, before pool5   196 / 16    dla34      623 / 32
    resnet101 971 / 32    vgg19, before pool5   252 / 16    hourglass 5851 / 4, two 11611 / 4

and the width at 256 pixels beside the size, fresh networks of seeds 0 and 1, by
`--backbones resnet18 resnet50 vgg16`; the units of the last stages of the ResNets see past
the edge of these images:

    resnet18  11.7 of 43   21.6 of 99   40.9 of 211   81.8 of 435
    resnet50  10.1 of 35   21.0 of 91   51.8 of 267   79.6 of 427
    vgg16      5.1 of 14   12.5 of 40   26.3 of 92    52.3 of 196
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from matplotlib import colormaps

from jaxml import draw, nn, ops, train
from jaxml.typing import Array


class Pyramid(linen.Module):
    """A feature pyramid on a backbone."""

    backbone: linen.Module

    @linen.compact
    def __call__(self, x: Array, *, train: bool) -> Any:
        return nn.FPN()(self.backbone.pyramid(x, train=train), train=train)


STAGES: dict[str, Any] = {"train": False, "method": "pyramid"}
BACKBONES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "resnet18": (nn.resnet18, STAGES),
    "resnet34": (nn.resnet34, STAGES),
    "resnet50": (nn.resnet50, STAGES),
    "resnet101": (nn.resnet101, STAGES),
    "resnet50 fpn": (lambda: Pyramid(nn.resnet50()), {"train": False}),
    "vgg16": (nn.vgg16, STAGES),
    "vgg19": (nn.vgg19, STAGES),
    "darknet19": (nn.darknet19, STAGES),
    "darknet53": (nn.darknet53, STAGES),
    "dla34": (nn.dla34, {"train": False, "pyramid": True}),
    "hourglass": (nn.Hourglass, {"train": False}),
}
"""How each is made, and what gives its maps."""
SHOWN = 4
"""Stages of each that are drawn, the last ones."""


@dataclass(frozen=True)
class Config:
    """Receptive fields of backbones."""

    backbones: tuple[str, ...] = tuple(BACKBONES)
    """Those of the table."""
    drawn: tuple[str, ...] = ("resnet18", "resnet50", "vgg16")
    """Those of them whose effective fields are computed, which takes gradients."""
    size: int = 256
    """Side of the images, in pixels."""
    seeds: int = 2
    """Fresh networks whose gradients are averaged."""
    out: Path = Path("runs/receptive_field_backbones")
    """Where the picture is written."""


SMOKE = Config(backbones=("resnet18", "vgg16"), drawn=("resnet18",), size=32, seeds=1)


def main(config: Config) -> Mapping[str, float]:
    """Prints the table, draws the picture; returns sizes and widths."""
    if unknown := sorted({*config.backbones, *config.drawn} - set(BACKBONES)):
        raise SystemExit(f"backbones are {', '.join(BACKBONES)}; got {unknown}")
    run, results, pictures = train.Run(config.out, config), {}, []
    print(f"{'':<22}{'stride':>8}{'size':>8}{'width':>10}   pixels")
    for name in config.backbones:
        make, options = BACKBONES[name]
        model, example = make(), jnp.zeros((1, config.size, config.size, 3))
        init = partial(model.init, train=False)
        shapes = jax.eval_shape(init, jax.random.key(0), example)
        fields = named(ops.receptive_field_of(model, shapes, example, **options))
        maps = {}
        if name in config.drawn:
            stages = list(fields)[-SHOWN:]
            maps = effective(model, options, example, stages, config.seeds)
        for stage, (field, _) in fields.items():
            results[f"{name}/{stage}/size"], text = float(field.size), ""
            if stage in maps:
                width = 2 * spread(maps[stage])
                results[f"{name}/{stage}/width"], text = width, f"{width:.1f}"
                pictures.append(framed(maps[stage], field))
            title = f"{name} {stage}"
            print(f"{title:<22}{field.jump!s:>8}{field.size:>8}{text:>10}", flush=True)
    if pictures:
        draw.save_image_sheet(
            run.path / "effective.png",
            np.stack(pictures),
            columns=SHOWN,
            row_titles=[name for name in config.backbones if name in config.drawn],
        )
        print(f"\npicture: {run.path / 'effective.png'}")
    run.log(0, results)
    return results


def named(maps: Any) -> dict[str, Any]:
    """Maps by name; hourglasses, which stand one behind the other, are numbered."""
    if isinstance(maps, dict):
        return maps
    return {f"stack{number}": one for number, one in enumerate(maps, 1)}


def effective(
    model: Any,
    options: dict[str, Any],
    example: Array,
    stages: list[str],
    seeds: int,
) -> dict[str, np.ndarray]:
    """For every stage the effective receptive field, over fresh networks."""
    totals: dict[str, np.ndarray] = {}
    for seed in range(seeds):
        init_key, image_key, key = jax.random.split(jax.random.key(seed), 3)
        variables = jax.jit(partial(model.init, train=False))(init_key, example)
        images = jax.random.normal(image_key, example.shape)
        for stage in stages:

            def function(
                x: Array, stage: str = stage, variables: Any = variables
            ) -> Array:
                return named(model.apply(variables, x, **options))[stage]

            found = np.asarray(ops.effective_receptive_field(function, images, key))
            totals[stage] = totals.get(stage, 0) + found / seeds
    return totals


def framed(energy: np.ndarray, field: ops.ReceptiveField) -> np.ndarray:
    """The bell in colour, and the square that the central unit may see."""
    image = np.float32(colormaps["inferno"](np.sqrt(energy / energy.max()))[..., :3])
    side = len(energy)
    first, last = field.interval(int(side / field.jump) // 2) or (0, -1)
    for edge in (first - 1, last + 1):
        if 0 <= edge < side:
            inside = slice(max(first - 1, 0), last + 2)
            image[edge, inside] = image[inside, edge] = (0.4, 0.8, 1.0)
    return image


def spread(field: np.ndarray) -> float:
    """Standard deviation in pixels, the mean of both axes, of squared gradients."""
    energy = np.square(field)
    energy = energy / energy.sum()
    variances = []
    for axis in (0, 1):
        weight, place = energy.sum(1 - axis), np.arange(field.shape[axis])
        variances.append(weight @ place**2 - (weight @ place) ** 2)
    return float(np.sqrt(np.mean(variances)))


if __name__ == "__main__":
    main(tyro.cli(Config))
