"""Generated sets are functions of the index: the same alone, in a batch, everywhere."""

import hashlib

import chex
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from jaxml.data.generated import (
    GENERATED,
    SHAPES,
    _uniform,
    gaussian_blobs,
    shape_masks,
    shapes,
)


@pytest.mark.parametrize("name", GENERATED)
def test_a_sample_depends_on_its_index_alone(name, rng):
    read = GENERATED[name]().open("train")
    indices = rng.integers(0, 10**12, 70)
    batch = read(indices)
    for k in (0, 33, 69):
        one = read(indices[k : k + 1])
        chex.assert_trees_all_equal(
            one, {key: v[k : k + 1] for key, v in batch.items()}
        )
    again = GENERATED[name]().open("train")(indices)
    chex.assert_trees_all_equal(batch, again)


@pytest.mark.parametrize("name", GENERATED)
def test_samples_and_splits_differ(name):
    source = GENERATED[name]()
    assert source.endless
    train, test = (source.open(s)(np.arange(200)) for s in ("train", "test"))
    key = "features" if name == "gaussian_blobs" else "image"
    rows = np.concatenate([train[key], test[key]]).reshape(400, -1)
    assert len(np.unique(rows, axis=0)) == 400


def test_shapes_are_the_same_bytes_everywhere():
    """The hash was made with Python 3.11, NumPy 2.4.6 on x86-64."""
    image = shapes().open("train")(np.arange(50))["image"]
    assert hashlib.sha256(image.tobytes()).hexdigest()[:16] == "1e3af6d68d3b55a2"


@pytest.mark.parametrize("size, num_classes", [(32, 10), (17, 3), (8, 2)])
def test_shapes_options(size, num_classes):
    source = shapes(size=size, num_classes=num_classes)
    batch = source.open("test")(np.arange(5, 45))
    chex.assert_shape(batch["image"], (40, size, size, 3))
    assert batch["image"].dtype == np.uint8
    assert batch["label"].dtype == np.int32
    assert batch["label"].tolist() == [i % num_classes for i in range(5, 45)]
    assert tuple(source.classes) == SHAPES[:num_classes]


def test_the_shape_and_not_the_colour_tells_the_class():
    """Mean colours say nothing about the class; edges, seen from the middle, do."""
    source = shapes(num_classes=4)
    train, test = (source.open(s)(np.arange(2000)) for s in ("train", "test"))

    def accuracy(features):
        model = LogisticRegression(max_iter=200).fit(
            features(train["image"]), train["label"]
        )
        return model.score(features(test["image"]), test["label"])

    assert accuracy(lambda x: x.mean(axis=(1, 2)) / 255) < 0.35


def test_every_shape_can_be_seen():
    """With the same random numbers, another class is another picture."""
    from jaxml.data.generated import draw_shapes

    random = np.repeat(_uniform("train", np.arange(20), 89), len(SHAPES), axis=0)
    labels = np.tile(np.arange(len(SHAPES)), 20)
    images = draw_shapes(random, labels, 32).reshape(20, len(SHAPES), -1).astype(int)
    for a in range(len(SHAPES)):
        for b in range(a):
            changed = (abs(images[:, a] - images[:, b]) > 16).sum(axis=1)
            assert (changed > 20).all(), (SHAPES[a], SHAPES[b])


def test_uniform_numbers_are_uniform_and_independent():
    u = _uniform("train", np.arange(20_000), 6)
    assert u.shape == (20_000, 6)
    assert 0 <= u.min() < 0.001 < 0.999 < u.max() < 1
    chex.assert_trees_all_close(u.mean(axis=0), np.full(6, 0.5), atol=0.01)
    chex.assert_trees_all_close(u.var(axis=0), np.full(6, 1 / 12), atol=0.002)
    both = np.concatenate([u[:-1], u[1:]], axis=1)  # a sample and the next
    correlation = np.corrcoef(both, rowvar=False) - np.eye(12)
    assert abs(correlation).max() < 0.04


