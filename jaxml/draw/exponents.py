"""Histograms of log2 magnitudes, with what a half dtype can hold and what it cannot.

Reference: Micikevicius et al., "Mixed Precision Training", ICLR 2018,
https://arxiv.org/abs/1710.03740 (figures 2b and 3: such histograms).
"""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from PIL import Image

from jaxml.draw.canvas import COLOURS, FAINT, INK, PathLike, finish, new_figure, plain
from jaxml.export import export
from jaxml.precision.report import FloatReport, FloatRow

BLUE, AMBER, RED = COLOURS[:3]


@export("draw.save_exponents", since="0.1")
def save_exponents(
    path: PathLike, reports: Mapping[str, FloatReport], *, title: str = ""
) -> Image.Image:
    """One histogram per report, one above the other: which numbers survive the cast.

    Numbers are shown as they are cast, after the report's scale: two reports of the same
    gradients with and without a loss scale show what it does.

    Args:
        path: where to write, or None.
        reports: name -> report, all for one dtype.
        title: above the picture.

    Raises:
        ValueError: if there is no report, or the dtypes differ.

        save_exponents("grads.png", {"gradients": float_report(grads)})
    """
    dtypes = sorted({str(report.dtype) for report in reports.values()})
    if len(dtypes) != 1:
        found = ", ".join(dtypes) or "none"
        raise ValueError(f"reports must be of one dtype, got {found}")
    info = jnp.finfo(dtypes[0])
    edges = [info.minexp - info.nmant - 1, info.minexp, info.maxexp]
    bins = {name: _shares(report) for name, report in reports.items()}
    ends = [x for places, _ in bins.values() for x in places]
    low, high = min([edges[0], *ends]) - 3, max([edges[2], *ends]) + 6
    figure = new_figure(7.2, 1.55 * len(reports) + 1.0, title)
    first: Axes | None = None
    for i, (name, report) in enumerate(reports.items()):
        ax = plain(figure.add_subplot(len(reports), 1, i + 1, sharex=first))
        places, shares = bins[name]
        ax.bar(places + 0.5, 100 * shares, width=0.86, color=_fates(places, edges))
        for edge in edges:
            ax.axvline(edge, color=FAINT, linewidth=0.8, linestyle=(0, (3, 3)))
        ax.set(xlim=(low, high), ylim=(0, 120 * max([0.01, *shares])))
        row = report.total
        ax.set_title(f"{name}: {_fate_text(row)}", loc="left", fontsize=10, color=INK)
        ax.set_ylabel("%", fontsize=9, color=FAINT, rotation=0, labelpad=8)
        if first is None:
            first = ax
            _name_regions(ax, [low, *edges, high], dtypes[0])
        ax.tick_params(labelbottom=i == len(reports) - 1)
    ax.set_xlabel("log2 of the magnitude that is cast", fontsize=10, color=FAINT)
    return finish(figure, path)


def _shares(report: FloatReport) -> tuple[np.ndarray, np.ndarray]:
    """Where the bins begin after scaling, and the share of the numbers in each."""
    places = report.total.exponents + np.log2(report.scale)
    return places, report.total.counts / max(report.total.counts.sum(), 1)


def _fates(places: np.ndarray, edges: list[int]) -> list[str]:
    return [(RED, AMBER, BLUE, RED)[i] for i in np.searchsorted(edges, places, "right")]


def _fate_text(row: FloatRow) -> str:
    text = f"{row.underflow:.1%} become zero, {row.precision_loss:.1%} subnormal"
    return text + (f", {row.overflow:.1%} infinite" if row.to_infinity else "")


def _name_regions(ax: Axes, edges: Sequence[float | int], dtype: str) -> None:
    """Words inside the first panel, under its upper edge."""
    words = [("zero", RED), ("subnormal", AMBER), (dtype, BLUE), ("infinite", RED)]
    for (word, colour), left, right in zip(words, edges, edges[1:], strict=False):
        ax.text(
            (left + right) / 2,
            0.97,
            word,
            transform=ax.get_xaxis_transform(),
            ha="center",
            va="top",
            fontsize=9,
            color=colour,
            weight="bold",
        )
