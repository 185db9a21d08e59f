"""Neurons under an electron microscope: 30 slices, with the cells between membranes.

The training volume of the ISBI 2012 challenge, serial sections of a fruit fly larva's
ventral nerve cord, 512 x 512 pixels of 4 nm and 50 nm apart. Its own test labels are not
public, so the last six slices are for test here: the slices follow one another, and one
drawn from between those of training would have two near copies of itself among them.

The set is by Cardona et al., "An Integrated Micro- and Macroarchitectural Analysis of the
Drosophila Brain by Computer-Assisted Serial Section Electron Microscopy" (PLoS Biology
2010).
"""

from pathlib import Path

import numpy as np

from jaxml.data.images import decode_image
from jaxml.data.source import Source, from_arrays

CLASSES = ("membrane", "cell")
SPLITS = {"train": range(24), "test": range(24, 30)}


def isbi_membrane(folder: Path) -> Source:
    """Samples are `image` uint8 [512, 512, 1] and `label` uint8 [512, 512], 1 in cells.

    Raises:
        FileNotFoundError: if a slice is missing.
        ValueError: if a picture is of another size, or a label neither 0 nor 255.
    """
    return from_arrays(
        {
            split: {
                "image": np.stack([_read(folder / f"image/{i}.png") for i in numbers]),
                "label": np.stack([_label(folder / f"label/{i}.png") for i in numbers]),
            }
            for split, numbers in SPLITS.items()
        },
        CLASSES,
    )


def _read(path: Path) -> np.ndarray:
    image = decode_image(path.read_bytes(), str(path), channels=1)
    if image.shape != (512, 512, 1):
        raise ValueError(f"{path} must have 512 x 512 pixels, got {image.shape[:2]}")
    return image


def _label(path: Path) -> np.ndarray:
    label = _read(path)[..., 0]
    if not np.isin(label, (0, 255)).all():
        found = sorted(set(np.unique(label)) - {0, 255})
        raise ValueError(f"{path} must hold 0 and 255, got also {found[0]}")
    return label // 255
