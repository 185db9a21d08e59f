"""Folders and archives of pictures, `<split>/<class>/<file>`, as a source.

Classes are numbered in the order of their names. Within a split they are dealt out in
turn, each with its files in the order of their names: first the first file of every
class, then the second. So any first part of a split is a fair sample of it, and the order
is the same wherever the files lie.

The trap of such folders is a broken file: it is an error that names the file, never a
sample quietly left out.
"""

import io
import itertools
import lzma
import os
import tarfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxml.data.source import Read, Source, reader
from jaxml.export import export
from jaxml.typing import Int, UInt8

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".pgm", ".ppm", ".webp", ".tif", ".tiff")
_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_MEMORY = 1 << 30  # bytes of pixels that are decoded once and kept

ImageSize = int | tuple[int, int] | None


class _Picture(NamedTuple):
    origin: str
    label: str
    fetch: Callable[[], bytes]


@export("data.images", since="0.1")
def images(
    path: str | os.PathLike[str], *, image_size: ImageSize = None, channels: int = 3
) -> Source:
    """The pictures in a folder or in a tar archive, compressed or not.

    Three layouts are understood: `<split>/<class>/<file>`, below any number of other
    folders; `<class>/<file>`, all of which is the split `train`; and `<file>`, pictures
    without labels. Files that are not pictures by their ending are not looked at.
    Samples are `image` uint8 [height, width, channels] and `label`.

    Up to 1 GiB of pixels are decoded once and kept; more are decoded as they are read.
    A compressed archive is held in memory.

    Args:
        path: of the folder or archive.
        image_size: one side of a square, or (height, width): pictures are scaled until
            they just cover it, and cropped around the centre. None keeps them as they
            are, and then all must have one size.
        channels: 3 for RGB or 1 for grey; pictures of the other kind are converted.

    Raises:
        FileNotFoundError: if there is no such folder or archive, or no picture in it.
        ValueError: if the layouts are mixed, if a picture cannot be decoded or, with
            `image_size` None, has another size than the first (when it is read).
    """
    check_image_options(image_size, channels)
    path = Path(path).expanduser()
    splits = _arrange(path, list(_pictures(path)))
    classes = sorted({p.label for pictures in splits.values() for p in pictures} - {""})
    sizes = {split: len(pictures) for split, pictures in splits.items()}

    def open_split(split: str) -> Read:
        return _reader(splits[split], classes, image_size, channels)

    return Source(sizes, open_split, tuple(classes))


def is_archive(path: Path) -> bool:
    """Whether a path ends like a tar archive."""
    return path.name.lower().endswith(_ARCHIVES)


def check_image_options(image_size: ImageSize, channels: int) -> None:
    """Raises ValueError unless `decode_image` can take these."""
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 (grey) or 3 (RGB), got {channels}")
    if image_size is not None and min(height_width(image_size)) < 1:
        raise ValueError(f"image_size must be positive, got {image_size}")


def decode_image(
    data: bytes, origin: str, *, image_size: ImageSize = None, channels: int = 3
) -> UInt8[np.ndarray, "height width channels"]:
    """Decodes one picture, as `images` describes; `origin` names it in errors."""
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(data)) as file:
            if file.mode.startswith(("I", "F")):
                raise ValueError(f"it has more than 8 bits (mode {file.mode})")
            picture = file.convert("RGB" if channels == 3 else "L")
    except Exception as error:  # of many kinds, depending on the format
        raise ValueError(f"cannot decode {origin}: {error}") from error
    if image_size is not None:
        height, width = height_width(image_size)
        picture = ImageOps.fit(picture, (width, height), Image.Resampling.BICUBIC)
    return np.asarray(picture).reshape(picture.height, picture.width, channels)


