"""Parameters from one model into another: what fits is taken, and everything is told.

For fine-tuning and for looking into old runs: only the parameters are read (not the
optimizer's state), names may differ, and the model may have grown a new head. The trap
is a report that nobody reads, so that a model trains on from noise; hence nothing in
common at all is always an error, and `strict=True` accepts no difference.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxml.export import export
from jaxml.train import storage
from jaxml.train.checkpoint import Checkpoints, locate
from jaxml.train.leaves import Leaves, describe, leaves, placed
from jaxml.train.storage import CheckpointError

_T = TypeVar("_T")


@export("train.RestoreReport", since="0.1")
@dataclass(frozen=True)
class RestoreReport:
    """What `restore_params` did; `print` it.

    Attributes:
        source: where the values came from.
        matched: paths that were restored.
        missing: paths that the source lacks; they keep their values.
        left_over: paths of the source (there) that nothing asked for.
        mismatched: path -> what differs; they keep their values.
        converted: path -> "float32 to bfloat16", of those restored.
    """

    source: str
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    left_over: tuple[str, ...]
    mismatched: Mapping[str, str]
    converted: Mapping[str, str]

    @property
    def exact(self) -> bool:
        """Whether source and target have the same arrays."""
        return not (self.missing or self.left_over or self.mismatched)

    def __str__(self) -> str:
        total = len(self.matched) + len(self.missing) + len(self.mismatched)
        lines = [f"{self.source}: {len(self.matched)} of {total} arrays restored"]
        for title, names in (
            ("kept, the source has none", self.missing),
            ("kept, does not fit", [f"{k}: {v}" for k, v in self.mismatched.items()]),
            ("left over in the source", self.left_over),
            ("converted", [f"{k}: {v}" for k, v in self.converted.items()]),
        ):
            if names:
                lines += [
                    f"  {title} ({len(names)}):",
                    *(f"    {n}" for n in names[:20]),
                ]
                lines += ["    ..."] * (len(names) > 20)
        return "\n".join(lines)


@export("train.restore_params", since="0.1")
def restore_params(
    source: Any,
    like: _T,
    *,
    step: int | None = None,
    part: str = "params",
    rename: Mapping[str, str] | None = None,
    strict: bool = False,
    verify: bool = True,
) -> tuple[_T, RestoreReport]:
    """`like` with the values of a checkpoint, or of a state in memory, where they fit.

    An array fits if path and shape agree and both are floating-point, or of one dtype;
    it comes with the dtype and on the devices of its counterpart in `like`. From disk
    only such arrays are read, and only the files of their part are checked.

    Args:
        source: a folder of checkpoints, a run's folder, one checkpoint; or a training
            state or tree of parameters in memory.
        like: the new model's parameters. An optimizer that copies parameters into its
            state must be initialised with the result.
        step: of the checkpoint; the newest by default.
        part: what to read of the state, `params` or `model_state`.
        rename: {path in the source: path in `like`}, for single arrays and for whole
            branches; "" stands for the root. The longest that applies counts.
        strict: refuses any difference but conversion.
        verify: whether the checksums of the files are compared.

    Returns:
        The filled tree, and a report of what matched and what did not.

    Raises:
        CheckpointError: if there is no such checkpoint, it is damaged, nothing at all
            fits, anything does not while `strict`, or a `jax.ShapeDtypeStruct` in
            `like` would stay.
        ValueError: if `rename` gives two arrays the same path.

    >>> pretrained = {"encoder": {"w": jnp.ones(2)}, "head": jnp.zeros(10)}
    >>> fresh = {"backbone": {"w": jnp.zeros(2)}, "head": jnp.zeros(3)}
    >>> params, report = restore_params(
    ...     pretrained, fresh, rename={"encoder": "backbone"}
    ... )
    >>> print(report)
    a tree in memory: 1 of 2 arrays restored
      kept, does not fit (1):
        head: float32[10] in the source, float32[3] here
    """
    if isinstance(source, str | Path):
        name, saved, read = _stored(source, step, part, verify)
    else:
        name, saved, read = _in_memory(source, part)
    wanted = leaves(like)
    origin = _renamed(saved, part, rename or {})
    differences = {
        path: f"{describe(saved[origin[path]])} in the source, {describe(leaf)} here"
        for path, leaf in wanted.items()
        if path in origin and not _fits(saved[origin[path]], leaf)
    }
    matched = [p for p in wanted if p in origin and p not in differences]
    report = RestoreReport(
        source=name,
        matched=tuple(matched),
        missing=tuple(path for path in wanted if path not in origin),
        left_over=tuple(origin[path] for path in origin if path not in wanted),
        mismatched=differences,
        converted={
            path: f"{saved[origin[path]].dtype} to {wanted[path].dtype}"
            for path in matched
            if saved[origin[path]].dtype != wanted[path].dtype
        },
    )
    kept = [leaf for path, leaf in wanted.items() if path not in matched]
    valueless = any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in kept)
    if not matched or valueless or (strict and not report.exact):
        raise CheckpointError(f"not everything fits: {report}")
    values = read({origin[path]: wanted[path] for path in matched})
    filled = wanted | {path: values[origin[path]] for path in matched}
    return jax.tree.unflatten(jax.tree.structure(like), filled.values()), report


Read = Callable[[Leaves], Leaves]


def _stored(
    source: str | Path, step: int | None, part: str, verify: bool
) -> tuple[str, Leaves, Read]:
    """Name, shapes and reader of one part of a checkpoint."""
    directory, only = locate(source)
    with Checkpoints(directory, keep_last=None) as checkpoints:
        step = checkpoints.find(only if step is None else step)
        if verify:
            checkpoints.verify(step, part)
        folder = checkpoints.path(step)
    shapes = storage.read_shapes(folder)
    saved = {name: leaf for name, leaf in shapes.items() if _is_in(name, part)}
    return f"{folder}, {part}", saved, lambda like: storage.read(folder, like)


def _in_memory(source: Any, part: str) -> tuple[str, Leaves, Read]:
    found = leaves(source)
    if not any(_is_in(name, part) for name in found):
        found = {f"{part}/{name}": leaf for name, leaf in found.items()}
    saved = {name: leaf for name, leaf in found.items() if _is_in(name, part)}

    def read(like: Leaves) -> Leaves:
        return {name: placed(saved[name], leaf) for name, leaf in like.items()}

    return "a tree in memory", saved, read


def _is_in(name: str, branch: str) -> bool:
    return not branch or name == branch or name.startswith(f"{branch}/")


def _renamed(saved: Leaves, part: str, rename: Mapping[str, str]) -> dict[str, str]:
    """Path in the target -> path in the source."""
    origin: dict[str, str] = {}
    for name in saved:
        path = name.removeprefix(part).removeprefix("/")
        old = max((b for b in rename if _is_in(path, b)), key=len, default=None)
        if old is not None:
            rest = path.removeprefix(old).removeprefix("/")
            path = "/".join(filter(None, (rename[old], rest)))
        if path in origin:
            raise ValueError(
                f"rename must keep paths apart, got {path} for {origin[path]} and {name}"
            )
        origin[path] = name
    return origin


def _fits(saved: Any, wanted: Any) -> bool:
    both_float = all(jnp.issubdtype(x.dtype, jnp.floating) for x in (saved, wanted))
    same_kind = both_float or np.dtype(saved.dtype) == np.dtype(wanted.dtype)
    return saved.shape == wanted.shape and same_kind
