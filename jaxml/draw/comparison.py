"""Methods side by side: bars of one number, a table of several."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import SupportsFloat

import numpy as np
from matplotlib.axes import Axes
from PIL import Image

from jaxml.draw.canvas import COLOURS, FAINT, INK, PathLike, finish, new_figure, plain
from jaxml.export import export
from jaxml.typing import Array


@export("draw.save_bars", since="0.1")
def save_bars(
    path: PathLike,
    values: Mapping[str, SupportsFloat | Sequence[SupportsFloat] | Array],
    *,
    title: str = "",
    xlabel: str = "",
    spec: str = ".3g",
    highlight: Collection[str] = (),
) -> Image.Image:
    """Numbers as bars from zero, each written out; several runs as mean and dots.

    Args:
        path: where to write, or None.
        values: name -> a number, or one per seed. NaN is written as such.
        title: above the picture.
        xlabel: what the numbers are, with their unit.
        spec: how a number is written, a format specification.
        highlight: names that keep their colour while the others turn grey.

    Raises:
        ValueError: if there is no bar, or a name has no number.
    """
    runs = {name: np.atleast_1d(np.asarray(v, float)) for name, v in values.items()}
    if not runs:
        raise ValueError("values must hold at least one bar, got none")
    for name, row in runs.items():
        if row.ndim != 1 or row.size == 0:
            raise ValueError(f"{name} must be a number or several, got {row.shape}")
    unknown = sorted(set(highlight) - set(runs))
    if unknown:
        raise ValueError(f"highlight must name bars, got {', '.join(unknown)}")
    figure = new_figure(6.4, 0.42 * len(runs) + 0.9, title)
    ax = plain(figure.add_subplot(), grid=False)
    for i, (name, row) in enumerate(runs.items()):
        _draw_bar(ax, i, row, spec, bool(highlight), name in highlight)
    low, high = ax.get_xlim()
    if low < 0:  # room for the numbers of the negative bars
        room = 0.45 if max(row.size for row in runs.values()) > 1 else 0.2
        ax.set_xlim(low - room * (high - low), high)
    ax.set_yticks(range(len(runs)), list(runs), fontsize=10, color=INK)
    ax.set_ylim(len(runs) - 0.5, -0.5)
    ax.axvline(0, color=FAINT, linewidth=0.8)
    ax.tick_params(length=0)
    ax.set_xticks([])
    ax.spines[:].set_visible(False)
    ax.set_xlabel(xlabel, fontsize=10, color=FAINT)
    return finish(figure, path)


def _draw_bar(
    ax: Axes, y: int, runs: np.ndarray, spec: str, some_stand_out: bool, this_does: bool
) -> None:
    mean, text = runs.mean(), f"{runs.mean():{spec}}"
    colour = "#c9ced1" if some_stand_out and not this_does else COLOURS[0]
    end = float(mean) if np.isfinite(mean) else 0.0
    ax.barh(y, end, height=0.62, color=colour, linewidth=0)
    if runs.size > 1:
        text += f" ± {runs.std(ddof=1):{spec}}"
        ax.plot(runs, np.full(runs.size, y), "o", ms=3.5, color=INK, mew=0)
    right = end >= 0
    reach = [end, *runs[np.isfinite(runs)]]
    label = ax.annotate(
        text,
        (max(reach) if right else min(reach), y),
        (5 if right else -5, 0),
        textcoords="offset points",
        va="center",
        ha="left" if right else "right",
        fontsize=10,
    )
    label.set(color=INK, weight="bold" if this_does else "normal")


@export("draw.save_table", since="0.1")
def save_table(
    path: PathLike,
    rows: Mapping[str, Mapping[str, SupportsFloat | str]],
    *,
    title: str = "",
    spec: str = ".4g",
    lower_is_better: Collection[str] = (),
) -> Image.Image:
    """Methods by metrics as a table, the best of each column in bold.

    Args:
        path: where to write, or None.
        rows: method -> {metric: value}; a value may be a text. What a row lacks is a
            dash.
        title: above the table.
        spec: how a number is written, a format specification.
        lower_is_better: metrics, such as a loss, whose smallest value is best; a column
            of one number has no best.

    Raises:
        ValueError: if there is no row or no column, or `lower_is_better` names none.
    """
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    if not columns:
        raise ValueError(f"rows must hold a value, got {len(rows)} rows without one")
    unknown = sorted(set(lower_is_better) - set(columns))
    if unknown:
        raise ValueError(f"lower_is_better must name columns, got {', '.join(unknown)}")
    texts = [[_cell(row.get(name), spec) for name in columns] for row in rows.values()]
    best = [_best(rows, name, name in lower_is_better) for name in columns]

    line = 0.3  # inches
    first = 0.1 * max(map(len, rows)) + 0.2
    widths = [
        0.095 * max(len(text) for text in (name, *cells)) + 0.25
        for name, cells in zip(columns, zip(*texts, strict=True), strict=True)
    ]
    width, height = first + sum(widths), line * (len(rows) + 1)
    figure = new_figure(width + 0.2, height + 0.2 + 0.4 * bool(title), title)
    ax = figure.add_subplot(xlim=(0, width), ylim=(len(rows) + 0.5, -0.5))
    ax.set_axis_off()
    right = first + np.cumsum(widths)
    for x, name in zip(right, columns, strict=True):
        ax.text(x, 0, name, ha="right", va="center", fontsize=10, color=FAINT)
    for i, (name, cells) in enumerate(zip(rows, texts, strict=True), start=1):
        ax.text(0, i, name, va="center", fontsize=10.5, color=INK)
        for x, text, winners in zip(right, cells, best, strict=True):
            weight = "bold" if name in winners else "normal"
            cell = ax.text(x, i, text, ha="right", va="center", fontsize=10.5)
            cell.set(color=INK, weight=weight)
    for y, thick in ((-0.5, 1.2), (0.5, 0.7), (len(rows) + 0.5, 1.2)):
        ax.axhline(y, color=INK, linewidth=thick, clip_on=False)
    return finish(figure, path)


def _cell(value: SupportsFloat | str | None, spec: str) -> str:
    if value is None:
        return "\N{EN DASH}"
    return value if isinstance(value, str) else f"{float(value):{spec}}"


def _best(
    rows: Mapping[str, Mapping[str, SupportsFloat | str]], column: str, lowest: bool
) -> set[str]:
    """The rows that hold the column's best number; none if there is only one."""
    numbers = {
        name: float(row[column])
        for name, row in rows.items()
        if column in row and not isinstance(row[column], str)
    }
    finite = {name: value for name, value in numbers.items() if math.isfinite(value)}
    if len(numbers) < 2 or not finite:
        return set()
    top = min(finite.values()) if lowest else max(finite.values())
    return {name for name, value in finite.items() if value == top}
