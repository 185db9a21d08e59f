"""Border weights against a search over all pixels."""

import numpy as np
import pytest

from jaxml.segmentation import border_weights


def weights_numpy(numbers, w0, sigma, class_weights):
    height, width = numbers.shape
    out = np.empty(numbers.shape)
    for y in range(height):
        for x in range(width):
            if numbers[y, x]:
                out[y, x] = class_weights[1]
                continue
            distances = sorted(
                min(
                    np.hypot(y - v, x - u)
                    for v, u in zip(*np.nonzero(numbers == cell), strict=True)
                )
                for cell in np.unique(numbers[numbers > 0])
            )
            gap = w0 * np.exp(-(sum(distances[:2]) ** 2) / (2 * sigma**2))
            out[y, x] = class_weights[0] + (gap if len(distances) > 1 else 0)
    return out


@pytest.mark.parametrize("w0, sigma", [(10.0, 5.0), (3.0, 1.5)])
def test_it_is_equation_2(rng, w0, sigma):
    numbers = np.zeros((17, 23), int)
    numbers[2:6, 3:9] = 1
    numbers[7:12, 4:8] = 2
    numbers[3:14, 11:15] = 3
    numbers[15:, 20:] = 7  # numbers may be left out
    actual = border_weights(numbers, w0=w0, sigma=sigma, class_weights=(0.7, 1.3))
    expected = weights_numpy(numbers, w0, sigma, (0.7, 1.3))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    assert actual.dtype == np.float32
    # A mask is cut into its parts.
    mask = border_weights(numbers > 0, w0=w0, sigma=sigma, class_weights=(0.7, 1.3))
    np.testing.assert_array_equal(mask, actual)


def test_classes_weigh_alike(rng):
    cells = rng.random((30, 30)) < 0.2
    weights = border_weights(cells, w0=0.0)
    assert weights[cells].sum() == pytest.approx(weights[~cells].sum(), rel=1e-5)
    assert weights.mean() == pytest.approx(1, rel=1e-5)


def test_one_cell_or_none_has_no_gaps():
    for cells in (np.zeros((5, 6), bool), np.ones((5, 6), bool)):
        weights = border_weights(cells, class_weights=(1.0, 2.0))
        np.testing.assert_array_equal(weights, 1 + cells)
    one = np.zeros((9, 9), bool)
    one[4, 4] = True
    np.testing.assert_array_equal(border_weights(one, class_weights=(1.0, 1.0)), 1)


def test_far_cells_add_nothing_to_speak_of():
    cells = np.zeros((1, 200), bool)
    cells[0, [0, 199]] = True
    weights = border_weights(cells, class_weights=(1.0, 1.0))
    np.testing.assert_allclose(weights, 1, atol=1e-6)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"\[height, width\]"):
        border_weights(np.ones(3, bool))
    with pytest.raises(ValueError, match="sigma positive"):
        border_weights(np.ones((2, 2), bool), sigma=0.0)