def height_width(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """The two sides that an `image_size` stands for."""
    return image_size if isinstance(image_size, tuple) else (image_size, image_size)


def _reader(
    pictures: Sequence[_Picture],
    classes: Sequence[str],
    image_size: ImageSize,
    channels: int,
) -> Read:
    def decode(picture: _Picture) -> UInt8[np.ndarray, "height width channels"]:
        return decode_image(
            picture.fetch(), picture.origin, image_size=image_size, channels=channels
        )

    first = decode(pictures[0])
    number = {name: k for k, name in enumerate(classes)}
    labels = np.array([number.get(p.label, -1) for p in pictures], np.int32)

    def read(indices: Int[np.ndarray, " batch"]) -> dict[str, np.ndarray]:
        image = np.empty((len(indices), *first.shape), np.uint8)
        for k, i in enumerate(indices):
            one = decode(pictures[i])
            if one.shape != first.shape:
                raise ValueError(
                    "pictures must have one size unless image_size is given, got "
                    f"{first.shape[1]} x {first.shape[0]} ({pictures[0].origin}) and "
                    f"{one.shape[1]} x {one.shape[0]} ({pictures[i].origin})"
                )
            image[k] = one
        return {"image": image} | ({"label": labels[indices]} if classes else {})

    if len(pictures) * first.size > _MEMORY:
        return read
    chunks = np.array_split(np.arange(len(pictures)), -(-len(pictures) // 256))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = list(pool.map(read, chunks))
    return reader({k: np.concatenate([p[k] for p in parts]) for k in parts[0]})


def _pictures(path: Path) -> Iterator[tuple[tuple[str, ...], _Picture]]:
    """Every picture under a path, with the parts of its own path below it."""
    if path.is_dir():
        for folder, _, files in os.walk(path):
            for file in map(Path(folder).joinpath, files):
                if _is_picture(file.name):
                    parts = file.relative_to(path).parts
                    yield parts, _Picture(str(file), "", file.read_bytes)
    elif path.is_file() and is_archive(path):
        try:
            yield from _members(path)
        except (
            tarfile.TarError,
            EOFError,
            OSError,
            zlib.error,
            lzma.LZMAError,
        ) as error:
            raise ValueError(f"cannot read {path}: {error}") from error
    else:
        raise FileNotFoundError(f"{path} must be a folder or end in {_ARCHIVES}")


def _members(path: Path) -> Iterator[tuple[tuple[str, ...], _Picture]]:
    plain = path.name.lower().endswith(".tar")
    with tarfile.open(path) as archive:
        for member in archive:
            parts = Path(member.name).parts
            if not (member.isfile() and _is_picture(parts[-1])):
                continue
            fetch: Callable[[], bytes]
            if plain:
                fetch = partial(_read_range, path, member.offset_data, member.size)
            else:
                fetch = partial(bytes, _extract(archive, member))
            yield parts, _Picture(f"{path}:{member.name}", "", fetch)
        # tarfile ends in silence where a header is broken or the file stops; a whole
        # archive ends in zeros, and reading on checks the sum of a compressed one.
        stream: Any = archive.fileobj
        stream.seek(archive.offset)
        if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("the archive is broken or cut short")
        while stream.read(1 << 20):
            pass


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    return file.read() if file else b""


def _read_range(path: Path, start: int, size: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(size)


def _is_picture(name: str) -> bool:
    return name.lower().endswith(_SUFFIXES) and not name.startswith(".")


def _arrange(
    path: Path, found: Sequence[tuple[tuple[str, ...], _Picture]]
) -> dict[str, list[_Picture]]:
    """Each split's pictures in their fixed order."""
    depths = {min(len(parts), 3) for parts, _ in found}
    if not depths:
        raise FileNotFoundError(
            f"no pictures in {path}: expected <split>/<class>/<file>"
        )
    if len(depths) > 1:
        raise ValueError(
            f"pictures must all lie in <split>/<class>, or all in <class>, or all in "
            f"{path} itself, got a mixture"
        )
    groups: dict[str, dict[str, list[_Picture]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for parts, picture in sorted(found, key=lambda item: item[0]):
        *_, split, label, _ = "train", *[""] * (2 - len(parts)), *parts
        groups[split][label].append(picture._replace(label=label))
    return {
        split: [
            picture
            for turn in itertools.zip_longest(*(by_class[k] for k in sorted(by_class)))
            for picture in turn
            if picture is not None
        ]
        for split, by_class in groups.items()
    }
