"""Point clouds, seen from several sides, near points before far ones."""

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw

from jaxml.draw.canvas import INK, PathLike, save_image
from jaxml.draw.photograph import check_labels, class_colour, class_name, font_for
from jaxml.export import export
from jaxml.ops.color import Number
from jaxml.typing import Array, Float, Int


@export("draw.save_point_cloud", since="0.1")
def save_point_cloud(
    path: PathLike,
    points: Float[Array, "n 3"],
    *,
    labels: Int[Array, "n"] | None = None,
    colours: Float[Array, "n 3"] | None = None,
    class_names: Sequence[str] | None = None,
    views: Sequence[tuple[Number, Number]] = ((-60.0, 20.0), (30.0, 20.0)),
    size: int = 480,
    radius: Number | None = None,
) -> Image.Image:
    """The cloud in parallel projection, one picture for each view, side by side.

    Args:
        path: where to write, or None.
        points: (x, y, z) with z up; those that are not finite are left out.
        labels: colour points by class, with a legend; without them and without colours,
            height does.
        colours: RGB of each point, in [0, 1].
        class_names: by default the numbers.
        views: (turn about z, height above the horizon) of the eye, in degrees.
        size: of each view, in pixels.
        radius: of a point, in pixels; by default by their number.

    Raises:
        ValueError: if there is no finite point, no view, both labels and colours, or a
            label has no name.
    """
    cloud = np.asarray(points, np.float64)
    finite = np.isfinite(cloud).all(axis=1)
    if not finite.any():
        raise ValueError(f"points must be finite, got none among {len(cloud)}")
    if not len(views):
        raise ValueError("views must be at least one, got none")
    if labels is not None and colours is not None:
        raise ValueError("points are coloured by labels or by colours, got both")
    cloud = cloud[finite]
    classes: list[int] = []
    if labels is not None:
        mine = np.asarray(labels)[finite]
        check_labels(mine, class_names)
        found, place = np.unique(mine, return_inverse=True)
        classes = found.tolist()
        rgb = np.array([class_colour(c) for c in classes], float)[place.ravel()]
    elif colours is not None:
        rgb = 255 * np.clip(np.asarray(colours, np.float64)[finite], 0, 1)
    else:
        z = cloud[:, 2]
        rgb = 255 * colormaps["viridis"]((z - z.min()) / max(np.ptp(z), 1e-12))[:, :3]
    middle = (cloud.min(axis=0) + cloud.max(axis=0)) / 2
    cloud = (cloud - middle) / max(np.linalg.norm(cloud - middle, axis=1).max(), 1e-12)
    if radius is None:
        radius = float(np.clip(0.45 * size / np.sqrt(len(cloud)), 1.0, 6.0))
    sheet = Image.new("RGB", (size * len(views), size), "white")
    for i, (turn, rise) in enumerate(views):
        sheet.paste(_view(cloud, rgb, turn, rise, size, radius), (i * size, 0))
    if classes:
        _legend(sheet, classes, class_names)
    if path is not None:
        save_image(sheet, path)
    return sheet


def _view(
    cloud: np.ndarray,
    rgb: np.ndarray,
    turn: Number,
    rise: Number,
    size: int,
    radius: Number,
) -> Image.Image:
    """Points as discs, the nearest last, those far away paler."""
    a, b = np.deg2rad([turn, rise])
    right = np.array([-np.sin(a), np.cos(a), 0])
    towards = np.array([np.cos(a) * np.cos(b), np.sin(a) * np.cos(b), np.sin(b)])
    up = np.cross(towards, right)
    fine = 2
    middle, reach = size * fine / 2, 0.92 * size * fine / 2
    x, y = middle + reach * cloud @ right, middle - reach * cloud @ up
    depth = cloud @ towards
    mist = 0.45 * (1 - (depth + 1) / 2)[:, None]
    shade = np.round(rgb * (1 - mist) + 255 * mist).astype(int)
    picture = Image.new("RGB", (size * fine,) * 2, "white")
    pen, r = ImageDraw.Draw(picture), radius * fine / 2 + 0.5
    for i in np.argsort(depth, kind="stable"):
        pen.ellipse((x[i] - r, y[i] - r, x[i] + r, y[i] + r), fill=tuple(shade[i]))
    return picture.resize((size, size), Image.Resampling.BOX)


def _legend(
    sheet: Image.Image, classes: Sequence[int], names: Sequence[str] | None
) -> None:
    font = font_for(sheet)
    pen, line = ImageDraw.Draw(sheet), sum(font.getmetrics()) + 4
    for i, label in enumerate(classes):
        y = 8 + i * line
        pen.rectangle((8, y + 3, 8 + line - 8, y + line - 5), fill=class_colour(label))
        pen.text((line + 6, y), class_name(label, names), INK, font)
