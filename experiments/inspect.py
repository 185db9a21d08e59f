"""What a checkpoint holds, and whether its files are sound.

    python -m experiments.inspect runs/simclr_digits
    python -m experiments.inspect runs/simclr_digits --step 1000 --only params
    python -m experiments.inspect runs/simclr_digits --compare runs/other

Shows the record (metrics, configuration, versions), and of every array its type, shape,
size and statistics; with `--compare`, how far two checkpoints are apart. Arrays are read
a few at a time. Ends with status 1 if a file is damaged or the two differ.
"""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro

from jaxml.train import CheckpointError, Checkpoints
from jaxml.train import checksums, storage
from jaxml.train.checkpoint import locate
from jaxml.train.leaves import Leaves, describe

AT_ONCE = 1 << 28  # bytes of arrays in memory; a single larger one is read alone
PIECE = 1 << 22  # numbers


@dataclass(frozen=True)
class Config:
    """What a checkpoint holds, and whether its files are sound."""

    path: tyro.conf.Positional[Path]
    """A run's folder, a folder of checkpoints, or one checkpoint."""
    step: int | None = None
    """Which one; the newest by default."""
    only: str = ""
    """Arrays whose paths begin so, such as params/encoder."""
    compare: Path | None = None
    """Another checkpoint, to show the differences to."""
    verify: bool = True
    """Whether the checksums of all files are compared."""
