"""What was decoded once, in .npy files that are mapped into memory from then on.

A folder `jaxml-<fingerprint>` beside the records holds a folder for every split that was
decoded. The fingerprint covers the records' names, sizes and times, so a set that is
prepared again is decoded again; and a folder appears under its name only when all in it
is written, so neither a killed process nor one that works at the same time does harm.
"""

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from jaxml.data.source import Read

_FORMAT = 1
_CHUNK = 2048  # samples that are decoded together


def fingerprint(path: Path, *options: Any) -> str:
    """A hash of the files in a folder, as far as their dates tell, and of `options`."""
    files = [
        (file.name, file.stat().st_size, file.stat().st_mtime_ns)
        for file in sorted(path.iterdir())
        if file.is_file()
    ]
    text = json.dumps([_FORMAT, files, options])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def load_notes(folder: Path) -> Any:
    """What `save_notes` has written; None if there is nothing."""
    try:
        return json.loads((folder / "notes.json").read_text())
    except FileNotFoundError:
        return None


def save_notes(folder: Path, notes: Any) -> None:
    """Writes notes (as JSON) into a folder of decoded splits, if there is one."""
    if folder.is_dir() and not (folder / "notes.json").exists():
        with tempfile.NamedTemporaryFile("w", dir=folder, delete=False) as file:
            json.dump(notes, file)
        os.replace(file.name, folder / "notes.json")


def decode_once(
    folder: Path,
    open_records: Callable[[], Read],
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, str],
) -> dict[str, np.ndarray]:
    """The arrays of a split: from their files, or else decoded and written there.

    Where nothing can be written they are decoded into memory.

    Args:
        folder: of the split.
        open_records: gives the function that reads and decodes samples.
        shapes: of the arrays, the number of samples first.
        dtypes: of the arrays.
    """
    if not folder.is_dir():
        temporary = _temporary(folder.parent)
        where = (temporary and folder) or "memory: its folder cannot be written"
        num_samples = next(iter(shapes.values()))[0]
        print(f"jaxml: decoding {num_samples} samples into {where}", file=sys.stderr)
        if temporary is None:
            arrays = {k: np.empty(shape, dtypes[k]) for k, shape in shapes.items()}
            _fill(arrays, open_records(), num_samples)
            return arrays
        try:
            files = {
                k: np.lib.format.open_memmap(
                    temporary / f"{k}.npy", "w+", np.dtype(dtypes[k]), shape
                )
                for k, shape in shapes.items()
            }
            _fill(files, open_records(), num_samples)
            for file in files.values():
                file.flush()
            _rename(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    # Mapped, not read: at hand at once, and shared by the processes of a machine.
    return {k: np.asarray(np.load(folder / f"{k}.npy", mmap_mode="r")) for k in shapes}


def _temporary(folder: Path) -> Path | None:
    """A new folder in `folder`, which is made if need be; None if it cannot be."""
    try:
        folder.mkdir(exist_ok=True)
        return Path(tempfile.mkdtemp(dir=folder))
    except OSError:
        return None


def _rename(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError:
        if not target.is_dir():  # else another process was faster
            raise


def _fill(arrays: Mapping[str, np.ndarray], read: Read, num_samples: int) -> None:
    from tqdm.auto import tqdm

    def fill(start: int) -> None:
        part = np.arange(start, min(start + _CHUNK, num_samples))
        for name, values in read(part).items():
            arrays[name][part] = values

    starts = range(0, num_samples, _CHUNK)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        # No bar where nobody looks at a terminal.
        list(tqdm(pool.map(fill, starts), total=len(starts), disable=None))
