"""Graphs in layers: order, arrows and what is refused."""

import numpy as np
import pytest

from jaxml.draw import COLOURS, save_graph
from jaxml.draw.graph import layered


def test_a_node_lies_beyond_all_it_comes_from():
    edges = [("a", "b"), ("b", "c"), ("a", "c"), ("d", "c"), ("c", "e")]
    assert layered(list("edcba"), edges) == [
        ["a"],
        ["b", "d"],
        ["c"],
        ["e"],
    ] or layered(list("edcba"), edges) == [["a"], ["d", "b"], ["c"], ["e"]]


def test_crossings_are_undone():
    edges = [("a", "x"), ("b", "y"), ("c", "z")]
    first, second = layered(list("abczyx"), edges)
    assert ["abc".index(node) for node in first] == ["xyz".index(n) for n in second]


def test_the_picture_shows_boxes_from_left_to_right(tmp_path):
    names = {1: "first", 2: "second", 3: "third"}
    picture = save_graph(
        tmp_path / "g.png", names, [(1, 2), (2, 3)], title="three", highlight=[3]
    )
    assert (tmp_path / "g.png").exists()
    colour = [int(COLOURS[0][i : i + 2], 16) for i in (1, 3, 5)]
    image = np.asarray(picture).astype(int)
    columns = np.flatnonzero((np.abs(image - colour).max(2) < 3).any(0))
    assert columns.min() > 0.5 * image.shape[1]  # the end stands on the right


def test_refuses_what_is_no_such_graph():
    with pytest.raises(ValueError, match="at least one node"):
        save_graph(None, {}, [])
    with pytest.raises(ValueError, match="nodes with names, got 'b'"):
        save_graph(None, {"a": "a"}, [("a", "b")])
    with pytest.raises(ValueError, match="no cycle"):
        save_graph(None, {"a": "a", "b": "b"}, [("a", "b"), ("b", "a")])
