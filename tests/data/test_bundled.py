"""scikit-learn's sets: nothing lost, fairly split, in their own units."""

import numpy as np
import pytest
import sklearn.datasets

from jaxml.data.bundled import BUNDLED, bundled


def whole(source, split):
    return source.open(split)(np.arange(source.sizes[split]))


@pytest.mark.parametrize("name", BUNDLED)
def test_splits_hold_every_sample_once(name):
    source = bundled(name)
    original = getattr(sklearn.datasets, f"load_{name}")()
    key, label = ("image", "label") if name == "digits" else ("features", "target")
    train, test = whole(source, "train"), whole(source, "test")
    assert set(train) == set(test) == {key, label}
    scale = 16 if name == "digits" else 1
    rows = [
        np.column_stack([s[key].reshape(len(s[key]), -1) * scale, s[label]])
        for s in (train, test)
    ]
    expected = np.column_stack([original.data, original.target]).astype(np.float32)
    actual = np.concatenate(rows).astype(np.float32)
    assert sorted(map(tuple, actual)) == sorted(map(tuple, expected))
    assert source.sizes == {"train": len(train[key]), "test": len(test[key])}


@pytest.mark.parametrize("name", ["digits", "breast_cancer", "iris", "wine"])
def test_every_fifth_of_each_class_is_for_test(name):
    source = bundled(name)
    original = getattr(sklearn.datasets, f"load_{name}")()
    label = "label" if name == "digits" else "target"
    test = whole(source, "test")
    assert test[label].dtype == np.int32
    for k, class_name in enumerate(source.classes):
        assert class_name == str(original.target_names[k])
        mine = test["image" if name == "digits" else "features"][test[label] == k]
        theirs = original.data[original.target == k][4::5].astype(np.float32)
        scale = 16 if name == "digits" else 1
        np.testing.assert_array_equal(mine.reshape(len(mine), -1) * scale, theirs)


def test_first_samples_are_of_every_class():
    for name, classes in (("iris", 3), ("digits", 10)):
        label = "target" if name == "iris" else "label"
        for split in ("train", "test"):
            first = bundled(name).open(split)(np.arange(5 * classes))[label]
            assert first.tolist() == [*range(classes)] * 5


def test_digits_are_images_from_0_to_1():
    source = bundled("digits")
    batch = whole(source, "train")
    assert batch["image"].shape == (source.sizes["train"], 8, 8, 1)
    assert batch["image"].dtype == np.float32
    assert (batch["image"].min(), batch["image"].max()) == (0, 1)


def test_diabetes_has_a_number_for_a_target():
    source = bundled("diabetes")
    batch = whole(source, "test")
    original = sklearn.datasets.load_diabetes()
    assert source.classes == ()
    assert batch["target"].dtype == np.float32
    np.testing.assert_array_equal(batch["target"], original.target[4::5])
