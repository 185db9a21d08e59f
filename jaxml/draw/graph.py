"""A directed graph without cycles, drawn in layers from its sources to its ends.

A node lies one layer beyond the farthest of those it comes from. Within a layer nodes are
ordered by the mean place of their neighbours, going back and forth a few times: that leaves
few crossings.

Reference: Sugiyama, Tagawa and Toda, "Methods for Visual Understanding of Hierarchical
System Structures", IEEE Transactions on Systems, Man, and Cybernetics 1981,
https://doi.org/10.1109/TSMC.1981.4308636 (layers and barycenters).
"""

from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from jaxml.draw.canvas import COLOURS, FAINT, INK, PathLike, finish, new_figure
from jaxml.export import export

_SWEEPS = 8


@export("draw.save_graph", since="0.1")
def save_graph(
    path: PathLike,
    names: Mapping[Hashable, str],
    edges: Sequence[tuple[Hashable, Hashable]],
    *,
    title: str = "",
    highlight: Collection[Hashable] = (),
) -> Image.Image:
    """Boxes with names and arrows between them, from left to right.

    Args:
        path: where to write, or None.
        names: node -> what is written in its box.
        edges: (from, to).
        title: above the picture.
        highlight: nodes with a box in colour.

    Raises:
        ValueError: if there is no node, an edge has an end that is no node, or there is a
            cycle.
    """
    if not names:
        raise ValueError("names must hold at least one node, got none")
    lost = [end for edge in edges for end in edge if end not in names]
    if lost:
        raise ValueError(f"edges must join nodes with names, got {lost[0]!r}")
    layers = layered(list(names), edges)
    places = {node: (x, y) for x, row in enumerate(layers) for y, node in _spread(row)}
    lengths = [max(len(names[node]) for node in row) for row in layers]
    lefts = np.cumsum([0, *(0.09 * n + 0.6 for n in lengths)])
    tallest = max(map(len, layers))
    figure = new_figure(float(lefts[-1]) + 0.6, 0.55 * tallest + 0.9, title)
    ax = figure.add_subplot()
    ax.axis("off")
    where = {node: (lefts[x], 0.55 * y) for node, (x, y) in places.items()}
    boxes: dict[Hashable, Any] = {}
    for node, (x, y) in where.items():
        marked = node in highlight
        face = COLOURS[0] if marked else "#f4f6f7"
        frame = {"boxstyle": "round,pad=0.3", "fc": face, "ec": FAINT, "lw": 0.8}
        ink = "white" if marked else INK
        text = ax.text(x, y, names[node], size=10, color=ink, bbox=frame, va="center")
        boxes[node] = text.get_bbox_patch()
    ax.set_xlim(-0.3, float(lefts[-1]) + 0.1)
    ax.set_ylim(0.55 * (-tallest / 2) - 0.2, 0.55 * (tallest / 2) + 0.2)
    for start, end in edges:
        style = {
            "arrowstyle": "-|>",
            "color": FAINT,
            "lw": 0.9,
            "shrinkA": 0,
            "shrinkB": 0,
        }
        ax.annotate(
            "",
            xy=(0.0, 0.5),
            xycoords=boxes[end],
            xytext=(1.0, 0.5),
            textcoords=boxes[start],
            arrowprops=style,
        )
    return finish(figure, path)


def layered(
    nodes: Sequence[Hashable], edges: Sequence[tuple[Hashable, Hashable]]
) -> list[list[Hashable]]:
    """The nodes in layers, each in an order with few crossings.

    Raises:
        ValueError: if there is a cycle.
    """
    sources: dict[Hashable, list[Hashable]] = {node: [] for node in nodes}
    ends: dict[Hashable, list[Hashable]] = {node: [] for node in nodes}
    for start, end in edges:
        sources[end].append(start)
        ends[start].append(end)
    missing = {node: len(before) for node, before in sources.items()}
    ready = [node for node, count in missing.items() if not count]
    depth = dict.fromkeys(ready, 0)
    for node in ready:
        for end in ends[node]:
            depth[end] = max(depth.get(end, 0), depth[node] + 1)
            missing[end] -= 1
            if not missing[end]:
                ready.append(end)
    if len(ready) < len(nodes):
        raise ValueError("the graph must have no cycle")
    for node in nodes:  # a source stands just before the first that needs it
        if not sources[node] and ends[node]:
            depth[node] = min(depth[end] for end in ends[node]) - 1
    layers: list[list[Hashable]] = [[] for _ in range(max(depth.values()) + 1)]
    for node in nodes:
        layers[depth[node]].append(node)
    for sweep in range(_SWEEPS):
        near = ends if sweep % 2 else sources
        place = {node: y for row in layers for y, node in _spread(row)}
        for row in reversed(layers) if sweep % 2 else layers:
            mean = {
                node: np.mean([place[other] for other in near[node]])
                if near[node]
                else place[node]
                for node in row
            }
            row.sort(key=lambda node: -mean[node])
            place.update({node: y for y, node in _spread(row)})
    return layers


def _spread(row: Sequence[Hashable]) -> list[tuple[float, Hashable]]:
    """Nodes of a layer with their heights, around zero."""
    middle = (len(row) - 1) / 2
    return [(middle - i, node) for i, node in enumerate(row)]
