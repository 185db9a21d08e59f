"""Positions of patches: the sine-cosine table, and a table on another grid."""

import math

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.nn.positions import relative_positions, resize_positions, sincos_positions


def numpy_sincos(height, width, features):
    rows = []
    for y in range(height):
        for x in range(width):
            w = [10000.0 ** (-i / (features // 4)) for i in range(features // 4)]
            row = [math.sin(x * f) for f in w] + [math.cos(x * f) for f in w]
            row += [math.sin(y * f) for f in w] + [math.cos(y * f) for f in w]
            rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize("size", [(1, 1, 4), (3, 4, 12), (7, 2, 32)])
def test_sincos_matches_loops(size):
    actual = sincos_positions(*size)
    assert actual.dtype == np.float32
    chex.assert_trees_all_close(actual, numpy_sincos(*size), atol=1e-6)


def test_sincos_rejects_odd_widths():
    with pytest.raises(ValueError, match="multiple of four"):
        sincos_positions(2, 2, 6)


def cubic(t):
    """Keys' kernel with a = -1/2."""
    t = abs(t)
    if t < 1:
        return 1.5 * t**3 - 2.5 * t**2 + 1
    return -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t < 2 else 0.0


def weights_numpy(old, new):
    """Rows of weights, wider where there are fewer new places than old ones."""
    scale = old / new
    width = max(1, scale)
    rows = []
    for o in range(new):
        centre = (o + 0.5) * scale
        row = np.array([cubic((i + 0.5 - centre) / width) for i in range(old)])
        rows.append(row / row.sum())
    return np.stack(rows)


@pytest.mark.parametrize("new", [(3, 4), (5, 9), (2, 1), (7, 3)])
def test_resampling_is_bicubic_and_leaves_others_alone(rng, new):
    positions = np.float32(rng.normal(size=(2 + 3 * 4, 5)))
    actual = resize_positions(positions, (3, 4), new)
    rows, columns = weights_numpy(3, new[0]), weights_numpy(4, new[1])
    grid = np.einsum("ih,jw,hwc->ijc", rows, columns, positions[2:].reshape(3, 4, 5))
    expected = np.concatenate([positions[:2], grid.reshape(-1, 5)])
    chex.assert_trees_all_close(actual, expected, rtol=1e-4, atol=1e-5)
    if new == (3, 4):
        chex.assert_trees_all_close(actual, positions, rtol=1e-6, atol=1e-6)


def test_resampling_keeps_dtype_and_wants_a_grid():
    half = jnp.ones((4, 2), jnp.bfloat16)
    assert resize_positions(half, (2, 2), (3, 3)).dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="at least 3 x 3, got 4"):
        resize_positions(half, (3, 3), (2, 2))


@pytest.mark.parametrize("new", [(3, 4), (5, 9), (2, 1), (7, 3)])
def test_plain_resampling_repeats_the_edges(rng, new):
    """Against loops over the sixteen neighbours, with a = -3/4 and no antialiasing."""

    def kernel(t):
        t, a = abs(t), -0.75
        if t < 1:
            return (a + 2) * t**3 - (a + 3) * t**2 + 1
        return a * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0

    positions = np.float32(rng.normal(size=(1 + 3 * 4, 2)))
    table = positions[1:].reshape(3, 4, 2).astype(np.float64)
    expected = np.zeros((*new, 2))
    for row, column in np.ndindex(*new):
        y, x = (row + 0.5) * 3 / new[0] - 0.5, (column + 0.5) * 4 / new[1] - 0.5
        for i in range(math.floor(y) - 1, math.floor(y) + 3):
            for j in range(math.floor(x) - 1, math.floor(x) + 3):
                value = table[min(max(i, 0), 2), min(max(j, 0), 3)]
                expected[row, column] += kernel(y - i) * kernel(x - j) * value
    actual = resize_positions(positions, (3, 4), new, antialias=False)
    chex.assert_trees_all_equal(actual[:1], positions[:1])
    chex.assert_trees_all_close(actual[1:], expected.reshape(-1, 2), atol=1e-5)


def test_relative_positions_without_a_class_token_are_distances():
    places = relative_positions(2, 3, class_token=False)
    pairs = {}
    for q in range(6):
        for k in range(6):
            distance = (q // 3 - k // 3, q % 3 - k % 3)
            pairs.setdefault(distance, set()).add(int(places[q, k]))
    assert all(len(rows) == 1 for rows in pairs.values())
    assert sorted(row for rows in pairs.values() for row in rows) == list(range(15))
