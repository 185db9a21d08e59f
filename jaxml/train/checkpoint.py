"""Checkpoints of a run: written in the background, atomic, never half or wrongly read.

A checkpoint holds the training state and a JSON record beside it: step, metrics of the
moment, where the data iterator stands, the configuration, versions of the libraries.
Orbax writes all of it into a temporary folder; when that is whole, its files are summed
and it is renamed. So a run that is killed at any moment leaves the checkpoint before,
and a file that changes later is found out and named. Nothing falls back silently: what
to do instead is said, and left to the reader.

    <directory>/<step>/                     see `jaxml.train.storage`
    <directory>/*.orbax-checkpoint-tmp/     unfinished or being deleted, never read
"""

import functools
import math
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

import jaxml
from jaxml.export import export
from jaxml.train import checksums, storage
from jaxml.train.leaves import Leaves, describe, leaves, listing, nonempty
from jaxml.train.storage import CheckpointError, Record

LIBRARIES = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")
UNFINISHED = ".orbax-checkpoint-tmp"

KeepBest = tuple[str, Literal["min", "max"]]
"""(name of a metric, which is best)."""


@export("train.Checkpoints", since="0.1")
class Checkpoints:
    """The checkpoints in one folder.

    Saving returns as soon as the arrays are copied and writes in the background; leaving
    the `with` block waits until everything is on disk. What goes wrong in the background
    is raised by the next `save`, `check`, `steps` or `close`.

    Args:
        directory: on a file system; made when the first checkpoint is saved.
        keep_last: how many of the newest stay; None keeps all. An older one is deleted
            only when the new one is whole.
        keep_best: `("accuracy", "max")` also keeps the one whose record has the best
            finite value of this name under `metrics`; of equals the newest.

    Raises:
        ValueError: if an option makes no sense.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        keep_last: int | None = 2,
        keep_best: KeepBest | None = None,
    ) -> None:
        if "://" in str(directory):
            raise ValueError(f"directory must be on a file system, got {directory}")
        if keep_last is not None and keep_last < 1:
            raise ValueError(f"keep_last must be at least 1 or None, got {keep_last}")
        if keep_best is not None and keep_best[1] not in ("min", "max"):
            raise ValueError(f"keep_best must end in 'min' or 'max', got {keep_best}")
        self.directory = Path(directory).absolute()
        self.keep_last = keep_last
        self.keep_best = keep_best
        self._writer: ocp.AsyncCheckpointer | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._under_way: Future[None] | None = None
        self._saving = -1  # the step saved last

    def save(self, step: int, state: Any, record: Record | None = None) -> None:
        """Saves a pytree of arrays and a JSON record under this step.

        Raises:
            CheckpointError: if this or the previous save fails, or the step exists.
            TypeError: if the state holds anything but arrays of numbers, or the record
                anything that JSON cannot.
        """
        record = {"step": step, **(record or {}), "versions": library_versions()}
        args = storage.arguments(state, record)
        self._finish()
        if step in self._listed():
            raise CheckpointError(f"{self.path(step)} exists already")
        self._saving = step
        with self._explained():
            self.directory.mkdir(parents=True, exist_ok=True)
            self._sweep()  # what a killed run has left
            writer = self._open()
            writer.save(self.path(step), args=args)
        self._under_way = self._thread.submit(self._end, writer)

    def check(self) -> None:
        """Raises what went wrong in the background so far, once; does not wait.

        Raises:
            CheckpointError: if a save failed.
        """
        under_way = self._under_way
        if under_way is not None and under_way.done() and under_way.exception():
            self._under_way = None
            with self._explained():
                under_way.result()

    def steps(self) -> list[int]:
        """The steps that can be restored, oldest first; waits for a save under way."""
        self._finish()
        return self._listed()

    def latest_step(self) -> int | None:
        """The newest step that can be restored, or None."""
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """The step that `keep_best` keeps, or None."""
        self._finish()
        return self._best()

    def find(self, step: int | None = None) -> int:
        """`step` if there is such a checkpoint; the newest for None.

        Raises:
            CheckpointError: if there is none.
        """
        steps = self.steps()
        wanted = max(steps, default=None) if step is None else step
        if wanted is None or wanted not in steps:
            found = f"only steps {steps}" if steps else "none"
            raise CheckpointError(
                f"no checkpoint of step {wanted} in {self.directory}, found {found}"
            )
        return wanted

    def path(self, step: int) -> Path:
        """The folder of a step."""
        return self.directory / str(step)

    def restore(
        self, like: Any, step: int | None = None, *, verify: bool = True
    ) -> tuple[Any, Record]:
        """The state and record saved at `step` (the newest by default).

        Args:
            like: a state of the same structure; its arrays give shapes, dtypes and the
                devices to restore onto, which may be others than those that saved.
                `jax.ShapeDtypeStruct` will do; without a sharding it gives NumPy arrays.
            step: one of `steps()`.
            verify: False trusts the files instead of comparing their checksums.

        Raises:
            CheckpointError: if there is none, if a file is damaged (naming it, and the
                newest checkpoint that is whole), or if it is of another structure.
        """
        step = self.find(step)
        if verify:
            self.verify(step)
        wanted = leaves(like)
        self._check_structure(wanted, step)
        found = storage.read(self.path(step), wanted)
        state = jax.tree.unflatten(jax.tree.structure(like), found.values())
        return state, storage.read_record(self.path(step))

    def verify(self, step: int, part: str = "") -> None:
        """Compares the files of a step with their checksums.

        Args:
            step: one of `steps()`.
            part: one of `jaxml.train.storage.PARTS`, to look at its files alone.

        Raises:
            CheckpointError: naming the files that are damaged, and the newest other
                checkpoint that is whole.
        """
        damages = checksums.damages(self.path(step), part and f"{part}/")
        if not damages:
            return
        others = (other for other in reversed(self._listed()) if other != step)
        whole = next((s for s in others if not checksums.damages(self.path(s))), None)
        advice = (
            "No other checkpoint there is whole."
            if whole is None
            else f"Step {whole} is whole: step={whole} restores it, and a run continues "
            f"from it once {self.path(step)} is removed."
        )
        raise CheckpointError(
            f"the checkpoint of step {step} in {self.directory} is damaged: "
            f"{listing(damages)}. {advice}"
        )

    def close(self) -> None:
        """Waits until everything is on disk.

        Raises:
            CheckpointError: if the last save failed.
        """
        try:
            self._finish()
        finally:
            if self._writer is not None:
                self._writer.close()
                self._writer = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except CheckpointError as failure:
            if error is None:
                raise
            error.add_note(str(failure))  # what came first is raised

    def _open(self) -> ocp.AsyncCheckpointer:
        if self._writer is None:
            # Orbax calls this when all files are whole, before it renames their folder.
            options = ocp.AsyncOptions(post_finalization_callback=self._seal)
            handler = ocp.CompositeCheckpointHandler()
            self._writer = ocp.AsyncCheckpointer(handler, async_options=options)
        return self._writer

    def _seal(self) -> None:
        storage.seal(self.directory / f"{self._saving}{UNFINISHED}")

    def _finish(self) -> None:
        if self._under_way is not None:
            under_way, self._under_way = self._under_way, None
            with self._explained():
                under_way.exception()  # waits
                if jax.process_count() > 1:  # the first one deletes, all must see it
                    multihost_utils.sync_global_devices("checkpoints")
                under_way.result()

    def _end(self, writer: ocp.AsyncCheckpointer) -> None:
        """Runs in the background after each save."""
        writer.wait_until_finished()
        if self.keep_last is not None and jax.process_index() == 0:
            steps = self._listed()
            for step in set(steps[: -self.keep_last]) - {self._best()}:
                # Renamed first: a kill while it is deleted must not leave half of it.
                self.path(step).rename(self.directory / f"{step}.deleted{UNFINISHED}")
            self._sweep()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Says of an error in writing what was lost, and what is left."""
        try:
            yield
        except Exception as error:
            self._sweep()
            newest = max(self._listed(), default=None)
            left = (
                "there is none" if newest is None else f"the newest is of step {newest}"
            )
            raise CheckpointError(
                f"the checkpoint of step {self._saving} could not be written to "
                f"{self.directory}, {left}: {type(error).__name__}: {error}"
            ) from error

    def _listed(self) -> list[int]:
        names = [path.name for path in self.directory.glob("*")]
        return sorted(int(name) for name in names if name.isdigit())

    def _best(self) -> int | None:
        if self.keep_best is None:
            return None
        name, mode = self.keep_best
        sign = 1 if mode == "max" else -1
        values = {step: sign * self._metric(step, name) for step in self._listed()}
        finite = [
            (value, step) for step, value in values.items() if math.isfinite(value)
        ]
        return max(finite)[1] if finite else None

    def _metric(self, step: int, name: str) -> float:
        try:
            return float(storage.read_record(self.path(step))["metrics"][name])
        except (CheckpointError, ValueError, KeyError, TypeError):
            return math.nan  # an old record that is damaged must not end a run

    def _sweep(self) -> None:
        if jax.process_index() == 0:
            for path in self.directory.glob(f"*{UNFINISHED}"):
                shutil.rmtree(path, ignore_errors=True)

    def _check_structure(self, wanted: Leaves, step: int) -> None:
        saved, wanted = storage.read_shapes(self.path(step)), nonempty(wanted)
        problems = [
            *(f"{name} is missing" for name in wanted.keys() - saved.keys()),
            *(f"{name} is left over" for name in saved.keys() - wanted.keys()),
            *(
                f"{name} is {describe(saved[name])}, not {describe(wanted[name])}"
                for name in wanted.keys() & saved.keys()
                if describe(saved[name]) != describe(wanted[name])
            ),
        ]
        if problems:
            optimizer = all(problem.startswith("opt_state/") for problem in problems)
            raise CheckpointError(
                f"the checkpoint of step {step} in {self.directory} is of another "
                f"{'optimizer' if optimizer else 'model'}: {listing(sorted(problems))}"
            )


