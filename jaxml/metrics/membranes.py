"""Scores of a segmentation of neurons by their membranes, as in the ISBI 2012 challenge.

A wrong pixel in the middle of a membrane costs nothing; one gap in it joins two cells. So
cells are compared, not pixels. With p_ij the share of pixels that lie in cell i of the
prediction S and in cell j of the truth T, s_i and t_j its sums,

    V_Rand = sum_ij p_ij^2 / (sum_i s_i^2 / 2 + sum_j t_j^2 / 2)
    V_Info = I(S; T) / (H(S) / 2 + H(T) / 2),

both in [0, 1] and over the pixels of true cells alone ("foreground-restricted"). Cells are
what is left between membranes, joined by their sides (4 neighbours). "After thinning"
means that the width of a predicted membrane must not matter: here it has none, because
every membrane pixel is given to the nearest cell. The best threshold on the probability of
a cell is taken, one for all images.

The trap is the truth's own membranes: counted as a cell, they make one that touches all.

Reference: Arganda-Carreras et al., "Crowdsourcing the creation of image segmentation
algorithms for connectomics", Frontiers in Neuroanatomy 2015,
https://doi.org/10.3389/fnana.2015.00142 (V_Rand and V_Info with alpha = 1/2). Deviation:
the challenge thins predicted membranes to lines one pixel wide; see above. Its warping
error is not computed.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from jaxml.export import export
from jaxml.typing import Bool, Float, Int

THRESHOLDS = tuple(i / 20 for i in range(1, 20))


@export("metrics.cell_regions", since="0.1")
def cell_regions(
    cells: Bool[np.ndarray, "height width"], *, grow: bool = False
) -> Int[np.ndarray, "height width"]:
    """Numbers 1, 2 ... for the connected parts of a mask, 0 outside them.

    Args:
        cells: True inside a cell.
        grow: give every pixel outside to the nearest part; if there is none, all pixels
            are one part.

    >>> cell_regions(np.array([[True, False, True, True]])).tolist()
    [[1, 0, 2, 2]]
    """
    from scipy import ndimage

    regions, count = ndimage.label(cells)  # joined by their sides
    if not grow:
        return regions
    if count == 0:
        return np.ones(cells.shape, int)
    nearest = ndimage.distance_transform_edt(
        regions == 0, return_distances=False, return_indices=True
    )
    return regions[tuple(nearest)]


@export("metrics.rand_scores", since="0.1")
def rand_scores(
    predicted: Int[np.ndarray, "*space"], truth: Int[np.ndarray, "*space"]
) -> dict[str, float]:
    """V_Rand and V_Info of two segmentations, over the pixels where the truth is not 0.

    Returns:
        `rand` and `info`, and the two parts that `rand` is the harmonic mean of:
        `rand_split`, the chance that a pair of pixels of one true cell is in one
        predicted cell, and `rand_merge`, the reverse.

    Raises:
        ValueError: if the shapes differ, or the truth is 0 everywhere.

    >>> truth = np.array([1, 1, 2, 2])
    >>> rand_scores(np.array([1, 1, 1, 1]), truth)["rand_split"]
    1.0
    """
    if predicted.shape != truth.shape:
        raise ValueError(
            f"segmentations must have one shape, got {predicted.shape} and {truth.shape}"
        )
    inside = truth != 0
    if not inside.any():
        raise ValueError("the truth must have a pixel that is not 0, got none")
    pairs = np.stack([predicted[inside], truth[inside]])
    cells, counts = np.unique(pairs, axis=1, return_counts=True)
    p = counts / counts.sum()
    s, t = (np.bincount(np.unique(row, return_inverse=True)[1], p) for row in cells)
    together = np.sum(p * p)
    entropy_s, entropy_t, entropy = (-np.sum(x * np.log(x)) for x in (s, t, p))
    information, room = entropy_s + entropy_t - entropy, (entropy_s + entropy_t) / 2
    scores = {
        "rand": 2 * together / (np.sum(s * s) + np.sum(t * t)),
        "rand_split": together / np.sum(t * t),
        "rand_merge": together / np.sum(s * s),
        "info": information / room if room > 0 else 1.0,
    }
    return {name: float(value) for name, value in scores.items()}


@export("metrics.membrane_scores", since="0.1")
def membrane_scores(
    probabilities: Float[np.ndarray, "images height width"],
    cells: Bool[np.ndarray, "images height width"],
    *,
    thresholds: Sequence[float] = THRESHOLDS,
) -> Mapping[str, float]:
    """What a probability of "cell" is worth, in means over the images.

    Args:
        probabilities: of a pixel to lie in a cell and not in a membrane.
        cells: the truth.
        thresholds: those that are tried.

    Returns:
        At one half, `pixel_error`, the share of wrong pixels, and `membrane_f1`, the
        harmonic mean of the precision and recall of membrane pixels; `rand` and `info`,
        the largest V_Rand and V_Info; `rand_error`, one minus `rand`; and `threshold`,
        where `rand` is largest.

    Raises:
        ValueError: if the shapes differ, or no threshold is given.
    """
    if probabilities.shape != cells.shape:
        raise ValueError(
            f"probabilities and cells must have one shape, got {probabilities.shape} "
            f"and {cells.shape}"
        )
    if not thresholds:
        raise ValueError("a threshold must be given, got none")
    truths = [cell_regions(image) for image in cells]
    rows = [
        [
            rand_scores(cell_regions(p > threshold, grow=True), truth)
            for p, truth in zip(probabilities, truths, strict=True)
        ]
        for threshold in thresholds
    ]
    rand, info = (
        np.array([np.mean([scores[name] for scores in row]) for row in rows])
        for name in ("rand", "info")
    )
    best = int(rand.argmax())
    found = ~(probabilities > 0.5)
    claimed = np.sum(found) + np.sum(~cells)
    return {
        "pixel_error": float(np.mean(found == cells)),
        "membrane_f1": float(2 * np.sum(found & ~cells) / claimed) if claimed else 1.0,
        "rand": float(rand[best]),
        "rand_error": float(1 - rand[best]),
        "info": float(info.max()),
        "threshold": float(thresholds[best]),
    }
