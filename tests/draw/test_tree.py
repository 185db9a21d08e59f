"""Trees as pictures: where nodes stand, which colours they have, what is refused."""

from types import SimpleNamespace

import numpy as np
import pytest

from jaxml.draw import COLOURS, save_tree
from jaxml.draw.tree import _layout


def tree(values=(-1.0, 0.5, 1.0)):
    """A split on f0, its first child split by category."""
    return SimpleNamespace(
        feature=np.array([0, 1, 0, 0, 0]),
        threshold=np.array([0.5, np.inf, 0, 0, 0]),
        default_left=np.array([True, False, False, False, False]),
        left=np.array([1, 3, 0, 0, 0]),
        value=np.array([0, 0, values[2], values[0], values[1]])[:, None],
        cover=np.array([10.0, 8, 2, 5, 3]),
        categories=np.array([[0], [6], [0], [0], [0]], np.uint32),
    )


def test_parents_stand_in_the_middle_above_their_children():
    places = _layout(np.array([1, 3, 0, 0, 0]))
    assert places == {3: (0, 2), 4: (1, 2), 2: (2, 1), 1: (0.5, 1), 0: (1.25, 0)}


def test_leaves_have_the_colour_of_their_value(tmp_path):
    picture = np.asarray(save_tree(tmp_path / "t.png", tree(), title="one")).astype(int)
    assert (tmp_path / "t.png").exists()
    columns = []
    for colour in COLOURS[:2]:  # the least is blue, the greatest orange
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        columns.append(np.flatnonzero((np.abs(picture - rgb).max(2) < 3).any(0)).mean())
    assert columns[0] < 0.4 * picture.shape[1] < 0.6 * picture.shape[1] < columns[1]


def test_questions_and_answers_are_written(tmp_path):
    names = ["height", "kind"]
    save_tree(tmp_path / "t.svg", tree(), feature_names=names)
    other = tree()
    other.value = np.concatenate((other.value, -other.value), axis=1)
    classes = save_tree(tmp_path / "c.png", other, class_names=["yes", "no"])
    plain = save_tree(None, other)
    assert (np.asarray(classes) != np.asarray(plain)).any()


def test_refuses_a_forest():
    with pytest.raises(ValueError, match="must be one tree"):
        save_tree(None, SimpleNamespace(**{**vars(tree()), "left": np.zeros((2, 3))}))
