"""Receptive fields of backbones: what a unit can see, and what counts for it.

    python -m experiments.ops.receptive_field_backbones
    python -m experiments.ops.receptive_field_backbones --size 128 --seeds 4

A table of the size and stride of every stage, read off the networks' jaxprs; and, of fresh
networks, the pixels whose gradient counts for the central unit, drawn in `effective.png`: a
bell far smaller than the square it may see. `width` is twice its standard deviation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxml import draw, nn, ops, train
from jaxml.typing import Array


@dataclass(frozen=True)
class Config:
    """Receptive fields of backbones."""

    backbones: tuple[str, ...] = ("resnet18", "resnet50")
    """Of `jaxml.nn`, with a pyramid of stages."""
    size: int = 224
    """Side of the images, in pixels."""
    seeds: int = 2
    """Fresh networks whose gradients are averaged."""
    out: Path = Path("runs/receptive_field_backbones")
    """Where the picture is written."""


SMOKE = Config(backbones=("resnet18",), size=32, seeds=1)


def main(config: Config) -> Mapping[str, float]:
    """Prints the table, draws the picture; returns sizes and widths."""
    run, results, pictures = train.Run(config.out, config), {}, []
    print(f"{'':<18}{'stride':>8}{'size':>8}{'width':>10}   pixels")
    for name in config.backbones:
        model = getattr(nn, name)()
        example = jnp.zeros((1, config.size, config.size, 3))
        init = partial(model.init, train=False)
        shapes = jax.eval_shape(init, jax.random.key(0), example)
        fields = ops.receptive_field_of(
            model, shapes, example, train=False, method="pyramid"
        )
        maps = effective(model, example, list(fields), config.seeds)
        for stage, (field, _) in fields.items():
            width = 2 * spread(maps[stage])
            print(
                f"{name + ' ' + stage:<18}{int(field.jump):>8}{field.size:>8}{width:>10.1f}"
            )
            results[f"{name}/{stage}/size"] = float(field.size)
            results[f"{name}/{stage}/width"] = width
        pictures += [np.sqrt(m / m.max())[..., None] for m in maps.values()]
    sheet = np.float32(pictures)
    draw.save_image_sheet(
        run.path / "effective.png",
        sheet,
        column_titles=list(fields),
        row_titles=config.backbones,
    )
    run.log(0, results)
    print(f"\npicture: {run.path / 'effective.png'}")
    return results


def effective(
    model: Any, example: Array, stages: list[str], seeds: int
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
                return model.apply(variables, x, train=False, method="pyramid")[stage]

            found = np.asarray(ops.effective_receptive_field(function, images, key))
            totals[stage] = totals.get(stage, 0) + found / seeds
    return totals


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
