"""TFDS datasets prepared without TensorFlow, from their original files.

TFDS's own builders describe the sets, check the files' SHA-256 and write the records; but
they unpack, read and compress with TensorFlow. Those three steps are replaced here for
MNIST and its kin and for CIFAR. What comes out is what TFDS would have written, in TFDS's
order, except that the PNG files are compressed less.

Nothing is looked for in the network unless downloads are allowed. TFDS would retry for
minutes without one; here a missing file is an error at once that says what is missing.
"""

import contextlib
import gzip
import hashlib
import io
import os
import shutil
import sys
import tarfile
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from jaxml.data import png
from jaxml.data.tfds import find_prepared

_IDX = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
FILES = {
    "mnist": _IDX,
    "fashion_mnist": _IDX,
    "kmnist": _IDX,
    "cifar10": ("cifar-10-binary.tar.gz",),
    "cifar100": ("cifar-100-binary.tar.gz",),
}
"""The original files of each set that can be prepared."""

_TIMEOUT = 30.0  # seconds without an answer


def prepare(
    name: str, folders: Sequence[Path], directory: Path, *, download: bool = False
) -> None:
    """Prepares a set of `FILES` in `directory`, as TFDS does.

    Processes that want the same set wait for the first of them.

    Args:
        name: of the set.
        folders: where its files may lie; the first that has all of them is used.
        directory: where TFDS keeps its sets.
        download: fetch missing files to the last of `folders`.

    Raises:
        FileNotFoundError: if files are missing and may not be downloaded.
        ConnectionError: if they cannot be downloaded.
        ValueError: if a file is not the original one.
    """
    folder = next((f for f in folders if not _missing(name, f)), None)
    if folder is None and not download:
        nearest = min(folders, key=lambda f: len(_missing(name, f)))
        raise FileNotFoundError(
            f"{name} is not prepared in {directory}, and there is nothing to prepare it "
            f"from: {nearest} lacks {', '.join(_missing(name, nearest))}. Put the files "
            "there, name the folder above it with data_dir= or JAXML_DATA_DIR, or allow "
            "the download with download=True or JAXML_DOWNLOAD=1"
        )
    directory.mkdir(parents=True, exist_ok=True)
    with _alone(directory / f".jaxml-{name}.lock"):
        if find_prepared(name, directory):
            return
        builder = _builder(name)(data_dir=directory)
        if folder is None:
            folder = folders[-1]
            _download(builder, folder)
        print(f"jaxml: preparing {name} from {folder} in {directory}", file=sys.stderr)
        _build(builder, folder)


def _missing(name: str, folder: Path) -> list[str]:
    return [file for file in FILES[name] if not (folder / file).is_file()]


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Lets one process at a time pass."""
    import fcntl

    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(builder: Any, folder: Path) -> None:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.download_manager import (
        NonMatchingChecksumError,
    )
    from tensorflow_datasets.core.utils import tqdm_utils

    config = tfds.download.DownloadConfig(manual_dir=folder, try_download_gcs=False)
    bars = tqdm_utils._active
    tfds.display_progress_bar(bars and sys.stderr.isatty())
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(
                download_config=config, file_format="array_record"
            )
    except NonMatchingChecksumError as error:
        raise ValueError(
            f"a file in {folder} is not the original one: {error}"
        ) from None
    finally:
        tfds.display_progress_bar(bars)


# The builders.


def _builder(name: str) -> Any:
    """TFDS's builder of a set, without its use of TensorFlow."""
    from tensorflow_datasets.core import registered
    from tensorflow_datasets.image_classification import cifar, mnist

    stock, split_generators = {
        "mnist": (mnist.MNIST, _mnist_splits),
        "fashion_mnist": (mnist.FashionMNIST, _mnist_splits),
        "kmnist": (mnist.KMNIST, _mnist_splits),
        "cifar10": (cifar.Cifar10, _cifar_splits),
        "cifar100": (cifar.Cifar100, _cifar_splits),
    }[name]
    replaced = {"_split_generators": split_generators, "__module__": stock.__module__}
    with registered.skip_registration():
        return type(stock.__name__, (stock,), replaced)


