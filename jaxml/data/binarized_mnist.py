"""MNIST with every pixel drawn once, the fixed set on which densities are compared.

Each pixel of a digit was set to 0 or 1 at random, with its grey value as the probability,
and the outcome was kept; likelihoods in nats refer to this one outcome. The images carry
no labels. A threshold at one half makes another, easier set: numbers must not be mixed.

The set is by Salakhutdinov and Murray, "On the Quantitative Analysis of Deep Belief
Networks" (ICML 2008), in the files of Larochelle.
"""

from pathlib import Path

import numpy as np

from jaxml.data.source import Read, Source, reader

SIZES = {"train": 50_000, "valid": 10_000, "test": 10_000}


def binarized_mnist(folder: Path) -> Source:
    """Samples are `image` uint8 [28, 28, 1], 0 or 255.

    Raises:
        ValueError: if a file does not hold the images it should (when it is opened).
    """

    def open_split(split: str) -> Read:
        path = folder / f"binarized_mnist_{split}.amat"
        bits = _read(path)
        if bits.shape != (SIZES[split], 784) or bits.max() > 1:
            raise ValueError(
                f"{path} must hold {SIZES[split]} rows of 784 zeros and ones, "
                f"got {bits.shape} up to {bits.max()}"
            )
        return reader({"image": 255 * bits.reshape(-1, 28, 28, 1)})

    return Source(SIZES, open_split)


def _read(path: Path) -> np.ndarray:
    """The rows of a file, MATLAB's format 5 or text with a blank between digits."""
    data = path.read_bytes()
    if data.startswith(b"MATLAB 5.0"):
        import scipy.io

        arrays = scipy.io.loadmat(path)
        return next(v for k, v in arrays.items() if not k.startswith("__"))
    characters = np.frombuffer(data, np.uint8)
    digits = characters[characters >= ord("0")] - np.uint8(ord("0"))
    return digits.reshape(-1, 784)