@pytest.mark.parametrize("dim, num_classes", [(2, 5), (7, 3), (1, 1)])
def test_blobs_are_normal_around_common_centres(dim, num_classes):
    source = gaussian_blobs(dim=dim, num_classes=num_classes)
    train, test = (source.open(s)(np.arange(10_000)) for s in ("train", "test"))
    for k in range(num_classes):
        rows = [s["features"][s["target"] == k] for s in (train, test)]
        chex.assert_trees_all_close(rows[0].mean(0), rows[1].mean(0), atol=0.15)
        chex.assert_trees_all_close(
            np.cov(rows[0], rowvar=False).reshape(dim, dim), np.eye(dim), atol=0.15
        )
        z = rows[0] - rows[0].mean(0)
        assert abs((z**4).mean() - 3) < 0.3  # the kurtosis of a normal distribution
    assert abs(train["features"]).max() < 20 + 6


def test_blobs_are_apart_by_default():
    source = gaussian_blobs()
    train = source.open("train")(np.arange(5000))
    centres = np.stack([train["features"][k::5].mean(0) for k in range(5)])
    nearest = np.linalg.norm(
        train["features"][:, None] - centres[None], axis=-1
    ).argmin(1)
    assert (nearest == train["target"]).mean() > 0.99


@pytest.mark.parametrize(
    "make",
    [
        lambda: shapes(num_classes=11),
        lambda: shapes(num_classes=1),
        lambda: shapes(size=7),
        lambda: gaussian_blobs(dim=0),
        lambda: gaussian_blobs(num_classes=0),
    ],
)
def test_bad_options(make):
    with pytest.raises(ValueError, match=r"num_classes .*, got"):
        make()


def test_shape_masks_agree_with_their_pictures():
    source = shape_masks(size=48, num_classes=3, max_shapes=3)
    assert source.classes == ("ground", "disk", "square", "triangle")
    few = source.open("train")(np.array([5, 90_000]))  # endless
    all_of_them = source.open("train")(np.arange(64))
    for name in few:
        np.testing.assert_array_equal(few[name][0], all_of_them[name][5])
    label, instance = all_of_them["label"], all_of_them["instance"]
    assert all_of_them["image"].shape == (64, 48, 48, 3)
    assert label.dtype == instance.dtype == np.uint8
    np.testing.assert_array_equal(label == 0, instance == 0)
    assert set(np.unique(label)) == {0, 1, 2, 3}
    assert set(np.unique(instance)) == {0, 1, 2, 3}
    assert (instance == 1).any(axis=(1, 2)).mean() > 0.8  # unless all covered
    for i in range(64):
        image = all_of_them["image"][i].astype(float)
        for number in (1, 2, 3):
            where = instance[i] == number
            assert len(np.unique(label[i][where])) <= 1  # one shape, one class
            if where.sum() > 200:
                # One colour inside, but for the outline's pixels.
                inside = np.median(image[where], axis=0)
                assert np.median(abs(image[where] - inside)) < 2


def test_disks_of_masks_are_round():
    """Their area is pi times the radius squared, in images of one shape."""
    read = shape_masks(size=96, num_classes=1, max_shapes=1).open("train")
    masks = read(np.arange(40))["label"].astype(bool)
    whole = [
        m
        for m in masks
        if not (m[0].any() or m[-1].any() or m[:, 0].any() or m[:, -1].any())
    ]
    assert len(whole) > 10
    for mask in whole:
        diameter = (mask.any(axis=0).sum() + mask.any(axis=1).sum()) / 2
        # Counted in whole pixels, a diameter is one off at most.
        area = np.pi * np.array([diameter - 1, diameter + 1]) ** 2 / 4
        assert area[0] < mask.sum() < area[1]


def test_shape_masks_refuses_what_it_has_not():
    for options in ({"num_classes": 11}, {"size": 7}, {"max_shapes": 0}):
        with pytest.raises(ValueError, match="shape_masks needs"):
            shape_masks(**options)
