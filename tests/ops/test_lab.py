"""Lab against pixel by pixel arithmetic, known colours, and back."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.ops import lab_to_rgb, rgb_to_lab

KNOWN = {  # published values, D65
    (1, 1, 1): (100, 0, 0),
    (0, 0, 0): (0, 0, 0),
    (1, 0, 0): (53.24, 80.09, 67.20),
    (0, 1, 0): (87.73, -86.18, 83.18),
    (0, 0, 1): (32.30, 79.19, -107.86),
}


def lab_numpy(rgb):
    """One pixel, step by step."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    r, g, b = linear
    x = (0.4124564 * r + 0.3575761 * g + 0.1804375 * b) / 0.9504700
    y = 0.2126729 * r + 0.7151522 * g + 0.0721750 * b
    z = (0.0193339 * r + 0.1191920 * g + 0.9503041 * b) / 1.0888300

    def f(t):
        return t ** (1 / 3) if t > (6 / 29) ** 3 else t / (3 * (6 / 29) ** 2) + 4 / 29

    return 116 * f(y) - 16, 500 * (f(x) - f(y)), 200 * (f(y) - f(z))


def test_matches_pixel_by_pixel(rng):
    image = rng.uniform(size=(5, 4, 3))
    image[0] *= 0.03  # the linear pieces
    expected = np.array([[lab_numpy(p) for p in row] for row in image])
    np.testing.assert_allclose(rgb_to_lab(np.float32(image)), expected, atol=2e-3)


@pytest.mark.parametrize("rgb", KNOWN)
def test_known_colours(rgb):
    lab = rgb_to_lab(jnp.array([[rgb]], jnp.float32))[0, 0]
    np.testing.assert_allclose(lab, KNOWN[rgb], atol=0.02)


def test_there_and_back(rng):
    image = np.float32(rng.uniform(size=(2, 7, 5, 3)))
    image[0, :2] *= 0.03
    back = jax.jit(lambda x: lab_to_rgb(rgb_to_lab(x)))(image)
    chex.assert_trees_all_close(back, image, atol=1e-5)
    gray = rgb_to_lab(jnp.broadcast_to(image[..., :1], image.shape))
    chex.assert_trees_all_close(gray[..., 1:], jnp.zeros((2, 7, 5, 2)), atol=1e-3)
    out = lab_to_rgb(jnp.array([[[50.0, 200.0, -200.0]]]))
    assert ((out >= 0) & (out <= 1)).all()


def test_gradients_exist_at_black():
    for f in (rgb_to_lab, lab_to_rgb):
        chex.assert_tree_all_finite(
            jax.grad(lambda x, f=f: jnp.sum(f(x)))(jnp.zeros((1, 1, 3)))
        )
