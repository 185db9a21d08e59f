"""Loss and metric curves, from `metrics.jsonl` to a picture."""

import json
import math
import os
from collections.abc import Collection, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator
from PIL import Image

from jaxml.draw.canvas import COLOURS, FAINT, INK, PathLike, finish, new_figure, plain
from jaxml.export import export

Curve = tuple[Any, Any]
"""(steps, values), two sequences of one length."""


@export("draw.save_curves", since="0.1")
def save_curves(
    path: PathLike,
    curves: Mapping[str, Curve],
    *,
    title: str = "",
    xlabel: str = "step",
    ylabel: str | None = None,
    log_y: bool = False,
    window: int = 1,
) -> Image.Image:
    """Loss and metric curves, each with its name and last value at its end.

    Args:
        path: where to write, or None.
        curves: name -> (steps, values). `train/loss` and `test/loss` share the panel
            `loss`; a name without a slash has its own. A value that is NaN or infinite
            leaves a gap.
        title: above all panels.
        xlabel: below all panels.
        ylabel: draws all curves in one panel, called so.
        log_y: logarithmic values; what is not positive leaves a gap.
        window: steps of a moving average, drawn over the faint values themselves.

    Raises:
        ValueError: if there is no curve, or steps and values differ in length.

        save_curves(run / "curves.png", read_curves(run / "metrics.jsonl"))
    """
    if not curves:
        raise ValueError("curves must hold at least one curve, got none")
    if window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    panels: dict[str, dict[str, Curve]] = {}
    for name, curve in curves.items():
        line, _, panel = (name, "", ylabel) if ylabel else name.rpartition("/")
        panels.setdefault(str(panel), {})[line] = _checked(name, curve, log_y)
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(4.4 * columns + 1.6 * (columns == 1), 2.9 * rows + 0.4, title)
    for i, (panel, lines) in enumerate(panels.items()):
        ax = plain(figure.add_subplot(rows, columns, i + 1))
        ax.set_title(panel, loc="left", fontsize=11, color=INK, weight="bold")
        if i >= len(panels) - columns:
            ax.set_xlabel(xlabel, fontsize=10, color=FAINT)
        if log_y:
            ax.set_yscale("log")
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_locator(NullLocator())
        _draw_lines(ax, lines, window)
    return finish(figure, path)


@export("draw.read_curves", since="0.1")
def read_curves(
    path: str | os.PathLike[str], names: Collection[str] | None = None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The curves of a `metrics.jsonl`: name -> (steps, values), by rising step.

    Of several rows for one step, as a resumed run writes, the last one holds; a line
    cut short by a kill is skipped if it is the last.

    Args:
        path: one JSON object per line, each with `step`.
        names: which to read; all numbers by default.

    Raises:
        ValueError: if a line is no such object, or a name occurs nowhere.
    """
    values: dict[str, dict[float, float]] = {name: {} for name in names or ()}
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    for i, line in enumerate(lines):
        try:
            row = json.loads(line)
            step = row.pop("step")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            if i == len(lines) - 1 and isinstance(error, ValueError):
                break
            raise ValueError(
                f"line {i + 1} of {path} must be a JSON object with a step, got {line!r}"
            ) from error
        for name, value in row.items():
            number = math.nan if value is None else value
            if isinstance(number, int | float) and (names is None or name in names):
                values.setdefault(name, {})[step] = float(number)
    empty = [name for name, points in values.items() if not points]
    if empty:
        raise ValueError(f"{path} must hold {', '.join(empty)}, got no such value")
    return {
        name: (np.array(sorted(points)), np.array([points[s] for s in sorted(points)]))
        for name, points in values.items()
    }


def _checked(name: str, curve: Curve, log_y: bool) -> Curve:
    """Steps and values as floats, NaN where nothing can be drawn."""
    steps, values = (np.asarray(part, np.float64) for part in curve)
    if steps.ndim != 1 or steps.shape != values.shape or not steps.size:
        raise ValueError(
            f"{name} must have as many steps as values, got {steps.shape} "
            f"and {values.shape}"
        )
    drawable = np.isfinite(values) & ((values > 0) | (not log_y))
    return steps, np.where(drawable, values, np.nan)


def _draw_lines(ax: Axes, lines: Mapping[str, Curve], window: int) -> None:
    ends = []
    for i, (name, (steps, values)) in enumerate(lines.items()):
        colour, style = COLOURS[i % 10], ("-", "--", ":")[i // 10 % 3]
        if window > 1:
            ax.plot(steps, values, color=colour, linewidth=0.8, alpha=0.3)
            values = _moving_mean(values, window)
        dots = _dots(values)
        ax.plot(
            steps,
            values,
            style,
            color=colour,
            linewidth=1.8,
            marker="o",
            markersize=3.5,
            markevery=dots,
        )
        known = values[~np.isnan(values)]
        if known.size:
            ends.append((known[-1], f"{name} {known[-1]:.4g}".strip(), colour))
    if ends:
        _name_ends(ax, ends)
    else:
        middle: dict[str, Any] = {
            "ha": "center",
            "va": "center",
            "transform": ax.transAxes,
        }
        ax.text(0.5, 0.5, "no finite value", color=FAINT, size=10, **middle)
        ax.set(xticks=[], yticks=[])


def _dots(values: np.ndarray) -> list[int]:
    """Where a line alone would hide a value: everywhere on a short one, between gaps."""
    known = ~np.isnan(values)
    beside = np.pad(known, 1)
    alone = known & ~beside[:-2] & ~beside[2:]
    return np.flatnonzero(known if known.sum() <= 30 else alone).tolist()


def _name_ends(ax: Axes, ends: list[tuple[float, str, str]]) -> None:
    """Names right of the panel, as near to their lines' ends as the others allow."""
    ax.margins(x=0.02)
    ax.autoscale_view()
    to_fraction = ax.transScale + ax.transLimits
    heights = [to_fraction.transform((0.0, value))[1] for value, _, _ in ends]
    for height, (_, text, colour) in zip(_spread(heights, 0.085), ends, strict=True):
        for right, words, ink in ((7, "\N{BLACK SQUARE}", colour), (19, text, INK)):
            ax.annotate(
                words,
                (1, height),
                (right, 0),
                xycoords="axes fraction",
                textcoords="offset points",
                va="center",
                fontsize=9.5,
                color=ink,
            )


def _spread(heights: list[float], gap: float) -> list[float]:
    """Moves heights apart to at least `gap`, and down from the top where they can."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    placed = list(heights)
    for below, above in pairwise(order):
        placed[above] = max(placed[above], placed[below] + gap)
    ceiling = max(1.0, gap * (len(heights) - 1))
    for i in reversed(order):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - gap
    return placed


def _moving_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of the known values in a centred window, narrower at both ends."""
    known = ~np.isnan(values)
    i = np.arange(len(values))
    reach = np.minimum(window // 2, np.minimum(i, i[::-1]))  # else the ends are biased
    total = np.append(0.0, np.cumsum(np.where(known, values, 0.0)))
    count = np.append(0, np.cumsum(known))
    low, high = i - reach, i + reach + 1
    mean = (total[high] - total[low]) / np.maximum(count[high] - count[low], 1)
    return np.where(known, mean, np.nan)
