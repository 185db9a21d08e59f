"""COCO128: the first photographs of COCO, with a class for every pixel.

A hundred of the 128 have a map of COCO's panoptic classes, things and stuff. Its numbers
are not those of COCO's boxes, and have gaps: here the classes are numbered without gaps in
the same order, and what is not labelled is 255, which losses and measures ignore.

The set is by Lin et al., "Microsoft COCO: Common Objects in Context" (ECCV 2014), and
Kirillov et al., "Panoptic Segmentation" (CVPR 2019).
"""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxml.data.images import ImageSize, check_image_options, decode_image, height_width
from jaxml.data.source import Source, from_arrays

TEST_EVERY = 5  # every fifth picture, in the order of their names, is for test


def coco128_masks(
    folder: Path,
    *,
    image_size: ImageSize = 128,
    only: Sequence[str] | None = None,
) -> Source:
    """Samples are `image` uint8 [height, width, 3] and `label` uint8 [height, width].

    Args:
        folder: with `images`, `masks_semantic` and `classes.json`.
        image_size: one side of a square, or (height, width): pictures are scaled until
            they just cover it and cropped around the centre, and their maps with them.
        only: names of classes that are kept, numbered from 1 in this order; all else that
            is labelled is 0, "other". None keeps every class, from 0.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if there is no size, or `only` names no class.
    """
    if image_size is None:
        raise ValueError("coco128_masks needs an image_size, for its pictures differ")
    check_image_options(image_size, 3)
    size = height_width(image_size)
    named = json.loads((folder / "classes.json").read_text())["semantic_masks"]
    numbers = {name: int(k) for k, name in named.items() if k != "0"}
    classes = tuple(sorted(numbers, key=lambda name: numbers[name]))
    if only is not None:
        unknown = [name for name in only if name not in numbers]
        if unknown or not only:
            raise ValueError(f"classes must be of COCO, got {unknown or 'none'}")
    table = np.full(256, 255, np.uint8)
    for i, name in enumerate(classes):
        table[numbers[name]] = i if only is None else 0
    for i, name in enumerate(only or (), 1):
        table[numbers[name]] = i
    masks = sorted((folder / "masks_semantic").glob("*.png"))
    if not masks:
        raise FileNotFoundError(f"no masks in {folder / 'masks_semantic'}")
    pictures = [folder / "images" / f"{path.stem}.jpg" for path in masks]
    images = np.stack(
        [decode_image(p.read_bytes(), str(p), image_size=size) for p in pictures]
    )
    labels = np.stack([table[_fit(path, size)] for path in masks])
    test = np.arange(len(masks)) % TEST_EVERY == TEST_EVERY - 1
    return from_arrays(
        {
            "train": {"image": images[~test], "label": labels[~test]},
            "test": {"image": images[test], "label": labels[test]},
        },
        classes if only is None else ("other", *only),
    )


def _fit(path: Path, size: tuple[int, int]) -> np.ndarray:
    """As `decode_image` scales a picture, with no new numbers."""
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(path.read_bytes())) as file:
        if file.mode not in ("L", "P"):
            raise ValueError(f"{path} must be a map of numbers, got mode {file.mode}")
        height, width = size
        fitted = ImageOps.fit(file, (width, height), Image.Resampling.NEAREST)
        return np.asarray(fitted)
