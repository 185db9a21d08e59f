"""The folder of a run: what was asked, what came out, and what is needed to go on.

config.json      the configuration; a run is only continued with the same one
metrics.jsonl    one JSON object per report
curves.png       the same as a picture
checkpoints/     see `jaxml.train.checkpoint`
events.*         TensorBoard's, where `tensorboardX` is installed
"""

import dataclasses
import importlib.util
import json
import os
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from jaxml.export import export


@export("train.ConfigMismatchError", since="0.1")
class ConfigMismatchError(ValueError):
    """The folder holds a run of another configuration; the message says what differs."""


@export("train.Run", since="0.1")
class Run:
    """One run's folder, opened for writing; an existing run is continued.

    Args:
        path: the folder; made if absent.
        config: a dataclass or mapping of plain values; None checks nothing.
        ignore: fields that may differ when a run is continued.

    Raises:
        ConfigMismatchError: if the folder holds a run of another configuration.
    """

    def __init__(
        self, path: str | Path, config: Any = None, ignore: Collection[str] = ("out",)
    ) -> None:
        self.path = Path(path)
        self.config = plain_config(config)
        self._metrics = self.path / "metrics.jsonl"
        self._writes = jax.process_index() == 0
        self._tensorboard: Any = None
        stored = self.path / "config.json"
        if stored.exists():
            _check_agrees(stored, self.config, ignore)
        elif self._writes:
            self.path.mkdir(parents=True, exist_ok=True)
            write_text(stored, json.dumps(self.config, indent=2) + "\n")

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints lie."""
        return self.path / "checkpoints"

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one report to metrics.jsonl, and to TensorBoard if installed."""
        if not self._writes:
            return
        with _naming(self._metrics), open(self._metrics, "a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        if importlib.util.find_spec("tensorboardX"):
            if self._tensorboard is None:
                from tensorboardX import SummaryWriter

                self._tensorboard = SummaryWriter(str(self.path), flush_secs=10)
            for name, value in values.items():
                self._tensorboard.add_scalar(name, value, step)

    def rows(self) -> list[dict[str, Any]]:
        """All reports so far; a line cut short by a crash is left out."""
        rows = []
        for line in self._metrics.read_text().splitlines() if self._started() else []:
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return rows

    def rewind(self, step: int) -> None:
        """Forgets the reports after `step`, which a continued run will make again."""
        if self._writes and self._started():
            kept = [json.dumps(r) + "\n" for r in self.rows() if r["step"] <= step]
            write_text(self._metrics, "".join(kept))

    def draw(self) -> None:
        """Writes curves.png from the reports."""
        from jaxml.draw import save_curves  # matplotlib is slow to import

        series: dict[str, tuple[list[float], list[float]]] = {}
        for row in self.rows():
            for name, value in row.items():
                if name != "step":
                    steps, values = series.setdefault(name, ([], []))
                    steps.append(row["step"])
                    values.append(value)
        if self._writes and series:
            try:
                save_curves(self.path / "curves.png", series)
            except OSError as error:  # a full disk is the checkpoint's to report
                warnings.warn(f"no curves were drawn: {error}", stacklevel=2)

    def _started(self) -> bool:
        return self._metrics.exists()


def plain_config(config: Any) -> dict[str, Any]:
    """A configuration as JSON has it: paths and enums become strings."""
    if config is None:
        return {}
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        config = dataclasses.asdict(config)
    return json.loads(json.dumps(dict(config), default=str))


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with _naming(path):
            draft.write_text(text)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Names the file where the system does not: on a full disk."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def _check_agrees(
    stored: Path, config: Mapping[str, Any], ignore: Collection[str]
) -> None:
    before = json.loads(stored.read_text())
    names = sorted((before.keys() | config.keys()) - set(ignore))
    absent = "(absent)"
    differences = [
        f"{name} was {before.get(name, absent)!r}, is {config.get(name, absent)!r}"
        for name in names
        if before.get(name, absent) != config.get(name, absent)
    ]
    if differences:
        raise ConfigMismatchError(
            f"{stored.parent} holds a run of another configuration: "
            + "; ".join(differences)
            + ". Give the same options to continue it, another --out to start anew, "
            "or delete the folder."
        )
