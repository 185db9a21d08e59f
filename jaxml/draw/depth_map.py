"""Depth, disparity and other fields of numbers as pictures, with their scale beside them."""

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from PIL import Image

from jaxml.draw.canvas import FAINT, PathLike, finish, new_figure
from jaxml.export import export
from jaxml.ops.color import Number
from jaxml.typing import Array, Bool, Float


@export("draw.save_depth_map", since="0.1")
def save_depth_map(
    path: PathLike,
    depth: Float[Array, "height width"],
    *,
    valid: Bool[Array, "height width"] | None = None,
    low: Number | None = None,
    high: Number | None = None,
    unit: str = "",
    title: str = "",
) -> Image.Image:
    """Near is bright, far is dark; what is not known is a light grey.

    Args:
        path: where to write, or None.
        depth: any numbers; those that are not finite are not known.
        valid: False where depth is not known.
        low: nearest that is told apart, by default the 1st percentile.
        high: farthest, by default the 99th.
        unit: written at the scale, such as "m".
        title: above the picture.

    Raises:
        ValueError: if nothing is known.
    """
    depth = np.asarray(depth, np.float64)
    known = np.isfinite(depth)
    if valid is not None:
        known &= np.asarray(valid)
    if not known.any():
        raise ValueError(f"depth must be known somewhere, got none of {depth.size}")
    first, last = np.percentile(depth[known], [1, 99])
    low = float(first) if low is None else low
    high = float(last) if high is None else high
    high = max(high, low + 1e-12)
    height, width = depth.shape
    figure = new_figure(7.2, 0.6 + 6.2 * min(1.6, height / width), title)
    ax = figure.add_subplot()
    colours = colormaps["viridis_r"].with_extremes(bad="#d8d8d8")
    norm = Normalize(low, high)
    shown = np.ma.masked_array(depth, ~known)
    near = "nearest" if max(height, width) < 400 else "antialiased"
    ax.imshow(shown, cmap=colours, norm=norm, interpolation=near)
    ax.set_axis_off()
    bar = figure.colorbar(
        ScalarMappable(norm, colours), ax=ax, shrink=0.9, aspect=30, pad=0.02
    )
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.tick_params(colors=FAINT, labelsize=9, length=3)
    bar.ax.invert_yaxis()
    if unit:
        bar.set_label(unit, color=FAINT, fontsize=10)
    return finish(figure, path)
