"""Every activation in one picture: what it makes of a number, and its slope.

    python -m experiments.fundamentals.activations_chart

`activations.png` has a panel for each function of one number, `gates.png` a map for each of
two: the first half of a layer is `a`, the second `b`. Printed beside it are the least value,
the slope at 0 from the right, the steepest one, and the share of a standard normal input
that meets a slope of exactly zero ("dead").

Measured (JAX 0.10.2): dead are step (100 %), ReLU, ReLU6 and squared ReLU (50 %), hard tanh
(31 %); all others round to 0 %. Steepest are squared ReLU (8.00, at 4), sign with the slope of
arctan (2.00), SELU (1.76), hard SiLU (1.50) and GELU (1.13).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.fundamentals.activations_shakespeare import GATES, PLAIN
from jaxml import draw, nn, train

CURVES = {
    **PLAIN,
    "prelu, 0.25": partial(jax.nn.leaky_relu, negative_slope=0.25),
    "rrelu, one draw": lambda x: nn.rrelu(x, jax.random.key(0)),
    "swish, beta = 3": partial(nn.swish, beta=3.0),
}


@dataclass(frozen=True)
class Config:
    """All activations, drawn."""

    reach: float = 4.0
    """From minus this to this."""
    points: int = 801
    """At which values are taken."""
    out: Path = Path("runs/activations_chart")
    """Where the pictures are written."""


SMOKE = Config(points=21)


def main(config: Config) -> Mapping[str, float]:
    """Draws both pictures; returns the numbers of the table."""
    run, results = train.Run(config.out, config), {}
    x = jnp.linspace(-config.reach, config.reach, config.points)
    weight = np.exp(-(np.asarray(x) ** 2) / 2)
    curves = {}
    print(f"{'':<24}{'least':>8}{'slope at 0':>12}{'steepest':>10}{'dead':>8}")
    for name, function in CURVES.items():
        values, pull = jax.vjp(function, x)
        (slopes,) = pull(jnp.ones_like(values))
        curves[name] = np.asarray(values), np.asarray(slopes)
        numbers = {
            "least": values.min(),
            "slope_at_0": slopes[config.points // 2 + 1],
            "steepest": slopes.max(),
            "dead": weight[curves[name][1] == 0].sum() / weight.sum(),
        }
        results |= {f"{name}/{key}": float(value) for key, value in numbers.items()}
        least, at_zero, steepest, dead = map(float, numbers.values())
        print(f"{name:<24}{least:8.2f}{at_zero:12.2f}{steepest:10.2f}{dead:8.0%}")
    draw.save_functions(
        run.path / "activations.png", x, curves, title="Activations, and their slopes"
    )
    a, b = jnp.meshgrid(x[::8], x[::8])
    gates = {
        name: function(jnp.stack([a, b], axis=-1))[..., 0]
        for name, function in GATES.items()
    }
    draw.save_surfaces(
        run.path / "gates.png",
        x[::8],
        x[::8],
        gates,
        title="Two numbers in, one out",
        xlabel="a",
        ylabel="b",
        columns=3,
    )
    run.log(0, results)
    print(f"\npictures: {run.path}")
    return results


if __name__ == "__main__":
    main(tyro.cli(Config))