@export("train.save", since="0.1")
def save(
    directory: str | Path, state: Any, record: Mapping[str, Any] | None = None
) -> None:
    """Saves a training state under its own step, and waits until it is on disk.

    Raises:
        CheckpointError: if it could not be written, or the step exists.

    >>> save("runs/mine/checkpoints", state)  # doctest: +SKIP
    """
    with Checkpoints(directory, keep_last=None) as checkpoints:
        checkpoints.save(int(state.step), state, dict(record or {}))


@export("train.restore", since="0.1")
def restore(
    directory: str | Path, like: Any, step: int | None = None, *, verify: bool = True
) -> Any:
    """The state saved at `step` (the newest by default), shaped and placed as `like`.

    Args:
        directory: a folder of checkpoints, a run's folder, or one checkpoint.
        like: see `Checkpoints.restore`, as for the rest.
        step: which one.
        verify: whether the checksums of the files are compared.

    Raises:
        CheckpointError: if there is none, it is damaged, or of another structure.
    """
    directory, only = locate(directory)
    with Checkpoints(directory, keep_last=None) as checkpoints:
        step = only if step is None else step
        return checkpoints.restore(like, step, verify=verify)[0]


@export("train.latest_step", since="0.1")
def latest_step(directory: str | Path) -> int | None:
    """The newest step saved in a folder of checkpoints or of a run, or None."""
    with Checkpoints(locate(directory)[0], keep_last=None) as checkpoints:
        return checkpoints.latest_step()


def locate(path: str | Path) -> tuple[Path, int | None]:
    """The folder of checkpoints, and the step if `path` is a single one.

    Args:
        path: a folder of checkpoints, a run's folder, or one checkpoint.
    """
    path = Path(path)
    if path.name.isdigit() and (path / "record").is_dir():
        return path.parent, int(path.name)
    inner = path / "checkpoints"
    return (inner if inner.is_dir() else path), None


@functools.cache
def library_versions() -> dict[str, str]:
    """What made a checkpoint, by name."""
    return {"jaxml": jaxml.__version__} | {name: version(name) for name in LIBRARIES}
