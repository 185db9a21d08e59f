"""Holes: where they are, how much they hide, and what they leave to be seen."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.ssl import central_hole, cover, hole_views, random_blocks, random_region


@pytest.mark.parametrize(
    "size, share, rows, columns",
    [
        ((8, 8), 0.25, (2, 6), (2, 6)),
        ((9, 6), 1 / 9, (3, 6), (2, 4)),
        ((128, 128), 0.25, (32, 96), (32, 96)),
    ],
)
def test_the_central_hole_is_in_the_middle(size, share, rows, columns):
    expected = np.zeros((*size, 1), bool)
    expected[slice(*rows), slice(*columns)] = True
    chex.assert_trees_all_equal(np.asarray(central_hole(*size, share)), expected)


def test_random_regions_cover_their_share_to_the_pixel():
    draw = jax.vmap(lambda key: random_region(key, 15, 10, 0.3))
    holes = np.asarray(draw(jax.random.split(jax.random.key(0), 300)))
    assert (holes.sum(axis=(1, 2, 3)) == 45).all()
    everywhere = holes.mean(axis=0)
    assert 0.1 < everywhere.min() < everywhere.max() < 0.5  # no place is spared
    # They are blots: a pixel's neighbour mostly shares its lot, unlike in noise.
    agree = (holes[:, 1:] == holes[:, :-1]).mean()
    assert agree > 0.85 > 0.3**2 + 0.7**2 + 0.1


def test_random_blocks_are_rectangles_within_their_share():
    draw = jax.vmap(lambda key: random_blocks(key, 20, 16, 0.25, tries=12))
    holes = np.asarray(draw(jax.random.split(jax.random.key(0), 300)))[..., 0]
    area = holes.sum(axis=(1, 2))
    assert area.min() >= 3 * 2
    assert area.max() <= 0.25 * 320
    assert area.mean() > 0.6 * 0.25 * 320
    assert holes.mean(axis=0).min() > 0  # corners too
    one = jax.vmap(lambda key: random_blocks(key, 20, 16, tries=1, side=(0.2, 0.4)))
    for hole in np.asarray(one(jax.random.split(jax.random.key(1), 50)))[..., 0]:
        rows, columns = np.nonzero(hole.any(1))[0], np.nonzero(hole.any(0))[0]
        assert hole.sum() == len(rows) * len(columns)
        assert np.ptp(rows) + 1 == len(rows) <= 8
        assert np.ptp(columns) + 1 == len(columns) <= 6


def test_views_hide_what_they_are_told_to():
    image, keys = jnp.ones((8, 8, 3)), jax.random.split(jax.random.key(0), 9)
    for region, moves in (("central", False), ("blocks", True), ("region", True)):
        made = jax.vmap(hole_views(region), in_axes=(0, None))(keys, image)
        chex.assert_shape(made["hole"], (9, 8, 8, 1))
        assert bool((made["hole"] != made["hole"][:1]).any()) == moves
        assert 0 < made["hole"].mean() <= 0.25
        chex.assert_trees_all_equal(made["view"][0], image)


def test_covered_pixels_are_gone_and_others_stay(rng):
    x = np.float32(rng.uniform(size=(2, 5, 4, 3)))
    hole = rng.uniform(size=(2, 5, 4, 1)) < 0.4
    seen = np.asarray(cover(x, hole, 0.25))
    everywhere = np.broadcast_to(hole, x.shape)
    assert (seen[everywhere] == 0.25).all()
    assert (seen[~everywhere] == x[~everywhere]).all()
    half = cover(jnp.ones((1, 1, 3), jnp.bfloat16), jnp.ones((1, 1, 1), bool))
    assert half.dtype == jnp.bfloat16
    assert half.max() == 0.5


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: central_hole(4, 4, 1.0), "share must be in"),
        (lambda: random_blocks(jax.random.key(0), 4, 4, side=(0.1, 0.6)), "sides"),
        (lambda: random_region(jax.random.key(0), 4, 4, coarse=1), "2 points"),
        (lambda: hole_views("corner"), "region"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
