"""How one checkpoint lies on disk, and how it is read: whole, or array by array.

    <folder>/{params,model_state,opt_state,state}/   arrays, by parts of the state
             record/metadata                         JSON
             CHECKSUMS                               see `jaxml.train.checksums`

Each part is a store of its own, so that parameters can be read, and their files checked,
without touching the optimizer's state, which is often twice as large.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from jaxml.export import export
from jaxml.train import checksums
from jaxml.train.leaves import Leaves, leaves, nonempty, placed

PARTS = ("params", "model_state", "opt_state", "state")  # the last takes the rest
# Orbax writes these two after the checksums; neither is ever read.
UNSUMMED = ("_CHECKPOINT_METADATA", "commit_success.txt")

Record = dict[str, Any]


@export("train.CheckpointError", since="0.1")
class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, unlike what it should fill, or unwritten."""


def arguments(state: Any, record: Record) -> ocp.args.Composite:
    """What Orbax is to write.

    Raises:
        TypeError: if the state holds anything but arrays of numbers, or the record
            anything that JSON cannot.
    """
    json.dumps(record)  # raises now rather than in the background
    parts = _by_part(nonempty(leaves(state)))
    return ocp.args.Composite(
        record=ocp.args.JsonSave(record),
        **{part: ocp.args.PyTreeSave(_nested(found)) for part, found in parts.items()},
    )


def seal(folder: Path) -> None:
    """Writes the checksums of a folder that is whole."""
    checksums.write(folder, ignore=UNSUMMED)


def read_record(folder: Path) -> Record:
    """The JSON record."""
    with _reading(folder):
        return json.loads((folder / "record" / "metadata").read_text("utf-8"))


def read_shapes(folder: Path) -> Leaves:
    """Shape and dtype of every array, by path; reads no array.

    Raises:
        CheckpointError: if the folder is no checkpoint, as for the other readers.
    """
    found: Leaves = {}
    for part in PARTS:
        if (folder / part).is_dir():
            path = epath.Path(folder / part)
            with _reading(path):
                tree = ocp.PyTreeCheckpointHandler().metadata(path).tree
            found |= ocp.tree.to_flat_dict(tree, sep="/")
    return {k: jax.ShapeDtypeStruct(x.shape, x.dtype) for k, x in found.items()}


def read(folder: Path, like: Leaves) -> Leaves:
    """The arrays of these paths, cast and placed as `like` is; no other is read.

    Where `like` names no devices (a NumPy array, or `jax.ShapeDtypeStruct` without a
    sharding), the result is a NumPy array.
    """
    full = nonempty(like)
    found = {
        name: placed(np.zeros(leaf.shape, leaf.dtype), leaf)
        for name, leaf in like.items()
        if name not in full
    }
    for part, wanted in _by_part(full).items():
        tree = _nested(wanted)
        how = jax.tree.map(_restore_args, tree)
        args = ocp.args.PyTreeRestore(tree, how, partial_restore=True)
        path = epath.Path(folder / part)
        with _reading(path):
            tree = ocp.PyTreeCheckpointHandler().restore(path, args=args)
        found |= ocp.tree.to_flat_dict(tree, sep="/")
    return {name: found[name] for name in like}


@contextmanager
def _reading(path: Any) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise CheckpointError(
            f"{path} could not be read: {type(error).__name__}: {error}"
        ) from error


def _nested(found: Leaves) -> Any:
    return ocp.tree.from_flat_dict(found, sep="/")


def _by_part(found: Leaves) -> dict[str, Leaves]:
    parts: dict[str, Leaves] = {}
    for name, leaf in found.items():
        first = name.partition("/")[0]
        parts.setdefault(first if first in PARTS else PARTS[-1], {})[name] = leaf
    return parts


def _restore_args(leaf: Any) -> ocp.RestoreArgs:
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        return ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)
    return ocp.ArrayRestoreArgs(
        sharding=sharding, global_shape=leaf.shape, dtype=leaf.dtype
    )
