"""The paper that pictures are drawn on: colours, plain axes, files written in one move.

Figures are made without pyplot, so that no global state is touched and threads and
headless machines draw alike.

Reference: Petroff, "Accessible Color Sequences for Data Visualization", 2021,
https://arxiv.org/abs/2107.02270 (the ten colours).
"""

import io
import os
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image

from jaxml.export import export_constant

COLOURS = export_constant(
    "draw.COLOURS",
    (
        "#3f90da",
        "#ffa90e",
        "#bd1f01",
        "#94a4a2",
        "#832db6",
        "#a96b59",
        "#e76300",
        "#b9ac70",
        "#717581",
        "#92dadd",
    ),
    since="0.1",
)
"""Ten colours that colour-blind readers tell apart."""

INK = "#222222"
FAINT = "#767676"
"""Grey for what is not data: still 4.5 to 1 on white."""

PathLike = str | os.PathLike[str] | None


def new_figure(width: float, height: float, title: str = "") -> Figure:
    """A white figure, in inches, that belongs to no window."""
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
    figure = Figure((width, height), dpi=144, facecolor="white", layout=layout)
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, x=0.02, ha="left", size=13, weight="bold", color=INK)
    return figure


def plain(ax: Axes, *, grid: bool = True) -> Axes:
    """Axes with nothing on them that is no data."""
    ax.set_facecolor("white")
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color("#c8c8c8")
    ax.tick_params(colors=FAINT, labelsize=9, length=3)
    if grid:
        ax.grid(axis="y", color="#ececec", linewidth=0.8)
    ax.set_axisbelow(True)
    return ax


def finish(figure: Figure, path: PathLike) -> Image.Image:
    """The drawn figure as an image, written to `path` unless that is None."""
    picture = Image.open(io.BytesIO(_rendered(figure, "png"))).convert("RGB")
    if path is not None:
        kind = Path(path).suffix.lower().lstrip(".")
        if kind not in ("png", "pdf", "svg"):
            raise ValueError(f"a chart must be .png, .pdf or .svg, got {str(path)!r}")
        if kind == "png":
            save_image(picture, path)
        else:
            write_bytes(Path(path), _rendered(figure, kind))
    return picture


def save_image(picture: Image.Image, path: str | os.PathLike[str]) -> None:
    """Writes a PNG in one move."""
    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"an image must be .png, got {str(path)!r}")
    buffer = io.BytesIO()
    picture.save(buffer, "png", optimize=True)
    write_bytes(Path(path), buffer.getvalue())


def write_bytes(path: Path, content: bytes) -> None:
    """A reader sees the old file or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _rendered(figure: Figure, kind: str) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind)
    return buffer.getvalue()
