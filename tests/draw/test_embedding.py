"""Embeddings: the plane is the right one, and every class is named in it."""

import numpy as np
import pytest

from jaxml.draw import COLOURS, save_embedding
from jaxml.draw.embedding import _plane


def test_pca_is_the_plane_of_largest_variance(rng):
    x = rng.normal(size=(60, 5)) * [1, 9, 2, 5, 0.1] + 7
    points, names = _plane(x, "pca", 0)
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
    for i, axis in enumerate((-1, -2)):
        direction = vectors[:, axis] * np.sign(
            vectors[np.abs(vectors[:, axis]).argmax(), axis]
        )
        expected = (x - x.mean(axis=0)) @ direction
        np.testing.assert_allclose(points[:, i], expected, atol=1e-8)
        assert names[i].endswith(f"({values[axis] / values.sum():.0%})")


def test_pca_has_one_sign(rng):
    x = rng.normal(size=(40, 3)) * [5, 2, 1]
    order = rng.permutation(40)
    a, _ = _plane(x, "pca", 0)
    b, _ = _plane(x[order], "pca", 0)
    np.testing.assert_allclose(b, a[order], atol=1e-8)


def test_tsne_keeps_clusters_apart(rng):
    labels = np.arange(40) % 2
    x = rng.normal(size=(40, 6)) + 20 * labels[:, None]
    points, _ = _plane(x, "tsne", 0)
    middle = [points[labels == i].mean(axis=0) for i in (0, 1)]
    radius = max(
        np.linalg.norm(points[labels == i] - middle[i], axis=1).max() for i in (0, 1)
    )
    assert np.linalg.norm(middle[0] - middle[1]) > radius


def colour_count(picture, colour):
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return (np.abs(np.asarray(picture).astype(int) - rgb).max(axis=2) < 8).sum()


def test_every_class_has_its_colour_and_its_name(rng, tmp_path):
    labels = np.repeat([0, 1, 3], 30)
    x = rng.normal(size=(90, 2)) + 9 * labels[:, None]
    names = ["cat", "dog", "bird", "fish"]
    picture = save_embedding(
        tmp_path / "e.png", x, labels, names, method=None, title="two dims"
    )
    save_embedding(tmp_path / "e.svg", x, labels, names, method=None)
    for i, seen in enumerate([True, True, False, True]):
        assert (colour_count(picture, COLOURS[i]) > 50) == seen
        text = (tmp_path / "e.svg").read_text("utf-8")
        assert (f"<!-- {names[i]} -->" in text) == seen


def test_points_are_coloured_by_their_own_class():
    """Class 0 left, class 1 right: so must be the colours."""
    labels = np.repeat([0, 1], 50)
    x = np.column_stack([labels * 10.0, np.tile(np.arange(50.0), 2) / 10])
    pixels = np.asarray(save_embedding(None, x, labels, method=None))
    left, right = np.hsplit(pixels[:, : pixels.shape[1] // 2 * 2], 2)
    assert colour_count(left, COLOURS[1]) < 20 < colour_count(left, COLOURS[0])
    assert colour_count(right, COLOURS[0]) < 20 < colour_count(right, COLOURS[1])


def test_more_than_ten_classes_differ_by_their_marks(rng):
    labels = np.arange(46) % 23
    save_embedding(None, rng.normal(size=(46, 4)).astype(np.float32), labels)


def test_many_points_are_thinned_alike(rng):
    x, labels = rng.normal(size=(500, 2)), np.zeros(500, int)
    few = save_embedding(None, x, labels, method=None, max_points=20)
    again = save_embedding(None, x, labels, method=None, max_points=20)
    other = save_embedding(None, x, labels, method=None, max_points=20, seed=1)
    assert np.array_equal(np.asarray(few), np.asarray(again))
    assert not np.array_equal(np.asarray(few), np.asarray(other))
    every = save_embedding(None, x, labels, method=None)
    assert colour_count(every, COLOURS[0]) > colour_count(few, COLOURS[0])


X, Y = np.eye(4), np.array([0, 1, 1, 0])


@pytest.mark.parametrize(
    "arguments, options, message",
    [
        ((X[:1], Y[:1]), {}, r"at least 2 samples by 2, got \(1, 4\)"),
        ((X[:, :1], Y), {}, r"at least 2 samples by 2, got \(4, 1\)"),
        ((X * np.nan, Y), {}, "features must be finite"),
        ((X, Y), {"method": None}, "features must have dim 2, got 4"),
        ((X, Y, ["a"]), {}, r"labels must be in \[0, 1\), got 0 to 1"),
        ((X, Y - 1), {}, r"labels must be in \[0, 1\), got -1 to 0"),
    ],
)
def test_bad_input_is_an_error(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        save_embedding(None, *arguments, **options)


def test_shapes_and_methods_that_do_not_exist_are_errors():
    with pytest.raises((ValueError, TypeError), match=r"labels|samples"):
        save_embedding(None, X, Y[:3])
    with pytest.raises((ValueError, TypeError), match=r"method|umap"):
        save_embedding(None, X, Y, method="umap")
