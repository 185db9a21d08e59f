"""What a checkpoint holds, whether its files are sound, how two of them differ.

    python -m experiments.inspect runs/simclr_digits
    python -m experiments.inspect runs/simclr_digits --step 1000 --only params/encoder
    python -m experiments.inspect runs/simclr_digits --compare runs/other

Shows the record (metrics, configuration, versions) and the tree of arrays: type, shape,
size and statistics, or with `--compare` how far two checkpoints are apart. Arrays are
read a few at a time. Ends with status 1 if a file is damaged or if the two differ.
"""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from jaxml.train import CheckpointError, Checkpoints, checksums, storage
from jaxml.train.checkpoint import locate
from jaxml.train.leaves import Leaves, describe

AT_ONCE = 1 << 28  # bytes of arrays in memory; one that is larger is read alone
PIECE = 1 << 22  # numbers converted to float64 at a time


@dataclass(frozen=True)
class Config:
    """What a checkpoint holds, whether its files are sound, how two of them differ."""

    path: tyro.conf.Positional[Path]
    """A run's folder, a folder of checkpoints, or one checkpoint."""
    step: int | None = None
    """Which one; the newest by default."""
    only: str = ""
    """Shows the arrays whose paths begin so."""
    compare: Path | None = None
    """Another checkpoint, likewise; shows the differences."""
    verify: bool = True
    """Whether the checksums of the files are compared."""


def main(config: Config) -> bool:
    """Prints it all; whether the files are sound, and equal to the other's if given.

    Raises:
        CheckpointError: if there is no such checkpoint, or it cannot be read.
    """
    given = [config.path] if config.compare is None else [config.path, config.compare]
    folders = [find(path, config.step) for path in given]
    sound = [show_record(folder, config.verify) for folder in folders]
    shapes = [
        {k: x for k, x in storage.read_shapes(f).items() if k.startswith(config.only)}
        for f in folders
    ]
    if config.compare is None:
        print(aligned(tree(described(folders[0], shapes[0]), shapes[0])))
        return all(sound)
    rows = compared(folders, *shapes)
    print(aligned(tree(rows, shapes[0] | shapes[1])))
    differ = sum(row.get("difference") != "none" for row in rows.values())
    print(f"\n{differ} of {len(rows)} arrays differ")
    return all(sound) and not differ


def find(path: Path, step: int | None) -> Path:
    """The folder of one checkpoint."""
    directory, only = locate(path)
    with Checkpoints(directory, keep_last=None) as checkpoints:
        return checkpoints.path(checkpoints.find(step if only is None else only))


def show_record(folder: Path, verify: bool) -> bool:
    """Prints where it is, whether its files are sound, and its record."""
    damages = checksums.damages(folder) if verify else []
    files = [path for path in folder.rglob("*") if path.is_file()]
    size = byte_amount(sum(path.stat().st_size for path in files))
    state = "not checked" if not verify else "DAMAGED" if damages else "sound"
    print(f"{folder}: {len(files)} files, {size}, {state}")
    for damage in damages:
        print(f"  {damage}")
    print("\n".join(outline(storage.read_record(folder))), end="\n\n")
    return not damages


def outline(values: Mapping[str, Any], indent: str = "  ") -> Iterator[str]:
    """A nested mapping in aligned lines; long values are cut."""
    width = max(map(len, values), default=0)
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield f"{indent}{name}"
            yield from outline(value, indent + "  ")
        else:
            text = number(value) if isinstance(value, float) else str(value)
            yield f"{indent}{name:<{width}}  {text[:80]}{'...' * (len(text) > 80)}"


Row = dict[str, str]
"""Title of a column -> cell."""


def described(folder: Path, shapes: Leaves) -> dict[str, Row]:
    """Type, size and statistics of every array."""
    return {
        name: totals({name: shapes[name]})
        | {"numbers": describe(shapes[name])}
        | statistics(x)
        for name, (x,) in arrays([folder], shapes)
    }


def statistics(x: np.ndarray) -> Row:
    """Those of the numbers that are finite; of complex ones the absolute values."""
    wrong = count = 0
    total = square = 0.0
    low, high = np.inf, -np.inf
    for piece in pieces(x):
        finite = piece[np.isfinite(piece)]
        wrong += piece.size - finite.size
        count += finite.size
        total += finite.sum()
        square += np.square(finite).sum()
        low = min(low, finite.min(initial=np.inf))
        high = max(high, finite.max(initial=-np.inf))
    if not count:
        return {"not finite": str(wrong)}
    mean = total / count
    std = np.sqrt(max(square / count - mean**2, 0.0))
    values = {"norm": square**0.5, "mean": mean, "std": std, "min": low, "max": high}
    row = {title: number(value) for title, value in values.items()}
    return row | ({"not finite": str(wrong)} if wrong else {})


