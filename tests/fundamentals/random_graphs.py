"""Random expressions, run by whoever has operators: NumPy, JAX, PyTorch or ours.

A program is a list of (operation, inputs); each input is the place of an earlier value. All
values stay moderate, and away from the kinks by more than a finite difference.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

SHAPES = [(2, 3), (3,), ()]
"""Of the leaves; all broadcast with one another."""

Program = list[tuple[str, tuple[int, ...]]]
UNARY = (
    "tanh",
    "sin",
    "cos",
    "exp",
    "sigmoid",
    "square",
    "mean",
    "rows",
    "turn",
    "soft",
)
BINARY = ("add", "sub", "mul", "div", "gram", "power")


def random_program(rng: np.random.Generator, leaves: int, length: int) -> Program:
    program: Program = []
    for i in range(length):
        known = leaves + i
        name = rng.choice(BINARY if rng.uniform() < 0.6 else UNARY)
        count = 2 if name in BINARY else 1
        # Recent values more often, so that graphs grow deep; old ones again and again.
        back = np.minimum(rng.geometric(0.3, size=count), known)
        program.append((str(name), tuple(int(known - b) for b in back)))
    return program


def random_leaves(rng: np.random.Generator, count: int) -> list[np.ndarray]:
    shapes = rng.integers(len(SHAPES), size=count)
    return [rng.normal(size=SHAPES[i]) for i in shapes]


def run(program: Program, leaves: Sequence[Any], f: Callable[[str, Any], Any]) -> Any:
    """A number; `f(name, x)` is tanh, sin, cos or exp of x."""
    values = list(leaves)
    for name, places in program:
        values.append(apply(name, [values[i] for i in places], f))
    return sum((f("tanh", value).sum() for value in values[1:]), values[0].sum() * 0.5)


def apply(name: str, inputs: list[Any], f: Callable[[str, Any], Any]) -> Any:
    x, y = inputs[0], inputs[-1]
    if name == "exp":
        return f("exp", f("tanh", x))
    if name == "sigmoid":
        return 1.0 / (1.0 + f("exp", -f("tanh", x)))
    if name == "square":
        return f("sin", x) ** 2
    if name == "mean":
        return x + x.sum() * 0.1
    if name == "rows":
        return (
            x - x.sum(-1 if len(x.shape) else None) * 0.2 if len(x.shape) < 2 else x[0]
        )
    if name == "turn":
        return x.reshape(-1)[0] * x
    if name == "soft":
        e = f("exp", f("sin", x))
        return e / e.sum()
    if name == "add":
        return x + y
    if name == "sub":
        return 1.5 - x - y
    if name == "mul":
        return f("tanh", x) * y
    if name == "div":
        return x / (y * y + 1.0)
    if name == "power":
        return (f("tanh", x) + 2.0) ** f("sin", y)
    if name == "gram":
        row, column = x.reshape(-1, 1), y.reshape(1, -1)
        return f("tanh", column @ (f("sin", column).reshape(-1, 1))).reshape(1) * x + (
            row.sum() * 0.1
        )
    return f(name, x)
