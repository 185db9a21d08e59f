"""The small datasets that come with scikit-learn, so that no test needs a network.

Both splits are fixed: counting within each class, in scikit-learn's order, every fifth
sample is for test (the 5th, 10th, ...) and the others for training. A split deals its
classes out in turn, so that its first samples are a fair sample of it. Diabetes has a
number for a target: it counts as one class.
"""

import numpy as np

from jaxml.data.source import Arrays, Source, from_arrays
from jaxml.typing import Int

BUNDLED = ("digits", "breast_cancer", "diabetes", "iris", "wine")


def bundled(name: str) -> Source:
    """One of `BUNDLED`.

    Digits is `image` [8, 8, 1] in [0, 1] and `label`; the others are `features` in their
    own units and `target`, an integer class or, for diabetes, disease progression.
    """
    import sklearn.datasets

    data = getattr(sklearn.datasets, f"load_{name}")()
    has_classes = name != "diabetes"
    target = data.target.astype(np.int32 if has_classes else np.float32)
    arrays: Arrays
    if name == "digits":
        images = (data.images / 16).astype(np.float32)[..., None]
        arrays = {"image": images, "label": target}
    else:
        arrays = {"features": data.data.astype(np.float32), "target": target}
    classes = target if has_classes else np.zeros(len(target), int)
    rank = _rank_in_class(classes)
    order = np.lexsort((classes, rank))
    is_test = rank[order] % 5 == 4
    return from_arrays(
        {
            "train": {k: v[order[~is_test]] for k, v in arrays.items()},
            "test": {k: v[order[is_test]] for k, v in arrays.items()},
        },
        tuple(map(str, data.target_names)) if has_classes else (),
    )


def _rank_in_class(label: Int[np.ndarray, " samples"]) -> Int[np.ndarray, " samples"]:
    """How many earlier samples have the same label."""
    rank = np.empty_like(label)
    for value in np.unique(label):
        (members,) = np.nonzero(label == value)
        rank[members] = np.arange(len(members))
    return rank
