"""Clipping array by array, against NumPy."""

import jax
import numpy as np
import pytest

from jaxml.ssl import clip_each


def test_every_array_has_its_own_bound(rng):
    grads = {
        "long": np.float32(10 * rng.normal(size=(4, 3))),
        "short": np.float32(0.1 * rng.normal(size=5)),
        "zero": np.zeros(3, np.float32),
    }
    clip = clip_each(3.0)
    clipped, _ = jax.jit(clip.update)(grads, clip.init(grads))
    expected = grads["long"] * 3 / np.linalg.norm(grads["long"])
    np.testing.assert_allclose(clipped["long"], expected, rtol=1e-6)
    np.testing.assert_array_equal(clipped["short"], grads["short"])
    np.testing.assert_array_equal(clipped["zero"], 0)


def test_half_precision_does_not_overflow():
    grads = np.full(4, 3e4, np.float16)
    clipped, _ = clip_each(1.0).update(grads, clip_each(1.0).init(grads))
    assert clipped.dtype == np.float16
    np.testing.assert_allclose(clipped, 0.5, rtol=1e-3)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="max_norm must be positive"):
        clip_each(0.0)
