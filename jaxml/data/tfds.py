"""Datasets that TFDS has prepared, read without TensorFlow.

TFDS keeps a dataset as records in `<name>[/<config>]/<version>/`, in array_record files
or in TFRecord files; either can be read here at random. A split of up to 2 GiB of numbers
and pixels is decoded once, into files beside the records (`jaxml.data.decoded`): later it
is at hand at once, and TFDS is not even imported. Larger ones are decoded as they are
read.
"""

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxml.data import png
from jaxml.data.decoded import decode_once, fingerprint, load_notes, save_notes
from jaxml.data.images import (
    ImageSize,
    check_image_options,
    decode_image,
    height_width,
)
from jaxml.data.source import Read, Source, reader
from jaxml.data.tfrecord import open_tfrecords
from jaxml.typing import Int, UInt8

_MEMORY = 2 << 30  # bytes of a split that are decoded once
_VERSION = re.compile(r"\d+\.\d+\.\d+")


class _Feature(NamedTuple):
    """What a feature becomes: "image", "number" or "text", the shape of one sample (empty
    for pictures of no fixed size) and the type.
    """

    kind: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def is_fixed(self) -> bool:
        """Whether samples are numbers of one shape."""
        return self.kind == "number" or (self.kind == "image" and self.shape != ())


class _Contents(NamedTuple):
    sizes: Mapping[str, int]
    classes: Sequence[str]
    features: Mapping[str, _Feature]


def tfds_folder(directory: str | os.PathLike[str] | None = None) -> Path:
    """Where TFDS keeps what it has prepared: the argument, TFDS_DATA_DIR or its default."""
    chosen = directory or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(chosen).expanduser()


def find_prepared(name: str, directory: Path) -> Path | None:
    """The folder of a prepared set in its newest version; None if there is none.

    Args:
        name: as in TFDS: `mnist`, `emnist/letters`, `mnist:3.0.1`.
        directory: where TFDS keeps its sets.
    """
    dataset, _, version = name.partition(":")
    versions = {
        tuple(map(int, found.parent.name.split("."))): found.parent
        for found in (directory / dataset).glob("*/dataset_info.json")
        if _VERSION.fullmatch(found.parent.name) and version in ("", found.parent.name)
    }
    return versions[max(versions)] if versions else None


def list_prepared(directory: Path) -> list[str]:
    """The names of all prepared sets."""
    found = {
        info.parents[1].relative_to(directory).as_posix()
        for levels in ("*/*", "*/*/*")
        for info in directory.glob(f"{levels}/dataset_info.json")
        if _VERSION.fullmatch(info.parent.name)
    }
    return sorted(found)


def prepared(
    path: Path,
    *,
    image_size: ImageSize = None,
    features: Sequence[str] | None = None,
) -> Source:
    """A set that TFDS has prepared.

    Args:
        path: the folder of one version.
        image_size: as for `images`; it must be given where pictures have no fixed size.
        features: which to read. Numbers of fixed shape, 8-bit pictures and text can be;
            None reads all of them but text, which comes as arrays of str. What has 64
            bits becomes int32 or float32.

    Raises:
        ValueError: if a feature is not there or cannot be read, or `image_size` is
            missing.
    """
    check_image_options(image_size, 3)
    folder = path / f"jaxml-{fingerprint(path, image_size)}"
    contents = _load_contents(folder) or _read_contents(path, image_size)
    if features is None:
        features = [k for k, v in contents.features.items() if v.kind != "text"]
    if not features:
        raise ValueError(f"{path} must have a feature that can be read, got none")
    for name in features:
        if name not in contents.features:
            raise ValueError(
                f"features of {path} must be among {', '.join(contents.features)}, "
                f"got {name!r}"
            )
        if contents.features[name] == _Feature("image", (), "uint8"):
            raise ValueError(
                f"image_size must be given, for the pictures of {path} have no one size"
            )

    def open_split(split: str) -> Read:
        fixed = {name: f for name, f in contents.features.items() if f.is_fixed}
        num_samples = contents.sizes[split]
        num_bytes = num_samples * sum(
            math.prod(f.shape) * np.dtype(f.dtype).itemsize for f in fixed.values()
        )
        if num_bytes > _MEMORY or not fixed.keys() >= set(features):
            chosen = {name: contents.features[name] for name in features}
            return _narrowed(_record_reader(path, split, chosen, image_size))
        arrays = decode_once(
            folder / split,
            lambda: _record_reader(path, split, fixed, image_size),
            {name: (num_samples, *f.shape) for name, f in fixed.items()},
            {name: f.dtype for name, f in fixed.items()},
        )
        save_notes(folder, contents)
        return _narrowed(reader({name: arrays[name] for name in features}))

    return Source(contents.sizes, open_split, contents.classes)


def _load_contents(folder: Path) -> _Contents | None:
    notes = load_notes(folder)
    if notes is None:
        return None
    sizes, classes, features = notes
    return _Contents(
        sizes,
        tuple(classes),
        {k: _Feature(kind, tuple(s), d) for k, (kind, s, d) in features.items()},
    )


