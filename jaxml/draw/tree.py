"""A decision tree: what is asked at every node, and where rows go.

Leaves stand side by side, and every node in the middle above its children, so that no edge
crosses another. Edges are as wide as the share of the rows that takes them, and a dot marks
the one that missing values take. Leaves are coloured by what they say.

Reference: Reingold and Tilford, "Tidier Drawings of Trees", IEEE Transactions on Software
Engineering 1981, https://doi.org/10.1109/TSE.1981.234519 (leaves in order, parents centred).
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import FancyBboxPatch, PathPatch
from matplotlib.path import Path
from PIL import Image

from jaxml.draw.canvas import COLOURS, FAINT, INK, PathLike, finish, new_figure
from jaxml.export import export

WIDE, TALL = 1.6, 1.3
"""Inches from leaf to leaf and from level to level."""


@runtime_checkable
class Drawable(Protocol):
    """A tree as arrays over its nodes; `jaxml.trees.tree.Tree` is one."""

    feature: Any
    threshold: Any
    default_left: Any
    left: Any
    value: Any
    cover: Any
    categories: Any


@export("draw.save_tree", since="0.1")
def save_tree(
    path: PathLike,
    tree: Drawable,
    *,
    feature_names: Sequence[str] = (),
    class_names: Sequence[str] = (),
    title: str = "",
) -> Image.Image:
    """Draws one tree.

    Args:
        path: where to write, or None.
        tree: arrays over the nodes; the second child follows the first, at `left`, and a
            leaf has none, 0.
        feature_names: of the columns; without them f0, f1 and so on.
        class_names: where leaves hold a value for each of several classes, their names;
            leaves then have the colour of the largest.
        title: above the picture.

    Raises:
        ValueError: if the arrays are not of one tree.
    """
    left = np.asarray(tree.left)
    if left.ndim != 1 or not len(left):
        raise ValueError(f"tree must be one tree, [nodes], got {left.shape}")
    places = _layout(left)
    depth = max(y for _, y in places.values())
    width = WIDE * (1 + max(x for x, _ in places.values()))
    figure = new_figure(width + 0.6, TALL * (depth + 1) + 0.5, title)
    ax = figure.add_subplot()
    ax.axis("off")
    ax.set_xlim(-WIDE * 0.55, width - WIDE * 0.45)
    ax.set_ylim(-TALL * depth - 0.62, 0.42)
    cover = np.asarray(tree.cover, np.float64)
    share = cover / cover[0] if cover[0] > 0 else np.ones(len(cover))
    value = np.asarray(tree.value, np.float64)
    leaves = [node for node in places if not left[node]]
    colours = _colours(value[leaves], bool(class_names))
    at = {node: (WIDE * x, -TALL * y) for node, (x, y) in places.items()}
    for node, start in at.items():
        if left[node]:
            for side in (0, 1):
                child = int(left[node]) + side
                _edge(ax, start, at[child], float(share[child]))
                if bool(tree.default_left[node]) == (side == 0):
                    _dot(ax, start, at[child])
    lines: tuple[str, ...]
    for node, start in at.items():
        if left[node]:
            lines = *_question(tree, node, feature_names), f"{share[node]:.0%} of cover"
            _box(ax, start, lines, "white", INK)
        else:
            face = colours[leaves.index(node)]
            lines = _answer(value[node], class_names), f"{share[node]:.0%} of cover"
            _box(ax, start, lines, face, "white" if _is_dark(face) else INK)
    note = "yes: left, no: right; the dot marks the way of missing values"
    ax.text(-WIDE * 0.5, -TALL * depth - 0.58, note, size=8, color=FAINT, va="bottom")
    return finish(figure, path)


def _layout(left: np.ndarray) -> dict[int, tuple[float, int]]:
    """Place (column of leaves, depth) of every node that can be reached."""
    places: dict[int, tuple[float, int]] = {}
    count = 0
    stack = [(0, 0, False)]
    while stack:
        node, depth, done = stack.pop()
        first = int(left[node])
        if not first:
            places[node] = float(count), depth
            count += 1
        elif done:
            middle = (places[first][0] + places[first + 1][0]) / 2
            places[node] = middle, depth
        else:
            stack += [(node, depth, True), (first + 1, depth + 1, False)]
            stack.append((first, depth + 1, False))
    return places


def _edge(
    ax: Any, start: tuple[float, float], end: tuple[float, float], share: float
) -> None:
    middle = (start[1] + end[1]) / 2
    points = [start, (start[0], middle), (end[0], middle), end]
    codes = [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4]
    line = PathPatch(
        Path(points, codes),
        fc="none",
        ec="#c3ccd1",
        lw=1.2 + 9 * share,
        capstyle="round",
        zorder=1,
    )
    ax.add_patch(line)


def _dot(ax: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    x, y = ((a + b) / 2 for a, b in zip(start, end, strict=True))
    ax.plot([x], [y], "o", ms=4.5, mfc=INK, mec="white", mew=1.0, zorder=2)


def _box(
    ax: Any, at: tuple[float, float], lines: tuple[str, ...], face: str, ink: str
) -> None:
    """A box of bold lines and a last one that is not."""
    x, y = at
    wide, tall = WIDE * 0.9, 0.16 + 0.19 * len(lines)
    frame = FancyBboxPatch(
        (x - wide / 2, y - tall / 2),
        wide,
        tall,
        boxstyle="round,pad=0,rounding_size=0.1",
        fc=face,
        ec="#8b979e" if face == "white" else "none",
        lw=0.9,
        zorder=3,
    )
    ax.add_patch(frame)
    style = {"ha": "center", "va": "center", "zorder": 4}
    for i, line in enumerate(lines):
        height = y + 0.19 * ((len(lines) - 1) / 2 - i)
        last = i == len(lines) - 1
        size = 7.5 if last else min(9.5, 9.5 * 16 / max(len(line), 1))
        colour = FAINT if last and face == "white" else ink
        weight = "normal" if last else "bold"
        ax.text(x, height, line, size=size, weight=weight, color=colour, **style)


def _question(tree: Drawable, node: int, names: Sequence[str]) -> tuple[str, str]:
    """The feature, and what is asked of it."""
    feature = int(tree.feature[node])
    name = names[feature] if names else f"f{feature}"
    words = np.ascontiguousarray(tree.categories[node], np.uint32)
    if words.any():
        bits = np.unpackbits(words.view(np.uint8), bitorder="little")
        chosen = [str(code) for code in np.flatnonzero(bits)]
        shown = chosen if len(chosen) <= 5 else [*chosen[:4], "…"]
        return name, f"not in {{{', '.join(shown)}}}"
    return name, f"< {float(tree.threshold[node]):.4g}"


def _answer(value: np.ndarray, class_names: Sequence[str]) -> str:
    if class_names and len(value) > 1:
        return str(class_names[int(value.argmax())])
    return ", ".join(f"{v:+.3g}" for v in value[:4])


def _colours(value: np.ndarray, by_class: bool) -> list[str]:
    """Of the largest class, or from blue through grey to orange by the first value."""
    if by_class and value.shape[1] > 1:
        return [COLOURS[int(v.argmax()) % len(COLOURS)] for v in value]
    ramp = LinearSegmentedColormap.from_list(
        "values", [COLOURS[0], "#dfe5e8", COLOURS[1]]
    )
    top = np.abs(value[:, 0]).max() or 1.0
    shades = ramp(0.5 + 0.5 * value[:, 0] / top)
    return [f"#{''.join(f'{round(255 * c):02x}' for c in rgb[:3])}" for rgb in shades]


def _is_dark(colour: str) -> bool:
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
