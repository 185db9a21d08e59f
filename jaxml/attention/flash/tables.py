"""How the Hopper kernels are cut, and what was measured: all numbers in one place.

The cuts below are where tuning starts: they fit into registers and shared memory, and
are near those of FlashAttention-3 (its `tile_size.h`). None of them has been measured
yet. `experiments/bench/attention_autotune.py` measures, and writes `tuned/<device>.json`
with the best cut of each row, its speed and that of cuDNN; a kernel is chosen unasked
only on a device that has such a file, and where that file says that it wins.

    dim  pass      cut                                       TFLOP/s   cuDNN
     64  forward   64 x 128, 2 stages, 3 warpgroups          not measured yet
     64  backward  128 x 64 and 64 x 128, 2 warpgroups each  not measured yet
    128  forward   64 x 128, 2 stages, 2 warpgroups          not measured yet
    128  backward  64 x 64 and 64 x 64, 2 warpgroups each    not measured yet
    192  forward   64 x 64, 2 stages, 2 warpgroups           not measured yet
    192  backward  64 x 64 split, 64 x 64, 2 warpgroups each not measured yet
    256  forward   64 x 64, 2 stages, 2 warpgroups           not measured yet
    256  backward  as 192, with one tile of values in flight not measured yet

Queries x keys of a warpgroup; a row serves all dims up to its own.

Reference: Shah et al., "FlashAttention-3", NeurIPS 2024,
https://arxiv.org/abs/2407.08608 (section 4).
"""

import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

TUNED = Path(__file__).parent / "tuned"


class Forward(NamedTuple):
    """How the forward pass is cut.

    Attributes:
        block_q: queries of a warpgroup.
        block_k: keys of a tile.
        stages: tiles in flight.
        warpgroups: that compute.
    """

    block_q: int = 64
    block_k: int = 128
    stages: int = 2
    warpgroups: int = 2


class Pass(NamedTuple):
    """How one of the two kernels of the backward pass is cut.

    Attributes:
        block_q: queries of a warpgroup, or of a tile where keys are owned.
        block_k: keys of a tile, or of a warpgroup where keys are owned.
        stages: tiles in flight.
        warpgroups: that compute.
        split: whether two share their keys, one for dv and one for dk.
        late_stages: tiles in flight of what a step needs second, values or gradients of
            outputs; 0, as many as of the first.
    """

    block_q: int = 64
    block_k: int = 64
    stages: int = 2
    warpgroups: int = 2
    split: bool = False
    late_stages: int = 0

    @property
    def later(self) -> int:
        """How many of the second are in flight."""
        return self.late_stages or self.stages


class Backward(NamedTuple):
    """How the backward pass is cut: the kernel that owns keys, the one with queries."""

    keys: Pass = Pass()
    queries: Pass = Pass()


class Entry(NamedTuple):
    """The cuts of one row, and the speed of both passes together, in TFLOP/s.

    Attributes:
        forward: of the forward pass.
        backward: of the backward pass.
        speed: measured with these, or None.
        cudnn: of cuDNN in the same minute, or None.
    """

    forward: Forward
    backward: Backward
    speed: float | None = None
    cudnn: float | None = None


DIMS = (64, 128, 192, 256)
SPLIT = Pass(64, 64, 2, 2, split=True)
STARTS: dict[int, Entry] = {
    64: Entry(
        Forward(64, 128, 2, 3), Backward(Pass(128, 64, 2, 2), Pass(64, 128, 2, 2))
    ),
    128: Entry(
        Forward(64, 128, 2, 2), Backward(Pass(64, 64, 3, 2), Pass(64, 64, 3, 2))
    ),
    192: Entry(Forward(64, 64, 2, 2), Backward(SPLIT, Pass(64, 64, 2, 2))),
    256: Entry(
        Forward(64, 64, 2, 2), Backward(SPLIT, Pass(64, 64, 2, 2, late_stages=1))
    ),
}


def row_of(dim: int, value_dim: int) -> int:
    """The row that serves these dims.

    Raises:
        ValueError: if they are above 256.
    """
    for row in DIMS:
        if max(dim, value_dim) <= row:
            return row
    raise ValueError(f"dims must be at most {DIMS[-1]}, got {dim} and {value_dim}")


def entry(dim: int, value_dim: int, is_causal: bool, device: str = "") -> Entry:
    """The cuts of a call on a device; where tuning starts, if it was never tuned."""
    row = row_of(dim, value_dim)
    return tuned(device).get((row, is_causal), STARTS[row])


def file_of(device: str) -> Path:
    """Where what was measured on a device is kept."""
    return TUNED / f"{re.sub(r'[^a-z0-9]+', '_', device.lower()).strip('_')}.json"


@functools.cache
def tuned(device: str) -> Mapping[tuple[int, bool], Entry]:
    """What was measured on a device: {(row, causal): entry}; empty if nothing was."""
    path = file_of(device)
    if not device or not path.exists():
        return {}
    return {
        (row["dim"], row["is_causal"]): decoded(row)
        for row in json.loads(path.read_text())["rows"]
    }


def decoded(row: Mapping[str, Any]) -> Entry:
    """An entry of a file."""
    keys, queries = (Pass(*row["backward"][name]) for name in ("keys", "queries"))
    forward = Forward(*row["forward"])
    return Entry(forward, Backward(keys, queries), row["speed"], row["cudnn"])


def encoded(dim: int, is_causal: bool, entry: Entry) -> dict[str, Any]:
    """A row of a file."""
    return {
        "dim": dim,
        "is_causal": is_causal,
        "forward": list(entry.forward),
        "backward": {name: list(x) for name, x in entry.backward._asdict().items()},
        "speed": entry.speed,
        "cudnn": entry.cudnn,
    }
