"""Derivatives in float64 for functions written in NumPy."""

from collections.abc import Callable

import numpy as np


def gradients(f: Callable[..., float], *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    """Central differences of `f` by every entry of its arguments."""
    arrays = tuple(np.array(a, np.float64) for a in arrays)
    found = []
    for array in arrays:
        gradient = np.zeros_like(array)
        for index in np.ndindex(array.shape):
            step = 1e-5 * max(1.0, abs(array[index]))
            middle = array[index]
            array[index] = middle + step
            above = f(*arrays)
            array[index] = middle - step
            below = f(*arrays)
            array[index] = middle
            gradient[index] = (above - below) / (2 * step)
        found.append(gradient)
    return tuple(found)


def close(actual, expected, scale=1.0, rtol=1e-6, atol=1e-6) -> None:
    """Asserts float32 results near float64 ones; `scale` is that of the terms added."""
    np.testing.assert_allclose(
        np.asarray(actual, np.float64), expected, rtol=rtol, atol=atol * scale
    )
