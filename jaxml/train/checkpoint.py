"""Checkpoints of a run: written in the background, atomic, never half loaded.

A checkpoint holds the training state and a small JSON record beside it: where the data
iterator stands, the configuration, the versions of the libraries. Orbax writes each into a
temporary folder and renames it when it is whole, so a killed run leaves the one before.
"""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp

import jaxml
from jaxml.export import export

LIBRARIES = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")
Record = dict[str, Any]


@export("train.CheckpointError", since="0.1")
class CheckpointError(ValueError):
    """A checkpoint is missing, or does not fit the state it is to be read into."""


@export("train.Checkpoints", since="0.1")
class Checkpoints:
    """The checkpoints in one folder.

    Saving returns at once and writes in the background; leaving the `with` block waits
    until everything is on disk.

    Args:
        directory: made when the first checkpoint is saved.
        keep_last: how many of the newest stay; None keeps all.
    """

    def __init__(self, directory: str | Path, *, keep_last: int | None = 2) -> None:
        self.directory = Path(directory).absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep_last, create=False)
        self._manager: ocp.CheckpointManager | None = None
        self._options = options

    def _open(self) -> ocp.CheckpointManager:
        if self._manager is None:
            self._manager = ocp.CheckpointManager(
                self.directory,
                options=self._options,
                item_handlers={
                    "state": ocp.StandardCheckpointHandler(),
                    "record": ocp.JsonCheckpointHandler(),
                },
            )
        return self._manager

    def save(self, step: int, state: Any, record: Record | None = None) -> None:
        """Saves a pytree of arrays and a JSON record under this step."""
        self.directory.mkdir(parents=True, exist_ok=True)
        record = {**(record or {}), "versions": library_versions()}
        self._open().save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record)
            ),
        )

    def steps(self) -> list[int]:
        """The steps that can be restored, oldest first."""
        if not self.directory.is_dir():
            return []
        self._open().wait_until_finished()
        return sorted(self._open().all_steps(read=True))

    def latest_step(self) -> int | None:
        """The newest step that can be restored, or None."""
        return max(self.steps(), default=None)

    def restore(self, like: Any, step: int | None = None) -> tuple[Any, Record]:
        """The state and record saved at `step` (the newest by default).

        Args:
            like: a state of the same structure; its arrays give shapes, dtypes and the
                devices to restore onto, which may be others than those that saved.
            step: one of `steps()`.

        Raises:
            CheckpointError: if there is none, or it is of another structure.
        """
        steps = self.steps()
        step = max(steps, default=None) if step is None else step
        if step not in steps:
            found = f"only steps {steps}" if steps else "none"
            raise CheckpointError(
                f"no checkpoint of step {step} in {self.directory}, found {found}"
            )
        self._check_structure(like, step)
        template = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        restored = self._open().restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(template),
                record=ocp.args.JsonRestore(),
            ),
        )
        return restored["state"], restored["record"]

    def _check_structure(self, like: Any, step: int) -> None:
        saved = _shapes(self._open().item_metadata(step)["state"].tree)
        wanted = _shapes(ocp.tree.serialize_tree(like, keep_empty_nodes=False))
        problems = [
            *(f"{p} is missing" for p in wanted.keys() - saved.keys()),
            *(f"{p} is left over" for p in saved.keys() - wanted.keys()),
            *(
                f"{p} has shape {saved[p]}, not {wanted[p]}"
                for p in wanted.keys() & saved.keys()
                if saved[p] != wanted[p]
            ),
        ]
        if problems:
            more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
            raise CheckpointError(
                f"the checkpoint of step {step} in {self.directory} is of another "
                "model or optimizer: " + "; ".join(sorted(problems)[:5]) + more
            )

    def close(self) -> None:
        """Waits until everything is on disk."""
        if self._manager is not None:
            self._manager.wait_until_finished()
            self._manager.close()
            self._manager = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@export("train.save", since="0.1")
def save(directory: str | Path, state: Any, record: Mapping[str, Any] | None = None):
    """Saves a training state under its own step, and waits until it is on disk.

    >>> save("runs/mine/checkpoints", state)  # doctest: +SKIP
    """
    with Checkpoints(directory, keep_last=None) as checkpoints:
        checkpoints.save(int(state.step), state, dict(record or {}))


@export("train.restore", since="0.1")
def restore(directory: str | Path, like: Any, step: int | None = None) -> Any:
    """The state saved at `step` (the newest by default), shaped and placed as `like`.

    Raises:
        CheckpointError: if there is none, or it is of another structure.
    """
    with Checkpoints(directory, keep_last=None) as checkpoints:
        return checkpoints.restore(like, step)[0]


@export("train.latest_step", since="0.1")
def latest_step(directory: str | Path) -> int | None:
    """The newest step saved in a folder, or None."""
    with Checkpoints(directory, keep_last=None) as checkpoints:
        return checkpoints.latest_step()


def library_versions() -> dict[str, str]:
    """What made a checkpoint, by name."""
    return {"jaxml": jaxml.__version__} | {name: version(name) for name in LIBRARIES}


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree.leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {jax.tree_util.keystr(path): tuple(leaf.shape) for path, leaf in leaves}