def compared(folders: Sequence[Path], here: Leaves, there: Leaves) -> dict[str, Row]:
    """Of every array the largest difference, and the norm of all relative to the first."""
    rows = {}
    for name, leaf in (there | here).items():
        gap = f"{describe(there[name])} there" if name in there else "only here"
        gap = gap if name in here else "only there"
        rows[name] = {"numbers": describe(leaf), "difference": gap}
    common = {k: x for k, x in here.items() if k in there and same_type(x, there[k])}
    for name, (x, y) in arrays(folders, common):
        rows[name] |= distance(x, y)
    return rows


def same_type(x: Any, y: Any) -> bool:
    """Whether shape and dtype agree."""
    return describe(x) == describe(y)


def distance(x: np.ndarray, y: np.ndarray) -> Row:
    """Largest |x - y|, and the norm of x - y by that of x, unless all bits are equal."""
    if x.tobytes() == y.tobytes():
        return {"difference": "none"}
    largest = square = base = 0.0
    for a, b in zip(pieces(x), pieces(y), strict=True):
        with np.errstate(invalid="ignore"):
            gap = np.where(a == b, 0.0, np.abs(a - b))
        gap = np.nan_to_num(gap, nan=np.inf)  # a number that only one of them has
        largest = max(largest, gap.max(initial=0.0))
        square += np.square(gap).sum()
        base += np.square(a).sum()
    relative = np.sqrt(square / base) if base else np.inf
    return {"difference": number(largest), "relative": number(relative)}


def arrays(
    folders: Sequence[Path], shapes: Leaves
) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Every array as it lies in each folder; reads a bounded number of bytes at once."""
    names = list(shapes)
    while names:
        size, group = 0, dict[str, Any]()
        while names and (not group or size + nbytes(shapes[names[0]]) <= AT_ONCE):
            name = names.pop(0)
            group[name] = shapes[name]
            size += nbytes(shapes[name])
        found = [storage.read(folder, group) for folder in folders]
        yield from ((name, [values[name] for values in found]) for name in group)


def pieces(x: np.ndarray) -> Iterator[np.ndarray]:
    """A flat array in stretches, as float64."""
    flat = np.asarray(x).reshape(-1)
    for i in range(0, flat.size, PIECE):
        piece = flat[i : i + PIECE]
        yield np.abs(piece) if np.iscomplexobj(piece) else piece.astype(np.float64)


def tree(rows: Mapping[str, Row], shapes: Leaves) -> list[Row]:
    """The rows below their branches, each branch with how much is in it."""
    found: list[Row] = []
    before: list[str] = []
    for name, row in rows.items():
        *branch, leaf = name.split("/")
        for depth, title in enumerate(branch):
            if before[: depth + 1] != branch[: depth + 1]:
                path = "/".join(branch[: depth + 1]) + "/"
                below = {k: x for k, x in shapes.items() if k.startswith(path)}
                found.append({"": f"{'  ' * depth}{title}/"} | totals(below))
        found.append({"": "  " * len(branch) + leaf} | row)
        before = branch
    return [*found, {"": "all"} | totals(shapes)]


def totals(shapes: Leaves) -> Row:
    """How many numbers and bytes."""
    numbers = sum(math.prod(leaf.shape) for leaf in shapes.values())
    size = sum(map(nbytes, shapes.values()))
    return {"numbers": amount(numbers), "size": byte_amount(size)}


def byte_amount(size: int) -> str:
    """`1.234 MB`."""
    text = amount(size)
    return f"{text}B" if text[-1].isalpha() else f"{text} B"


def nbytes(leaf: Any) -> int:
    """Size in memory."""
    return math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize


def amount(count: int) -> str:
    """`1.234 M`, for a unit to follow."""
    power = min((len(str(count)) - 1) // 3, 4)
    return f"{count / 1000**power:.4g} {' kMGT'[power]}".rstrip()


def number(value: float) -> str:
    """Four digits."""
    return f"{value:.4g}"


def aligned(rows: Sequence[Row]) -> str:
    """Rows in columns; the first two to the left, numbers to the right."""
    titles = list(dict.fromkeys(title for row in rows for title in row))
    cells = [titles, *([row.get(title, "") for title in titles] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(
            f"{cell:<{width}}" if i < 2 else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    )


if __name__ == "__main__":
    try:
        sys.exit(0 if main(tyro.cli(Config)) else 1)
    except CheckpointError as error:
        sys.exit(str(error))