def _urls(builder: Any) -> list[str]:
    if hasattr(builder, "_cifar_info"):
        return [builder._cifar_info.url]
    return [builder.URL + file for file in _IDX]


def _mnist_splits(builder: Any, downloads: Any) -> dict[str, Iterator[Any]]:
    paths = [Path(path) for path in downloads.download(_urls(builder))]
    return {"train": read_idx(*paths[:2]), "test": read_idx(*paths[2:])}


def _cifar_splits(builder: Any, downloads: Any) -> dict[str, Iterator[Any]]:
    (path,) = map(Path, downloads.download(_urls(builder)))
    info = builder._cifar_info
    with tarfile.open(path) as archive:
        for key, file in zip(info.label_keys, info.label_files, strict=True):
            names = _extract(archive, info.prefix + file).decode().split("\n")
            builder.info.features[key].names = [name for name in names if name]
    return {
        split: read_cifar(
            path, [info.prefix + f for f in files], info.label_keys, split
        )
        for split, files in (("train", info.train_files), ("test", info.test_files))
    }


Example = tuple[int, dict[str, Any]]


def read_idx(images: Path, labels: Path) -> Iterator[Example]:
    """The samples of two IDX files, images and labels, under their numbers."""
    values = np.frombuffer(gzip.decompress(labels.read_bytes()), np.uint8, offset=8)
    data = gzip.decompress(images.read_bytes())
    _, count, height, width = np.frombuffer(data, ">u4", count=4).tolist()
    pixels = np.frombuffer(data, np.uint8, offset=16).reshape(count, height, width, 1)
    for i, (file, label) in enumerate(zip(_encode(pixels), values, strict=True)):
        yield i, {"image": file, "label": int(label)}


def read_cifar(
    archive: Path, members: Sequence[str], label_keys: Sequence[str], split: str
) -> Iterator[Example]:
    """The samples of CIFAR's binary files: labels, then 32 x 32 red, green and blue."""
    with tarfile.open(archive) as file:
        data = b"".join([_extract(file, member) for member in members])
    rows = np.frombuffer(data, np.uint8).reshape(-1, len(label_keys) + 3072)
    labels, pixels = np.split(rows, [len(label_keys)], axis=1)
    images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    for i, image in enumerate(_encode(images)):
        named = dict(zip(label_keys, labels[i].tolist(), strict=True))
        yield i, {"id": f"{split}_{i:05d}", "image": image, **named}


def _encode(images: np.ndarray) -> Iterator[bytes]:
    """PNG files of many images, made ahead by other threads."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        chunks = np.array_split(images, -(-len(images) // 512))
        yield from chain.from_iterable(pool.map(png.encode, chunks))


def _extract(archive: tarfile.TarFile, member: str) -> bytes:
    file = archive.extractfile(member)
    if file is None:
        raise ValueError(f"{member} must be a file in {archive.name!r}")
    return file.read()


# Downloads.


def _download(builder: Any, folder: Path) -> None:
    """Fetches the files of a set that are missing in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for url in _urls(builder):
        path = folder / url.rpartition("/")[2]
        if not path.is_file():
            print(f"jaxml: downloading {url} to {folder}", file=sys.stderr)
            _fetch(url, path, builder.url_infos[url].checksum)


def _fetch(url: str, path: Path, sha256: str) -> None:
    from tqdm.auto import tqdm

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        part = Path(folder, path.name)
        try:
            with (
                urllib.request.urlopen(url, timeout=_TIMEOUT) as response,
                open(part, "wb") as file,
                tqdm.wrapattr(
                    file, "write", total=response.length, disable=None
                ) as out,
            ):
                shutil.copyfileobj(response, out)
        except (OSError, HTTPException) as error:
            raise ConnectionError(
                f"cannot download {url}: {error}. Fetch it elsewhere and put it into "
                f"{path.parent}"
            ) from error
        found = hashlib.sha256(part.read_bytes()).hexdigest()
        if found != sha256:
            raise ValueError(f"{url} must have SHA-256 {sha256}, got {found}")
        part.replace(path)
