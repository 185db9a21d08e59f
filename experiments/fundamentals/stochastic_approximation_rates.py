"""How fast stochastic approximation settles, over thousands of chains at once.

    python -m experiments.fundamentals.stochastic_approximation_rates
    python -m experiments.fundamentals.stochastic_approximation_rates --num-chains 256

The root of a noisy line, by steps 1 / n with three constants, by larger steps, and by the
mean of their path; the minimum of a noisy bowl from values alone. `errors.png` shows the
root of the mean square error against the number of steps, and the bound that no method beats.

Measured (seed 0, 2048 chains of 4000 steps; JAX 0.10.2, two busy CPU cores, about seven
minutes), the error at the end: 0.0160 by steps 1 / n and 0.0172 by the mean of the path of larger
ones, of which the last place alone is at 0.0279; the bound is 0.0158. Steps 0.3 / n, too small,
are at 0.0787. From values alone Kiefer-Wolfowitz comes to 0.0216, SPSA to 0.0451.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxml import draw, train
from jaxml.fundamentals.stochastic_approximation import (
    kiefer_wolfowitz,
    polyak_ruppert,
    power_steps,
    robbins_monro,
    spsa,
)


@dataclass(frozen=True)
class Config:
    """Errors over steps."""

    num_steps: int = 4000
    """Of each chain."""
    num_chains: int = 2048
    """Over which errors are averaged."""
    seed: int = 0
    """Of the noise."""
    out: Path = Path("runs/stochastic_approximation_rates")
    """Where the picture is written."""


SMOKE = Config(num_steps=40, num_chains=8)


def line(key: Any, theta: Any) -> Any:
    """A measurement of theta, whose root is 0."""
    return theta + jax.random.normal(key)


def bowl(key: Any, theta: Any) -> Any:
    """A measurement of a loss with its minimum at 0, uneven to both sides."""
    value = jnp.sum(theta**2 + theta**3 / 3 + 0.1 * theta**4) / 2
    return value + 0.1 * jax.random.normal(key)


def main(config: Config) -> Mapping[str, float]:
    """Draws the errors; returns the last ones."""
    n = config.num_steps
    one, two = jnp.float32(1), jnp.ones(2)
    slow = power_steps(0.5, 0.7)
    methods: dict[str, Callable[[Any], Any]] = {
        "a = 1 / n": lambda key: robbins_monro(line, one, n, key),
        "a = 0.3 / n": lambda key: robbins_monro(line, one, n, key, power_steps(0.3)),
        "a = 0.5 / n^0.7": lambda key: robbins_monro(line, one, n, key, slow),
        "its mean": lambda key: polyak_ruppert(robbins_monro(line, one, n, key, slow)),
        "Kiefer-Wolfowitz": lambda key: kiefer_wolfowitz(
            bowl, two, n, key, power_steps(1, 1, 5), power_steps(1, 1 / 6)
        ),
        "SPSA": lambda key: spsa(bowl, two, n, key, power_steps(0.5, 0.602, 20)),
    }
    places = np.unique(np.geomspace(1, n, 60).astype(int))
    keys = jax.random.split(jax.random.key(config.seed), config.num_chains)
    errors = {}
    for name, method in methods.items():

        def squares(key: Any, method: Callable[[Any], Any] = method) -> Any:
            path = method(key)[places - 1]
            return jnp.square(path).reshape(len(places), -1).sum(1)

        total = jax.jit(
            lambda keys: jnp.mean(jax.lax.map(squares, keys, batch_size=64), 0)
        )
        errors[name] = np.sqrt(np.asarray(total(keys)))
        print(f"{name:<18}{errors[name][-1]:10.4f}", flush=True)
    errors["1 / sqrt(n)"] = 1 / np.sqrt(places)
    run = train.Run(config.out, config)
    draw.save_curves(
        run.path / "errors.png",
        {name: (np.log10(places), row) for name, row in errors.items()},
        xlabel="number of steps, as a power of ten",
        ylabel="root of the mean square error",
        log_y=True,
    )
    results = {name: float(row[-1]) for name, row in errors.items()}
    run.log(n, results)
    print(f"\npicture: {run.path / 'errors.png'}")
    return results


if __name__ == "__main__":
    main(tyro.cli(Config))
