"""safetensors files: named tensors, in one file or in shards beside an index.

The format is a header of names, dtypes and places, and then the bytes; nothing in it is
ever run. Files of pickles (.bin, .pth, .pt) can run any code when they are opened, and so
are not: convert them where you trust them, in an environment that has torch.

The trap is bfloat16, which NumPy does not know by itself: the dtype is that of ml_dtypes,
which JAX brings along.
"""

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (NumPy learns bfloat16)
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from jaxml.export import export

NAME = "model.safetensors"
PICKLES = {".bin", ".pth", ".pt", ".pkl", ".pickle", ".ckpt", ".th"}


@export("interop.WeightsError", since="0.1")
class WeightsError(ValueError):
    """A file of weights cannot be read: it is damaged, or not a safetensors file."""


@export("interop.read_safetensors", since="0.1")
def read_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """All tensors of a file, of an index and its shards, or of a folder of either.

    Raises:
        FileNotFoundError: if there is no such file, or a shard is missing.
        WeightsError: if a file is damaged, is not of this format, or lacks tensors that
            the index says it has.
    """
    path = located(Path(path))
    if path.suffix == ".json":
        return _sharded(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        return load_file(path)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise WeightsError(
            f"{path} is damaged or no safetensors file ({path.stat().st_size} bytes): "
            f"{error}"
        ) from error


@export("interop.write_safetensors", since="0.1")
def write_safetensors(
    path: str | Path, state: Mapping[str, np.ndarray], *, shard_bytes: int | None = None
) -> None:
    """Writes a file; with `shard_bytes`, if there are more, shards beside an index.

    The metadata are those that PyTorch's libraries ask for. A file is replaced at once
    or not at all. The index of `x.safetensors` is `x.safetensors.index.json`.

    Raises:
        ValueError: if the name does not end in .safetensors, or `shard_bytes` is not
            positive.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"path must end in .safetensors, got {path}")
    if shard_bytes is not None and shard_bytes < 1:
        raise ValueError(f"shard_bytes must be positive, got {shard_bytes}")
    path.parent.mkdir(parents=True, exist_ok=True)
    total = sum(x.nbytes for x in state.values())
    index = path.with_name(f"{path.name}.index.json")
    if shard_bytes is None or total <= shard_bytes:
        _replace(path, state)
        index.unlink(missing_ok=True)
        return
    shards: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for name, x in state.items():
        if shards[-1] and size + x.nbytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = x
        size += x.nbytes
    files: dict[str, str] = {}
    for i, shard in enumerate(shards, 1):
        file = path.with_name(f"{path.stem}-{i:05}-of-{len(shards):05}.safetensors")
        _replace(file, shard)
        files |= dict.fromkeys(shard, file.name)
    write_json(index, {"metadata": {"total_size": total}, "weight_map": files})
    path.unlink(missing_ok=True)


def located(path: Path) -> Path:
    """The weights of a folder; a file itself, unless it is known to be a pickle."""
    if path.is_dir():
        usual = (path / NAME, path / f"{NAME}.index.json")
        found = (
            [file for file in usual if file.exists()][:1]
            or sorted(path.glob("*.safetensors.index.json"))
            or sorted(path.glob("*.safetensors"))
            or sorted(p for p in path.iterdir() if p.suffix in PICKLES)[:1]
        )
        if len(found) != 1:
            names = ", ".join(file.name for file in found) or "none"
            raise FileNotFoundError(
                f"{path} must hold {NAME}, its index, or one .safetensors file, "
                f"got {names}"
            )
        return located(found[0])
    if path.suffix in PICKLES:
        raise WeightsError(
            f"{path} may be a pickle, which can run any code when it is opened, and is "
            "not read. If you trust it, convert it where torch is installed: "
            "safetensors.torch.save_file(torch.load(path, weights_only=True), "
            f"{str(path.with_suffix('.safetensors').name)!r})"
        )
    return path


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        WeightsError: if it is not JSON.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise WeightsError(f"{path} is not JSON: {error}") from error


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file, at once or not at all."""
    with _replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", "utf-8")


def _sharded(path: Path) -> dict[str, np.ndarray]:
    index = read_json(path)
    files = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(files, dict) or not all(
        isinstance(name, str)
        and Path(name).name == name
        and name.endswith(".safetensors")
        for name in files.values()
    ):
        raise WeightsError(
            f"{path} must hold a weight_map from tensors to .safetensors files of its "
            "own folder"
        )
    state: dict[str, np.ndarray] = {}
    for name in sorted(set(files.values())):
        shard = read_safetensors(path.with_name(name))
        wanted = {tensor for tensor, file in files.items() if file == name}
        if wanted - set(shard):
            lacking = ", ".join(sorted(wanted - set(shard))[:5])
            raise WeightsError(f"{path.with_name(name)} lacks {lacking} of the index")
        state |= {tensor: shard[tensor] for tensor in wanted}
    return state


def _replace(path: Path, state: Mapping[str, np.ndarray]) -> None:
    with _replacing(path) as temporary:
        save_file(dict(state), temporary, metadata={"format": "pt"})


@contextlib.contextmanager
def _replacing(path: Path) -> Any:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