def _read_contents(path: Path, image_size: ImageSize) -> _Contents:
    import tensorflow_datasets as tfds

    info = tfds.builder_from_directory(path).info
    sizes = {k: v.num_examples for k, v in info.splits.items() if v.num_examples}
    if not isinstance(info.features, tfds.features.FeaturesDict):
        raise ValueError(f"{path} must have named features, got {info.features}")
    named = sorted(info.features.items())  # TFDS keeps no order
    features = {
        name: described
        for name, feature in named
        if (described := _describe(feature, image_size)) is not None
    }
    labels = {
        name: feature.names
        for name, feature in named
        if isinstance(feature, tfds.features.ClassLabel)
    }
    classes = labels.get("label") or next(iter(labels.values()), ())
    return _Contents(sizes, tuple(classes), features)


def _describe(feature: Any, image_size: ImageSize) -> _Feature | None:
    """What a TFDS feature becomes; None if it cannot be read."""
    import tensorflow_datasets as tfds

    info = feature.get_tensor_info()
    if not isinstance(info, tfds.features.TensorInfo):
        return None
    shape, dtype = info.shape, np.dtype(info.np_dtype)
    if isinstance(feature, tfds.features.Image):
        if dtype != np.uint8 or shape[-1] not in (1, 3):
            return None
        if image_size is not None:
            shape = (*height_width(image_size), shape[-1])
        return _Feature("image", () if None in shape else tuple(shape), "uint8")
    if isinstance(feature, tfds.features.Text):
        return _Feature("text", (), "object")
    if None in shape or dtype.kind not in "biuf":
        return None
    return _Feature("number", tuple(shape), dtype.name)


def _record_reader(
    path: Path, split: str, features: Mapping[str, _Feature], image_size: ImageSize
) -> Read:
    """Reads and decodes records."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.proto import tf_example_pb2

    builder = tfds.builder_from_directory(path)
    get, specs = _open_records(builder, split), builder.info.features

    def read(indices: Int[np.ndarray, " batch"]) -> dict[str, np.ndarray]:
        records = map(tf_example_pb2.Example.FromString, get(indices.tolist()))
        samples = [record.features.feature for record in records]
        batch = {}
        for name, feature in features.items():
            values = [sample[name] for sample in samples]
            if feature.kind == "image":
                files = [value.bytes_list.value[0] for value in values]
                origins = [f"{name} of record {i} in {path}, {split}" for i in indices]
                batch[name] = _images(files, origins, feature.shape, image_size)
            elif feature.kind == "text":
                texts = [value.bytes_list.value[0].decode() for value in values]
                batch[name] = np.array(texts, object)
            else:
                numbers = [_numbers(value, specs[name]) for value in values]
                batch[name] = np.array(numbers)
        return batch

    return read


def _open_records(builder: Any, split: str) -> Callable[[list[int]], Sequence[bytes]]:
    import tensorflow_datasets as tfds

    form = builder.info.file_format.value
    if form == "array_record":
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        source = builder.as_data_source(split, deserialize_method=raw)
        return source.__getitems__
    if form == "tfrecord":
        size, get = open_tfrecords(builder.info.splits[split].filepaths)
        if size == builder.info.splits[split].num_examples:
            return get
        raise ValueError(f"{builder.data_path} lacks records of {split}, got {size}")
    raise ValueError(
        f"{builder.data_path} must hold array_record or tfrecord, got {form}: prepare it "
        "again with file_format='array_record'"
    )


def _images(
    files: Sequence[bytes],
    origins: Sequence[str],
    shape: tuple[int, ...],
    image_size: ImageSize,
) -> UInt8[np.ndarray, "batch height width channels"]:
    height, width, channels = shape
    if image_size is None:
        batch, others = png.decode(files, (height, width, channels))
    else:
        batch = np.empty((len(files), *shape), np.uint8)
        others = list(range(len(files)))
    for i in others:
        one = decode_image(
            files[i], origins[i], image_size=image_size, channels=channels
        )
        if one.shape != shape:
            raise ValueError(f"{origins[i]} must have shape {shape}, got {one.shape}")
        batch[i] = one
    return batch


def _numbers(value: Any, feature: Any) -> np.ndarray:
    """The numbers in a protocol buffer, in the feature's own shape and type."""
    kind = value.WhichOneof("kind")
    numbers = getattr(value, kind).value
    if kind == "bytes_list":  # a tensor that TFDS was told to store as bytes
        return feature.decode_example_np(numbers[0])
    return np.array(numbers, feature.np_dtype).reshape(feature.shape)


def _narrowed(read: Read) -> Read:
    """Reads what has 64 bits as JAX has it by default, in 32."""

    def narrow(name: str, values: np.ndarray) -> np.ndarray:
        if values.dtype == np.float64:
            return values.astype(np.float32)
        if values.dtype not in (np.int64, np.uint64):
            return values
        narrowed = values.astype(np.int32)
        if (narrowed != values).any():
            raise ValueError(
                f"integers must fit into 32 bits, got {values.max()} in {name}: leave "
                "that feature out with features="
            )
        return narrowed

    return lambda indices: {k: narrow(k, v) for k, v in read(indices).items()}
