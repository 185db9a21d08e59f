"""A perceptron's boundary, moving as it learns, with and without a bias.

    python -m experiments.fundamentals.perceptron_boundary

Two clouds that a line separates, away from the origin. `moving.png` shows the boundary
after each of the first epochs, `bias.png` where it ends with a bias, without one, averaged,
and with a quadratic kernel on rings. The mistakes are printed beside the bound (R / gamma)^2.

Measured (seed 0; JAX 0.10.2, two shared CPU cores, under a minute): 51 mistakes where the
bound for the true line is 2595; without a bias 12597 in 500 epochs, and 42 % of the points are
wrong after them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import tyro

from jaxml import draw, train
from jaxml.fundamentals import perceptron


@dataclass(frozen=True)
class Config:
    """The perceptron in the plane."""

    num_points: int = 60
    """Of both clouds together."""
    margin: float = 0.3
    """Between the clouds and the line."""
    epochs: int = 500
    """At most."""
    seed: int = 0
    """Of points and their order."""
    out: Path = Path("runs/perceptron_boundary")
    """Where the pictures are written."""


SMOKE = Config(num_points=20, epochs=20)


def main(config: Config) -> Mapping[str, float]:
    """Draws both pictures; returns mistakes and their bound."""
    rng = np.random.default_rng(config.seed)
    direction, offset = np.array([0.8, 0.6]), -2.8
    x = rng.uniform(0, 4, (8 * config.num_points, 2)).astype(np.float32)
    side = x @ direction + offset
    far = np.abs(side) > config.margin
    x, y = x[far][: config.num_points], np.sign(side[far])[: config.num_points]
    key, run = jax.random.key(config.seed), train.Run(config.out, config)
    learn = perceptron.Config(epochs=config.epochs)

    def decision(learn: perceptron.Config, y: np.ndarray = y) -> perceptron.Model:
        return perceptron.fit(x, y, learn, key)

    def shown(model: perceptron.Model) -> partial:
        return partial(perceptron.decision, model)

    moving = {
        f"{n} epoch{'s' * (n > 1)}": shown(decision(replace(learn, epochs=n)))
        for n in (1, 2, 4, 8)
    }
    draw.save_boundary(
        run.path / "moving.png", x, y, moving, title="A boundary that moves"
    )
    ring = np.where(np.square(x - x.mean(0)).sum(1) < 1.5, 1, -1)
    models = {
        "with a bias": decision(learn),
        "without": decision(replace(learn, bias=False)),
        "averaged": decision(replace(learn, averaged=True)),
    }
    named = {name: shown(model) for name, model in models.items()}
    draw.save_boundary(run.path / "bias.png", x, y, named, title="What a bias does")
    square = replace(learn, kernel=lambda a, b: (a @ b + 1) ** 2)
    draw.save_boundary(
        run.path / "kernel.png",
        x,
        ring,
        {
            "a line": shown(decision(learn, ring)),
            "(a b + 1)^2": shown(decision(square, ring)),
        },
        title="Rings",
    )
    with_bias, without = models["with a bias"], models["without"]
    results = {
        "mistakes": float(with_bias.mistakes.sum()),
        "bound": perceptron.mistake_bound(x, y, direction, offset),
        "mistakes_without_bias": float(without.mistakes.sum()),
        "wrong_without_bias": float((perceptron.predict(without, x) != y).mean()),
    }
    for name, value in results.items():
        print(f"{name:<24}{value:10.3f}")
    run.log(0, results)
    print(f"\npictures: {run.path}")
    return results


if __name__ == "__main__":
    main(tyro.cli(Config))
