"""Sheets of images: samples, augmented views, reconstructions, with crisp pixels."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

from jaxml.draw.canvas import INK, PathLike, save_image
from jaxml.export import export
from jaxml.typing import Array


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
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    rows = -(-n // columns)
    wanted = {"titles": n, "column_titles": columns, "row_titles": rows}
    given = {"titles": titles, "column_titles": column_titles, "row_titles": row_titles}
    for name, texts in given.items():
        if texts and len(texts) != wanted[name]:
            raise ValueError(f"{name} must be {wanted[name]}, got {len(texts)}")
    if scale is None:
        scale = max(1, round(96 / max(height, width)))
    if scale < 1:
        raise ValueError(f"scale must be at least 1, got {scale}")

    cell_w, cell_h, gap, line = width * scale, height * scale, 6, 20
    font = ImageFont.truetype(findfont("DejaVu Sans"), 13)
    left = gap + max((math.ceil(font.getlength(t)) + 8 for t in row_titles), default=0)
    top = gap + line * bool(column_titles)
    step_x, step_y = cell_w + gap, cell_h + gap + line * bool(titles)
    size = (left + columns * step_x, top + rows * step_y)
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)

    def write(x: float, y: float, text: str, anchor: str, room: float) -> None:
        pen.text((x, y), _shortened(text, font, room), INK, font, anchor)

    for i, pixel in enumerate(pixels):
        x = left + i % columns * step_x
        y = top + i // columns * step_y + line * bool(titles)
        cell = Image.fromarray(pixel).resize((cell_w, cell_h), Image.Resampling.NEAREST)
        sheet.paste(cell, (x, y), cell if cell.mode == "RGBA" else None)
        if titles:
            write(x + cell_w / 2, y - line / 2, titles[i], "mm", cell_w)
    for i, text in enumerate(column_titles):
        write(left + i * step_x + cell_w / 2, line / 2 + 2, text, "mm", cell_w)
    for i, text in enumerate(row_titles):
        y = top + i * step_y + line * bool(titles) + cell_h / 2
        write(left - 8, y, text, "rm", math.inf)
    if path is not None:
        save_image(sheet, path)
    return sheet


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


def _shortened(text: str, font: ImageFont.FreeTypeFont, room: float) -> str:
    """The text, cut with an ellipsis where it is wider than `room` pixels."""
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(text + "…") > room:
        text = text[:-1]
    return text + "…"
