"""Writes tests/ops/golden/nms.npz: what torchvision's compiled operator keeps.

    TORCHVISION_OPS=<folder> python -m tests.oracle.write_golden_boxes

The folder holds torchvision 0.28.0 with operators that run on a CPU, see
experiments/bench/torchvision_operators.py.
"""

import os
from pathlib import Path

import numpy as np
import torch

from experiments.bench.torchvision_operators import load_operators

GOLDEN = Path(__file__).parents[1] / "ops" / "golden" / "nms.npz"
THRESHOLDS = (0.3, 0.5, 0.7)


def cases(rng: np.random.Generator) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Boxes and scores; quarters of pixels, which the file holds in 16 bits."""
    n = 300
    corner, size = rng.integers(0, 1200, (n, 2)), rng.integers(20, 600, (n, 2))
    uniform = np.concatenate([corner, corner + size], 1)
    middle, side = rng.integers(0, 2400, (12, 2)), rng.integers(100, 400, (12, 2))
    of = rng.integers(0, 12, n)
    low = middle[of] + rng.integers(-40, 40, (n, 2))
    clustered = np.concatenate([low, low + side[of] + rng.integers(-30, 30, (n, 2))], 1)
    # Whole numbers below 10: an IoU of just 3 / 10, 5 / 10 and 7 / 10 is frequent.
    small = rng.integers(0, 4, (n, 2))
    ties = 4 * np.concatenate([small, small + rng.integers(1, 11, (n, 2))], 1)
    any_corner = rng.integers(0, 24, (n, 2))
    degenerate = np.concatenate(
        [any_corner, any_corner + rng.integers(-3, 9, (n, 2))], 1
    )
    distinct = rng.permutation(n) / np.float32(n)
    few = rng.integers(0, 5, n) / np.float32(8)
    boxes = {
        "uniform": (uniform, distinct),
        "clustered": (clustered, distinct),
        "ties": (ties, few),
        "degenerate": (degenerate, few),
    }
    return {k: (np.float32(b) / 4, np.float32(s)) for k, (b, s) in boxes.items()}


def main() -> None:
    folder = os.environ["TORCHVISION_OPS"]
    nms = load_operators(Path(folder)).nms
    arrays = {}
    for name, (boxes, scores) in cases(np.random.default_rng(0)).items():
        arrays[f"{name}_boxes"] = np.int16(4 * boxes)
        arrays[f"{name}_scores"] = scores
        for threshold in THRESHOLDS:
            kept = nms(torch.tensor(boxes), torch.tensor(scores), threshold)
            arrays[f"{name}_{threshold}"] = kept.numpy().astype(np.int16)
            print(name, threshold, len(kept))
    GOLDEN.parent.mkdir(exist_ok=True)
    np.savez_compressed(GOLDEN, **arrays)


if __name__ == "__main__":
    main()
