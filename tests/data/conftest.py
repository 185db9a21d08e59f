"""A small set in TFDS's own format, prepared once."""

from pathlib import Path

import numpy as np
import pytest

from jaxml.data import png


class Tiny:
    """The samples of the set `tiny`, before TFDS puts them into an order of its own."""

    def __init__(self):
        self.sizes = {"train": 23, "test": 7}
        rng = np.random.default_rng(0)
        self.samples = {
            split: [
                {
                    "image": rng.integers(0, 256, (5, 4, 3), np.uint8),
                    "label": i % 3,
                    "vector": rng.normal(size=(2, 3)),
                    "packed": rng.normal(size=4).astype(np.float32),
                    "flag": i % 2 == 0,
                    "text": f"{split} sample {i}, naïve",
                    "number": i,
                    "huge": 2**40 + i,
                    "photo": rng.integers(0, 256, (6 + i % 3, 7, 3), np.uint8),
                    "boxes": [{"box": [0.0, 0.0, 0.5, 1.0]}] * (i % 3),
                }
                for i in range(size)
            ]
            for split, size in self.sizes.items()
        }


def build(tiny: Tiny, directory: Path) -> Path:
    import tensorflow_datasets as tfds

    f = tfds.features

    class Builder(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.2.0")
        pkg_dir_path = directory  # where TFDS looks for texts about a set
        name = "tiny"

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=f.FeaturesDict(
                    {
                        "image": f.Image(shape=(5, 4, 3)),
                        "label": f.ClassLabel(names=["ape", "bee", "cat"]),
                        "vector": f.Tensor(shape=(2, 3), dtype=np.float64),
                        "packed": f.Tensor(
                            shape=(4,), dtype=np.float32, encoding="zlib"
                        ),
                        "flag": f.Scalar(dtype=np.bool_),
                        "text": f.Text(),
                        "number": f.Scalar(dtype=np.int64),
                        "huge": f.Scalar(dtype=np.int64),
                        "photo": f.Image(shape=(None, None, 3)),
                        "boxes": f.Sequence({"box": f.BBoxFeature()}),
                    }
                ),
            )

        def _split_generators(self, downloads):
            return {split: self._generate_examples(split) for split in tiny.samples}

        def _generate_examples(self, split):
            for i, sample in enumerate(tiny.samples[split]):
                (image,), (photo,) = (
                    png.encode(sample[k][None]) for k in ("image", "photo")
                )
                boxes = [{"box": f.BBox(*b["box"])} for b in sample["boxes"]]
                yield i, {**sample, "image": image, "photo": photo, "boxes": boxes}

    builder = Builder(data_dir=directory)
    builder.download_and_prepare(file_format="array_record")
    return Path(builder.data_path)


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    return Tiny()


@pytest.fixture(scope="session")
def tiny_dir(tiny, tmp_path_factory) -> Path:
    """TFDS's folder, with `tiny` in it."""
    from tensorflow_datasets.core import registered

    directory = tmp_path_factory.mktemp("tfds")
    with registered.skip_registration():
        build(tiny, directory)
    return directory
