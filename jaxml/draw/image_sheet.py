"""Sheets of images: samples, augmented views, reconstructions, with crisp pixels."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

from jaxml.draw.canvas import INK, PathLike, save_image
from jaxml.export import export
from jaxml.typing import Array

_GAP, _LINE = 6, 20  # pixels between cells, and of a line of text


@export("draw.save_image_sheet", since="0.1")
def save_image_sheet(
    path: PathLike,
    images: Array,
    *,
    columns: int | None = None,
    titles: Sequence[str] = (),
    column_titles: Sequence[str] = (),
    row_titles: Sequence[str] = (),
    scale: int | None = None,
) -> Image.Image:
    """Images side by side, row by row: samples, augmented views, reconstructions.

    Args:
        path: where to write, or None.
        images: [n, height, width] or [n, height, width, channels] with 1, 3 or 4
            channels; floats in [0, 1], uint8 or bool.
        columns: by default one per title, or else as many as make a square.
        titles: one above each image.
        column_titles: one above each column.
        row_titles: one before each row.
        scale: by how much pixels are magnified, crisply; by default to about 96 pixels
            a side, and never down.

    Raises:
        ValueError: if there is no image, a shape or value is out of range, or titles do
            not match the sheet.

        views = jnp.stack([image, *augmented])
        save_image_sheet("views.png", views, column_titles=["image", "view 1", "view 2"])
    """
    pixels = _pixels(images)
    n, height, width = pixels.shape[:3]
    if columns is None:
        by_rows = -(-n // len(row_titles)) if row_titles else math.ceil(math.sqrt(n))
        columns = len(column_titles) or by_rows
    if scale is None:
        scale = max(1, round(96 / max(height, width)))
    if columns < 1 or scale < 1:
        raise ValueError(
            f"columns and scale must be at least 1, got {columns} and {scale}"
        )
    rows = -(-n // columns)
    _check_number("titles", titles, n)
    _check_number("column_titles", column_titles, columns)
    _check_number("row_titles", row_titles, rows)

    font = ImageFont.truetype(findfont("DejaVu Sans"), 13)
    cell_w, cell_h, above = width * scale, height * scale, _LINE * bool(titles)
    left = _GAP + max((round(font.getlength(t)) + 8 for t in row_titles), default=0)
    top = _GAP + _LINE * bool(column_titles) + above
    xs = [left + i * (cell_w + _GAP) for i in range(columns)]
    ys = [top + i * (cell_h + _GAP + above) for i in range(rows)]
    sheet = Image.new("RGB", (xs[-1] + cell_w + _GAP, ys[-1] + cell_h + _GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for (y, x), pixel in zip(itertools.product(ys, xs), pixels, strict=False):
        cell = Image.fromarray(pixel).resize((cell_w, cell_h), Image.Resampling.NEAREST)
        sheet.paste(cell, (x, y), cell if cell.mode == "RGBA" else None)
    heads = [
        (x, _LINE / 2 + 2, text) for x, text in zip(xs, column_titles, strict=False)
    ]
    heads += [
        (x, y - _LINE / 2, text)
        for (y, x), text in zip(itertools.product(ys, xs), titles, strict=False)
    ]
    for x, y, text in heads:
        text = _shortened(text, font, cell_w)
        pen.text((x + cell_w / 2, y), text, INK, font, anchor="mm")
    for y, text in zip(ys, row_titles, strict=False):
        pen.text((left - 8, y + cell_h / 2), text, INK, font, anchor="rm")
    if path is not None:
        save_image(sheet, path)
    return sheet


def _check_number(name: str, titles: Sequence[str], wanted: int) -> None:
    if titles and len(titles) != wanted:
        raise ValueError(f"{name} must be {wanted}, got {len(titles)}")


def _pixels(images: Array) -> np.ndarray:
    """The images as uint8 [n, height, width, (3 or 4)] or grey [n, height, width]."""
    x = np.asarray(images)
    if x.ndim == 4 and x.shape[3] == 1:
        x = x[..., 0]
    if x.ndim not in (3, 4) or 0 in x.shape or x.shape[3:] not in ((), (3,), (4,)):
        raise ValueError(
            "images must have shape [n, height, width] or [n, height, width, 1, 3 or 4]"
            f", got {np.shape(images)}"
        )
    if np.ndim(images) == 3 and x.shape[2] in (1, 3, 4):
        raise ValueError(
            f"images must be several, got {x.shape}, which looks like one: add an axis"
        )
    if x.dtype == np.uint8:
        return x
    if np.issubdtype(x.dtype, np.integer):
        raise ValueError(f"images must be floats, uint8 or bool, got {x.dtype}")
    x = x.astype(np.float32)
    low, high = x.min(), x.max()
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # NaN too
        raise ValueError(
            f"float images must lie in [0, 1], got {low:.3g} to {high:.3g}"
        )
    return np.round(255 * np.clip(x, 0, 1)).astype(np.uint8)


def _shortened(text: str, font: ImageFont.FreeTypeFont, room: int) -> str:
    """The text, cut with an ellipsis where it is wider than `room` pixels."""
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(text + "…") > room:
        text = text[:-1]
    return text + "…"
