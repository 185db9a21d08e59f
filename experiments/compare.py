"""Runs side by side: a Markdown table of their results, and a picture.

    python -m experiments.compare runs/*
    python -m experiments.compare runs/*_cifar10 --only trained --percent --out methods.png

Each folder that holds a `results.json` is a row, with the fields of its configuration that
are asked for and its results; several seeds are one row of means. Folders without results
are named and left out: their runs have not ended.
"""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from jaxml import draw


@dataclass(frozen=True)
class Config:
    """Runs side by side."""

    paths: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of runs."""
    fields: tuple[str, ...] = ("num_steps", "batch_size")
    """What of the configurations is shown."""
    only: tuple[str, ...] = ()
    """Results whose names begin with one of these; all by default."""
    sort: str = ""
    """A result that orders the rows, the highest first; by default the last column."""
    percent: bool = False
    """Writes results as parts of a hundred."""
    out: Path | None = None
    """A PNG with the bars of that result."""


Row = dict[str, float]


def main(config: Config) -> dict[str, Row]:
    """Prints the table, and draws it if asked.

    Returns:
        Results by run, in the order of the table.

    Raises:
        ValueError: if no folder holds results, or none of them has the one that orders.
    """
    rows = {}
    for path in config.paths:
        results = read_results(path)
        if results is None:
            print(f"{path}: no results yet", file=sys.stderr)
        else:
            rows[path.name] = shown(results, config.only, 100 if config.percent else 1)
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    if not columns:
        given = ", ".join(map(str, config.paths)) or "no folder"
        raise ValueError(f"a folder must hold results of these names, got {given}")
    key = config.sort or columns[-1]
    if key not in columns:
        raise ValueError(f"sort must be one of {', '.join(columns)}, got {key}")
    order = sorted(rows, key=lambda name: -rows[name].get(key, -math.inf))
    rows = {name: rows[name] for name in order}
    places = {path.name: path for path in config.paths}
    settings = {name: read_settings(places[name], config.fields) for name in rows}
    print(markdown(rows, settings, config.fields, columns))
    if config.out is not None:
        bars = {name: row[key] for name, row in rows.items() if key in row}
        draw.save_bars(
            config.out, bars, title=key, xlabel="%" if config.percent else ""
        )
    return rows


def read_results(path: Path) -> Row | None:
    """The numbers of a run by name, or None where there are none."""
    file = path / "results.json"
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from None
    return dict(numbers(found.get("mean", found)))


def numbers(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """The numbers of nested mappings, their names joined by slashes."""
    pairs = []
    for name, value in tree.items():
        if isinstance(value, Mapping):
            pairs += numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            pairs.append((prefix + name, float(value)))
    return pairs


def shown(results: Row, only: Sequence[str], scale: float) -> Row:
    """The results that are asked for, in the unit that is asked for."""
    wanted = tuple(only) or ("",)
    return {k: scale * v for k, v in results.items() if k.startswith(wanted)}


def read_settings(path: Path, fields: Sequence[str]) -> dict[str, str]:
    """Fields of a run's configuration as text; of several seeds those of the first."""
    files = sorted([*path.glob("config.json"), *path.glob("*/config.json")])
    if not files:
        return {}
    found = json.loads(files[0].read_text())
    return {name: str(found[name]) for name in fields if name in found}


def markdown(
    rows: Mapping[str, Row],
    settings: Mapping[str, Mapping[str, str]],
    fields: Sequence[str],
    columns: Sequence[str],
) -> str:
    """A table that reads well as plain text too."""
    cells = [["run", *fields, *columns]]
    for name, row in rows.items():
        values = [f"{row[k]:.4g}" if k in row else "" for k in columns]
        cells.append([name, *(settings[name].get(k, "") for k in fields), *values])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    lines = [
        " | ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
    return "\n".join(f"| {line} |" for line in lines)


if __name__ == "__main__":
    main(tyro.cli(Config))
