"""Scores of cells against counting of pairs, and what they are blind to."""

import itertools

import numpy as np
import pytest

from jaxml.metrics import cell_regions, membrane_scores, rand_scores


def rand_numpy(predicted, truth):
    """Pairs of pixels of true cells, a pixel with itself included."""
    pixels = [i for i in range(truth.size) if truth.flat[i]]
    same_s = same_t = same_both = 0
    for i, j in itertools.product(pixels, pixels):
        s = predicted.flat[i] == predicted.flat[j]
        t = truth.flat[i] == truth.flat[j]
        same_s, same_t, same_both = same_s + s, same_t + t, same_both + (s and t)
    return {
        "rand": 2 * same_both / (same_s + same_t),
        "rand_split": same_both / same_t,
        "rand_merge": same_both / same_s,
    }


def info_numpy(predicted, truth):
    """Mutual information, by its definition, over the mean entropy."""
    s, t = predicted[truth != 0], truth[truth != 0]
    information = entropy_s = entropy_t = 0.0
    for a in np.unique(s):
        p = np.mean(s == a)
        entropy_s -= p * np.log(p)
        for b in np.unique(t):
            both = np.mean((s == a) & (t == b))
            if both:
                information += both * np.log(both / (p * np.mean(t == b)))
    for b in np.unique(t):
        entropy_t -= np.mean(t == b) * np.log(np.mean(t == b))
    return 2 * information / (entropy_s + entropy_t)


def test_scores_match_pairs(rng):
    predicted, truth = rng.integers(1, 5, (6, 7)), rng.integers(0, 4, (6, 7))
    actual = rand_scores(predicted, truth)
    assert actual.pop("info") == pytest.approx(info_numpy(predicted, truth))
    assert actual == pytest.approx(rand_numpy(predicted, truth))
    harmonic = 2 / (1 / actual["rand_split"] + 1 / actual["rand_merge"])
    assert actual["rand"] == pytest.approx(harmonic)


def test_scores_are_scikit_images(rng):
    metrics = pytest.importorskip("skimage.metrics")
    # Theirs leaves out the pairs of a pixel with itself, few of so many.
    predicted, truth = rng.integers(1, 4, (200, 300)), rng.integers(0, 4, (200, 300))
    error, precision, recall = metrics.adapted_rand_error(truth, predicted)
    ours = rand_scores(predicted, truth)
    assert ours["rand"] == pytest.approx(1 - error, rel=1e-3)
    found = sorted([ours["rand_split"], ours["rand_merge"]])
    assert found == pytest.approx(sorted([precision, recall]), rel=1e-3)


def test_merging_and_splitting_are_told_apart():
    truth = np.repeat([1, 2], 50)
    merged = rand_scores(np.ones(100, int), truth)
    assert (merged["rand_split"], merged["rand_merge"]) == (1.0, 0.5)
    split = rand_scores(np.repeat([1, 2, 3, 4], 25), truth)
    assert (split["rand_split"], split["rand_merge"]) == (0.5, 1.0)
    assert merged["info"] == 0.0


def test_names_and_the_width_of_membranes_do_not_matter(rng):
    cells = np.ones((30, 30), bool)
    cells[:, 14:16] = cells[9:11] = False
    truth = cell_regions(cells)
    assert truth.max() == 4
    wide = cells.copy()
    wide[:, 12:18] = wide[7:13] = False
    renamed = rng.permutation(5)[cell_regions(wide, grow=True)] + 7
    assert rand_scores(renamed, truth)["rand"] == pytest.approx(1)
    leaky = cells.copy()
    leaky[20, 14:16] = True  # one gap joins two cells
    assert rand_scores(cell_regions(leaky, grow=True), truth)["rand"] < 0.9


def test_diagonal_lines_separate():
    cells = ~np.eye(6, dtype=bool)
    assert cell_regions(cells).max() == 2


def test_growing_gives_all_pixels_to_the_nearest():
    cells = np.zeros((1, 7), bool)
    cells[0, [0, 6]] = True
    assert cell_regions(cells, grow=True)[0].tolist()[:3] == [1, 1, 1]
    assert cell_regions(cells, grow=True)[0].tolist()[4:] == [2, 2, 2]
    assert (cell_regions(np.zeros((2, 3), bool), grow=True) == 1).all()


def test_the_best_threshold_is_found():
    """A membrane at 0.35 between cells at 0.9, in noise-free images."""
    p = np.full((2, 20, 20), 0.9)
    p[:, :, 10] = 0.35
    cells = p > 0.5
    scores = membrane_scores(p, cells)
    assert scores["rand"] == pytest.approx(1)
    assert scores["rand_error"] == pytest.approx(0)
    assert 0.35 <= scores["threshold"] < 0.9
    assert scores["pixel_error"] == 0
    p[:, :, 10] = 0.6  # now a threshold of one half merges all
    scores = membrane_scores(p, cells)
    assert scores["rand"] == pytest.approx(1)
    assert scores["pixel_error"] == pytest.approx(1 / 20)
    only_half = membrane_scores(p, cells, thresholds=(0.5,))
    assert only_half["rand"] == pytest.approx(2 / 3, abs=0.01)


def test_thick_membranes_cost_pixels_alone():
    cells = np.ones((1, 20, 20), bool)
    cells[:, :, 10] = False
    p = np.where(cells, 0.9, 0.1)
    p[:, :, 7:14] = 0.1
    scores = membrane_scores(p, cells, thresholds=(0.5,))
    assert scores["rand"] == pytest.approx(1)
    assert scores["pixel_error"] == pytest.approx(6 / 20)
    # One column of twenty is membrane, seven are said to be.
    assert scores["membrane_f1"] == pytest.approx(2 / (1 + 7))
    p = np.where(cells, 0.9, 0.9)
    assert membrane_scores(p, cells)["membrane_f1"] == 0
    assert membrane_scores(p, cells | True)["membrane_f1"] == 1


def test_bad_input_is_refused():
    ones = np.ones((2, 3), int)
    with pytest.raises((ValueError, TypeError), match=r"one shape|space"):
        rand_scores(ones, ones[:1])
    with pytest.raises(ValueError, match="a pixel that is not 0"):
        rand_scores(ones, 0 * ones)
    p = np.ones((1, 4, 4))
    with pytest.raises(ValueError, match="threshold must be given"):
        membrane_scores(p, p > 0, thresholds=())
    with pytest.raises((ValueError, TypeError), match=r"one shape|height"):
        membrane_scores(p, p[:, :2] > 0)
