"""Methods on tables, held out, beside the same methods of another library.

Both learn from the same rows and tell the same held-out ones, so that their difference is
that of pairs. Its standard error is over folds and seeds; where a table brings its own
held-out rows, over as many parts of those rows, and seeds. A method is "ahead" or "worse" if
the difference is larger than its standard error, else "met". One in six of equal methods
looks worse by so much, and another ahead.

Reference: Dietterich, "Approximate Statistical Tests for Comparing Supervised Classification
Learning Algorithms", Neural Computation 1998, https://doi.org/10.1162/089976698300017197
(section 3.3, the paired differences of folds, which are not wholly independent).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import process_time
from typing import NamedTuple, Protocol

import numpy as np

from experiments.trees.tables import (
    CLASSES,
    FOLDERS,
    LOWER,
    Scores,
    Split,
    judge,
    mean,
    parts,
    splits,
)
from jaxml import draw, train

Tell = Callable[[str, str, Split, int], np.ndarray]
"""(table, method, split, seed of its draws) -> class shares or numbers of held-out rows."""
PRINTED = 5e-5
"""Half of the last digit: differences below it are none."""


class Settings(Protocol):
    """What an experiment that compares must be told."""

    @property
    def tables(self) -> tuple[str, ...]: ...
    @property
    def methods(self) -> tuple[str, ...]: ...
    @property
    def folds(self) -> int: ...
    @property
    def seeds(self) -> tuple[int, ...]: ...
    @property
    def data_dir(self) -> Path | None: ...


class Found(NamedTuple):
    """One library's scores of one method: of every split by seed, and of every part."""

    whole: dict[int, list[Scores]]
    parts: list[Scores]


class Pair(NamedTuple):
    """One score of both libraries: means, of the first seed too, and who is ahead."""

    ours: float
    theirs: float
    ahead: float
    """Of theirs, in the direction in which the score is better."""
    error: float
    """Standard error of that."""
    first: float
    """Ours, of the first seed."""
    their_first: float

    @property
    def verdict(self) -> str:
        """Which of the two is better by more than the standard error."""
        if abs(self.ahead) <= self.error + PRINTED:
            return "met"
        return "ahead" if self.ahead > 0 else "worse"


def compare(
    run: train.Run, config: Settings, libraries: Mapping[str, Tell]
) -> dict[str, Scores]:
    """Trains every method on every split, prints the scores, and draws them.

    Args:
        run: where everything is written.
        config: tables, methods, folds and seeds.
        libraries: ours, and the peer's if it is there.

    Returns:
        The mean scores by table/method/library.
    """
    rows: dict[str, Scores] = {}
    pairs: dict[str, dict[str, dict[str, Pair]]] = {}
    bars: dict[str, dict[str, list[float]]] = {}
    for table in config.tables:
        print(f"\n{heading(table)}" if len(libraries) > 1 else table, flush=True)
        for method in config.methods:
            found = {}
            for library, tell in libraries.items():
                began = process_time()
                found[library] = score(table, method, tell, config)
                name, seeds = f"{table}/{method}/{library}", found[library].whole
                rows[name] = mean([s for of in seeds.values() for s in of])
                told = {**rows[name], "cpu_seconds": process_time() - began}
                run.log(len(rows), {f"{name}/{k}": v for k, v in told.items()})
                label = f"{method.replace('_', ' ')} ({library})"
                each = [error(mean(of)) for of in seeds.values()]
                bars.setdefault(table, {})[label] = each
            if len(found) > 1:
                pairs.setdefault(table, {})[method] = beside(*found.values())
                print(lines(method, pairs[table][method]), flush=True)
            else:
                print(f"{method}: {rows[name]}", flush=True)
    (run.path / "table.txt").write_text(
        "".join(
            f"{heading(table)}\n"
            + "".join(f"{lines(method, found)}\n" for method, found in methods.items())
            for table, methods in pairs.items()
        )
    )
    report(run.path, rows, bars, next(iter(libraries)))
    return rows


