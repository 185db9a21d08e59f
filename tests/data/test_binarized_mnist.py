"""Larochelle's files in both of their formats."""

import numpy as np
import pytest
import scipy.io

from jaxml.data.binarized_mnist import SIZES, binarized_mnist


@pytest.fixture
def bits(rng):
    return rng.integers(0, 2, (6, 784), np.uint8)


@pytest.mark.parametrize("form", ["matlab", "text"])
def test_both_formats(tmp_path, monkeypatch, bits, form):
    monkeypatch.setitem(SIZES, "valid", 6)
    path = tmp_path / "binarized_mnist_valid.amat"
    if form == "matlab":
        scipy.io.savemat(path, {"X": bits}, appendmat=False)
    else:
        np.savetxt(path, bits, fmt="%d", delimiter=" ")
    image = binarized_mnist(tmp_path).open("valid")(np.array([5, 2]))["image"]
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, 255 * bits[[5, 2]].reshape(2, 28, 28, 1))


def test_other_contents(tmp_path, monkeypatch, bits):
    monkeypatch.setitem(SIZES, "valid", 6)
    path = tmp_path / "binarized_mnist_valid.amat"
    for wrong in (bits[:5], bits * 2):
        scipy.io.savemat(path, {"X": wrong}, appendmat=False)
        with pytest.raises(
            ValueError, match="must hold 6 rows of 784 zeros and ones, got"
        ):
            binarized_mnist(tmp_path).open("valid")
    with pytest.raises(FileNotFoundError, match="binarized_mnist_test"):
        binarized_mnist(tmp_path).open("test")


def test_real_files(data_dir):
    """The share of ones was counted in the files with scipy.io.loadmat."""
    source = binarized_mnist(data_dir / "binarized_mnist")
    image = source.open("test")(np.arange(10_000))["image"]
    assert set(np.unique(image)) == {0, 255}
    assert abs(image.mean() / 255 - 0.13251) < 1e-5
