"""Elastic deformation against SciPy's mirrored reading, and its statistics."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from jaxml.segmentation import elastic_field, warp_image, warp_labels


def cubic_numpy(t):
    """Keys' cubic convolution kernel with a = -1/2."""
    t = abs(t)
    if t < 1:
        return 1.5 * t**3 - 2.5 * t**2 + 1
    return -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t < 2 else 0.0


@pytest.mark.parametrize("size, grid", [((7, 12), 3), ((5, 5), 2), ((9, 4), 5)])
def test_the_field_is_a_cubic_through_its_nodes(size, grid):
    key = jax.random.key(3)
    field = elastic_field(key, size, grid=grid, std=4.0)
    nodes = 4 * np.asarray(jax.random.normal(key, (2, grid, grid)), np.float64)
    padded = np.pad(nodes, ((0, 0), (1, 1), (1, 1)), "edge")
    for place in np.ndindex(*size):
        at = [i * (grid - 1) / (n - 1) for i, n in zip(place, size, strict=True)]
        expected = sum(
            padded[:, a + 1, b + 1] * cubic_numpy(at[0] - a) * cubic_numpy(at[1] - b)
            for a in range(-1, grid + 1)
            for b in range(-1, grid + 1)
        )
        np.testing.assert_allclose(field[:, *place], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(field[:, 0, -1], nodes[:, 0, -1], rtol=1e-5)


def test_the_field_has_the_paper_s_deviation():
    fields = jax.vmap(lambda k: elastic_field(k, (8, 8)))(
        jax.random.split(jax.random.key(0), 2000)
    )
    assert fields[:, :, 0, 0].std() == pytest.approx(10, rel=0.05)
    assert abs(fields.mean()) < 0.5


def test_images_are_read_in_mirrors(rng):
    image = rng.uniform(size=(9, 6, 2)).astype(np.float32)
    field = 12 * rng.normal(size=(2, 9, 6)).astype(np.float32)
    y, x = np.mgrid[:9, :6] + field.astype(np.float64)
    warped = warp_image(image, field)
    for c in range(2):
        expected = ndimage.map_coordinates(
            image[..., c].astype(np.float64), [y, x], order=1, mode="mirror"
        )
        np.testing.assert_allclose(warped[..., c], expected, atol=1e-4)
    labels = rng.integers(0, 9, (9, 6)).astype(np.uint8)
    expected = ndimage.map_coordinates(labels, [y, x], order=0, mode="mirror")
    actual = warp_labels(labels, field)
    assert actual.dtype == labels.dtype
    np.testing.assert_array_equal(actual, expected)


def test_no_displacement_changes_nothing(rng):
    image = rng.uniform(size=(5, 7, 1)).astype(np.float32)
    field = elastic_field(jax.random.key(0), (5, 7), std=0.0)
    chex.assert_trees_all_equal(warp_image(image, field), jnp.asarray(image))
    labels = rng.integers(0, 5, (5, 7))
    chex.assert_trees_all_equal(warp_labels(labels, field), jnp.asarray(labels))


def test_labels_go_with_the_image(rng):
    """Whole displacements move both alike."""
    labels = rng.integers(0, 2, (12, 12))
    field = jnp.round(elastic_field(jax.random.key(1), (12, 12), std=3.0))
    image = warp_image(np.float32(labels)[..., None], field)[..., 0]
    np.testing.assert_allclose(image, warp_labels(labels, field), atol=1e-6)


def test_vmap_and_one_pixel():
    keys = jax.random.split(jax.random.key(0), 3)
    fields = jax.jit(jax.vmap(lambda k: elastic_field(k, (4, 4))))(keys)
    assert not np.allclose(fields[0], fields[1])
    one = warp_image(jnp.ones((1, 1, 1)), jnp.full((2, 1, 1), 3.0))
    assert one[0, 0, 0] == 1


def test_bad_input_is_refused():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="grid must be at least 2"):
        elastic_field(key, (4, 4), grid=1)
    with pytest.raises(ValueError, match="std not negative"):
        elastic_field(key, (4, 4), std=-1.0)
    with pytest.raises(ValueError, match="shape of the field"):
        warp_labels(jnp.zeros((3, 4), int), jnp.zeros((2, 4, 4)))
