"""From the name of a dataset to its source; nothing is fetched unless it is allowed."""

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxml.data.binarized_mnist import binarized_mnist
from jaxml.data.bundled import BUNDLED, bundled
from jaxml.data.coco128 import coco128_masks
from jaxml.data.generated import GENERATED
from jaxml.data.images import images, is_archive
from jaxml.data.isbi_membrane import isbi_membrane
from jaxml.data.prepare import FILES, prepare
from jaxml.data.source import Source
from jaxml.data.tfds import find_prepared, list_prepared, prepared, tfds_folder

PathLike = str | os.PathLike[str]

LAID_OUT: dict[str, tuple[str, Callable[..., Source]]] = {
    "binarized_mnist": ("binarized_mnist", binarized_mnist),
    "coco128_masks": ("coco128", coco128_masks),
    "isbi_membrane": ("isbi_membrane", isbi_membrane),
}
"""Sets whose files are no <split>/<class>/<file>: their folder, and who reads it."""


def open_source(
    name: str,
    *,
    data_dir: PathLike | None = None,
    tfds_dir: PathLike | None = None,
    download: bool | None = None,
    **options: Any,
) -> Source:
    """The source of a name, as `jaxml.data.load` describes it."""
    if name.startswith("images:"):
        return _call(images, name.removeprefix("images:"), **options)
    if name in BUNDLED:
        return _call(bundled, name, **options)
    if name in GENERATED:
        return _call(GENERATED[name], **options)
    data = data_folder(data_dir)
    sets = tfds_folder(tfds_dir)
    path = find_prepared(name, sets) or (data and find_prepared(name, data))
    if path is None and name in FILES:
        folders = [data / name] if data else []
        folders.append(sets / "downloads" / "manual" / name)
        if download is None:
            download = os.environ.get("JAXML_DOWNLOAD") == "1"
        prepare(name, folders, sets, download=download)
        path = find_prepared(name, sets)
    if path is not None:
        return _call(prepared, path, **options)
    if data is not None and name in LAID_OUT:
        folder, opener = LAID_OUT[name]
        if (data / folder).is_dir():
            return _call(opener, data / folder, **options)
    elif data is not None and (data / name).is_dir():
        return _call(images, _pictures(data / name), **options)
    raise ValueError(_unknown(name, data, sets))


def data_folder(data_dir: PathLike | None = None) -> Path | None:
    """Where original files lie: the argument or JAXML_DATA_DIR; None if neither is set."""
    chosen = data_dir or os.environ.get("JAXML_DATA_DIR")
    return Path(chosen).expanduser() if chosen else None


def _call(opener: Callable[..., Source], *args: Any, **options: Any) -> Source:
    """Calls `opener`, with an error that lists its options where one is not among them."""
    parameters = inspect.signature(opener).parameters.values()
    known = [p.name for p in parameters if p.default is not p.empty]
    for option in options:
        if option not in known:
            raise TypeError(
                f"the options of {opener.__name__} must be among "
                f"{', '.join(known) or '(none)'}, got {option!r}"
            )
    return opener(*args, **options)


def _pictures(folder: Path) -> Path:
    """The only archive in a folder, or else the folder."""
    archives = [path for path in folder.iterdir() if is_archive(path)]
    return archives[0] if len(archives) == 1 else folder


def _unknown(name: str, data: Path | None, sets: Path) -> str:
    folders = sorted(p.name for p in data.iterdir() if p.is_dir()) if data else []
    lines = {
        "bundled": BUNDLED,
        "generated": GENERATED,
        "prepared from original files": FILES,
        "read from their own folders": LAID_OUT,
        f"prepared by TFDS in {sets}": list_prepared(sets),
        f"folders of {data or 'JAXML_DATA_DIR, which is not set'}": folders,
        "pictures anywhere": ["images:<folder or archive>"],
    }
    known = "; ".join(f"{kind}: {', '.join(n) or '-'}" for kind, n in lines.items())
    return (
        f"a dataset must be one of those below, got {name!r}. {known}. Any other set of "
        "TFDS can be read once it was prepared in that folder, by TFDS itself with "
        f"`tfds build {name} --file_format=array_record`"
    )
