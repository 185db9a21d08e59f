"""What a classifier makes of the plane: regions in colour, and the points it learned from.

Positive and negative differ in shape as well as in colour; a line stands where the function
is zero.
"""

from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image

from jaxml.draw.canvas import COLOURS, FAINT, INK, PathLike, finish, new_figure
from jaxml.export import export
from jaxml.typing import Array, Float

_CELLS = 201
_COLUMNS = 4


@export("draw.save_boundary", since="0.1")
def save_boundary(
    path: PathLike,
    points: Float[Array, "n 2"],
    labels: Array,
    decisions: Mapping[str, Callable[[np.ndarray], Array]],
    *,
    title: str = "",
) -> Image.Image:
    """Panels side by side, four to a line, each with the points and one function.

    Args:
        path: where to write, or None.
        points: where they lie.
        labels: positive or not, for each: filled circles and crosses.
        decisions: what stands above the panel -> a function of points [m, 2] that is
            positive on one side.
        title: above the picture.

    Raises:
        ValueError: if there is no panel, or points and labels do not fit.
    """
    points, is_positive = np.asarray(points, np.float64), np.asarray(labels) > 0
    if not decisions:
        raise ValueError("decisions must hold at least one function, got none")
    if (
        points.ndim != 2
        or points.shape[1] != 2
        or is_positive.shape != points.shape[:1]
    ):
        raise ValueError(
            f"points and labels must be [n, 2] and [n], got {points.shape} and "
            f"{is_positive.shape}"
        )
    low, high = points.min(0), points.max(0)
    margin = 0.25 * np.maximum(high - low, 1e-6)
    (left, bottom), (right, top) = low - margin, high + margin
    xs, ys = np.linspace(left, right, _CELLS), np.linspace(bottom, top, _CELLS)
    grid = np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2).astype(np.float32)
    columns = min(len(decisions), _COLUMNS)
    lines = -(-len(decisions) // columns)
    figure = new_figure(2.5 * columns + 0.2, 2.4 * lines + 0.5, title)
    axes = np.atleast_1d(figure.subplots(lines, columns)).reshape(-1)
    for ax in axes[len(decisions) :]:
        ax.set_axis_off()
    for ax, (name, decide) in zip(axes, decisions.items(), strict=False):
        values = np.asarray(decide(grid)).reshape(_CELLS, _CELLS)
        ax.contourf(
            xs,
            ys,
            values > 0,
            levels=[-0.5, 0.5, 1.5],
            colors=COLOURS[1::-1],
            alpha=0.25,
        )
        if values.min() < 0 < values.max():
            ax.contour(xs, ys, values, levels=[0], colors=INK, linewidths=1.2)
        style = {"s": 16, "linewidths": 1.0, "zorder": 3}
        ax.scatter(*points[is_positive].T, color=COLOURS[0], marker="o", **style)
        ax.scatter(*points[~is_positive].T, color=COLOURS[6], marker="x", **style)
        ax.set_title(name, size=10, color=INK)
        ax.set_xlim(left, right)
        ax.set_ylim(bottom, top)
        ax.set_aspect("equal")
        ax.tick_params(colors=FAINT, labelsize=8, length=2)
        ax.spines[:].set_color("#c8c8c8")
    return finish(figure, path)