def score(table: str, method: str, tell: Tell, config: Settings) -> Found:
    """Scores of one method on every split of one table."""
    found = Found({}, [])
    held_out = splits(table, config.folds, config.seeds, config.data_dir)
    for i, (seed, split) in enumerate(held_out):
        told, y = np.asarray(tell(table, method, split, 1000 * seed + i)), split[3]
        found.whole.setdefault(seed, []).append(judge(told, y))
        own = parts(y, config.folds) if table in FOLDERS else [np.arange(len(y))]
        found.parts.extend(judge(told[part], y[part]) for part in own)
    return found


def beside(ours: Found, theirs: Found) -> dict[str, Pair]:
    """Every score of two libraries, on the same splits."""
    first, their_first = (mean(next(iter(f.whole.values()))) for f in (ours, theirs))
    total, their_total = (
        mean([s for of in f.whole.values() for s in of]) for f in (ours, theirs)
    )
    pairs = {}
    for name, value in total.items():
        sign = -1 if name in LOWER else 1
        each = [
            a[name] - b[name] for a, b in zip(ours.parts, theirs.parts, strict=True)
        ]
        spread = np.std(each, ddof=1) / np.sqrt(len(each)) if len(each) > 1 else 0.0
        pairs[name] = Pair(
            value,
            their_total[name],
            sign * (value - their_total[name]),
            float(spread),
            first[name],
            their_first[name],
        )
    return pairs


def heading(table: str) -> str:
    """The head of the table of one table's methods; on the right both of the first seed."""
    columns = f"{'ours':>8}{'peer':>8}   ahead by"
    return f"{table.replace('_', ' '):28}{columns:42}{'first seed':>14}"


def lines(method: str, scores: Mapping[str, Pair]) -> str:
    """The scores of one method, a line each; accuracy in percent."""
    written = []
    for name, pair in scores.items():
        scale = 100 if name == "accuracy" else 1
        digits = 4 if name in ("loss", "auc") else 2
        ours, theirs, first, their_first = (
            f"{v * scale:8.{digits}f}"
            for v in (pair.ours, pair.theirs, pair.first, pair.their_first)
        )
        by = f"{pair.ahead * scale:+7.{digits}f} +- {pair.error * scale:<6.{digits}f}"
        title = f"{method.replace('_', ' '):19}{name:9}"
        written.append(
            f"{title}{ours}{theirs} {by} {pair.verdict:5}{first}{their_first}"
        )
    return "\n".join(written)


def error(found: Scores) -> float:
    """What the bars show: misclassified in percent, or the error of numbers."""
    return 100 - 100 * found["accuracy"] if "accuracy" in found else found["rmse"]


def report(
    path: Path,
    rows: Mapping[str, Scores],
    bars: Mapping[str, Mapping[str, Sequence[float]]],
    ours: str,
) -> None:
    """Writes results and pictures."""
    (path / "results.json").write_text(json.dumps(rows, indent=2) + "\n")
    for table, values in bars.items():
        found = by_method(table, rows, ours)
        columns = {name for row in found.values() for name in row}
        title = f"{table.replace('_', ' ').capitalize()}, held out"
        draw.save_table(
            path / f"{table}_scores.png",
            found,
            title=title,
            lower_is_better=[name for name in columns if name.split()[0] in LOWER],
        )
        draw.save_bars(
            path / f"{table}.png",
            values,
            title=title,
            xlabel="misclassified, %" if CLASSES[table] else "root mean squared error",
            highlight=[name for name in values if ours in name],
        )


def by_method(table: str, rows: Mapping[str, Scores], ours: str) -> dict[str, Scores]:
    """The scores on one table, those of both libraries in one row."""
    found: dict[str, Scores] = {}
    for name, row in rows.items():
        of, method, library = name.split("/")
        for score, value in row.items() if of == table else ():
            column = score if library == ours else f"{score} ({library})"
            found.setdefault(method.replace("_", " "), {})[column] = value
    return {name: dict(sorted(row.items())) for name, row in found.items()}
