"""Small pictures of functions, side by side: curves of one number, maps of two."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from PIL import Image

from jaxml.draw.canvas import COLOURS, FAINT, INK, PathLike, finish, new_figure, plain
from jaxml.export import export
from jaxml.typing import Array, Float

BLUE, RED = COLOURS[0], COLOURS[6]


@export("draw.save_functions", since="0.1")
def save_functions(
    path: PathLike,
    x: Float[Array, " n"],
    functions: Mapping[str, tuple[Array, Array]],
    *,
    title: str = "",
    columns: int = 6,
) -> Image.Image:
    """A panel for each function of one number: its value, and its slope dashed.

    All panels have one scale, so that they can be compared; a line that leaves it is cut.

    Args:
        path: where to write, or None.
        x: where the values are.
        functions: name -> (values, slopes), each [n]; NaN leaves a gap.
        title: above the picture.
        columns: panels in a row.

    Raises:
        ValueError: if there is no panel, or values do not fit.
    """
    x = np.asarray(x, np.float64)
    rows = {name: np.asarray(pair, np.float64) for name, pair in functions.items()}
    _check(rows, (2, len(x)), "values and slopes")
    figure, axes = _panels(rows, columns, title)
    bottom, top = -1.6, 2.6
    for i, (ax, (name, (values, slopes))) in enumerate(
        zip(axes, rows.items(), strict=True)
    ):
        plain(ax, grid=False)
        for place in (ax.axhline, ax.axvline):
            place(0, color="#dddddd", linewidth=0.8, zorder=0)
        ax.plot(x, slopes, "--", color=RED, linewidth=1.2, dashes=(3, 1.5))
        ax.plot(x, values, color=BLUE, linewidth=2.0)
        ax.set(xlim=(x[0], x[-1]), ylim=(bottom, top), yticks=[-1, 0, 1, 2])
        ax.set_title(name, size=10, color=INK, loc="left")
        ax.tick_params(labelsize=7, labelleft=i % columns == 0)
        if i == 0:
            for height, word, colour in ((0.95, "value", BLUE), (0.81, "slope", RED)):
                style: dict[str, Any] = {"transform": ax.transAxes, "va": "top"}
                ax.text(0.05, height, word, color=colour, size=9, **style)
    return finish(figure, path)


@export("draw.save_surfaces", since="0.1")
def save_surfaces(
    path: PathLike,
    x: Float[Array, " n"],
    y: Float[Array, " m"],
    surfaces: Mapping[str, Array],
    *,
    title: str = "",
    xlabel: str = "",
    ylabel: str = "",
    columns: int = 6,
) -> Image.Image:
    """A map for each function of two numbers: red below zero, blue above, lines of height.

    All maps have one scale, from which the farthest tenth of the values may be cut.

    Args:
        path: where to write, or None.
        x: the first number.
        y: the second one.
        surfaces: name -> values [m, n], finite.
        title: above the picture.
        xlabel: below every map.
        ylabel: beside the first of a row.
        columns: maps in a row.

    Raises:
        ValueError: if there is no map, or values do not fit.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    rows = {name: np.asarray(z, np.float64) for name, z in surfaces.items()}
    _check(rows, (len(y), len(x)), "values")
    heights = np.abs(np.concatenate([z.ravel() for z in rows.values()]))
    reach = float(np.quantile(heights, 0.9)) or 1.0
    levels = np.linspace(-reach, reach, 20)  # an even number: zero lies within white
    figure, axes = _panels(rows, columns, title)
    for i, (ax, (name, z)) in enumerate(zip(axes, rows.items(), strict=True)):
        scale = TwoSlopeNorm(0, -reach, reach)
        ax.contourf(x, y, z, levels=levels, cmap="RdBu", norm=scale, extend="both")
        ax.contour(x, y, z, levels=levels, colors=INK, linewidths=0.3, alpha=0.6)
        ax.set_aspect("equal")
        ax.set_title(name, size=10, color=INK, loc="left")
        ax.set_xlabel(xlabel, size=8, color=FAINT)
        ax.set_ylabel(ylabel if i % columns == 0 else "", size=8, color=FAINT)
        ax.tick_params(colors=FAINT, labelsize=7, length=2, labelleft=i % columns == 0)
        ax.spines[:].set_color("#c8c8c8")
    return finish(figure, path)


def _check(rows: Mapping[str, np.ndarray], shape: tuple[int, ...], what: str) -> None:
    if not rows:
        raise ValueError("there must be at least one function, got none")
    for name, row in rows.items():
        if row.shape != shape:
            raise ValueError(f"{what} of {name} must be {shape}, got {row.shape}")


def _panels(
    rows: Mapping[str, np.ndarray], columns: int, title: str
) -> tuple[Figure, list[Axes]]:
    """A figure with an axes for each, row by row."""
    wide = min(columns, len(rows))
    high = math.ceil(len(rows) / wide)
    figure = new_figure(1.75 * wide + 0.3, 1.6 * high + 0.2 + 0.3 * bool(title), title)
    axes = [figure.add_subplot(high, wide, i + 1) for i in range(len(rows))]
    return figure, axes
