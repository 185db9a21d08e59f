"""Empty tiles are found from their corners, and dropout is a fair coin per position."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np

from jaxml.attention.masks import Columns, Limits, Rows, kept, occupied, visible
from jaxml.attention.spec import Spec

bound = st.none() | st.integers(0, 9)


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(
    left=bound,
    right=bound,
    offset=st.integers(-12, 12),
    lengths=st.tuples(st.integers(0, 12), st.integers(0, 12)),
    is_sorted=st.booleans(),
    seed=st.integers(0, 99),
)
def test_no_occupied_tile_is_missed(left, right, offset, lengths, is_sorted, seed):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 4, (2, 12))
    ids = np.sort(ids, axis=1) if is_sorted else ids
    mask = rng.random((12, 12)) < 0.9
    spec, limits = Spec(1.0, left, right), Limits(offset, *lengths)
    number = np.arange(12)
    whole = visible(spec, limits, Rows(number, ids[0]), Columns(number, ids[1]), mask)
    cut = lambda x: x.reshape(4, 3)
    some = np.asarray(whole).reshape(4, 3, 4, 3).any((1, 3))
    table = occupied(
        spec,
        limits,
        Rows(cut(number), cut(ids[0])),
        Columns(cut(number), cut(ids[1])),
        mask.reshape(4, 3, 4, 3).any((1, 3)),
    )
    assert not (some & ~np.asarray(table)).any()


def test_exactly_the_band_is_occupied():
    """Causal: the lower triangle of tiles. A window: a band."""
    number = np.arange(16).reshape(4, 4)
    rows, columns = Rows(number), Columns(number)
    table = lambda spec, offset: np.asarray(
        occupied(spec, Limits(offset), rows, columns)
    )
    np.testing.assert_array_equal(table(Spec(1.0, None, 0), 0), np.tri(4))
    np.testing.assert_array_equal(table(Spec(1.0, None, 0), 1), np.tri(4, k=1))
    band = np.tri(4) - np.tri(4, k=-2)
    np.testing.assert_array_equal(table(Spec(1.0, 4, 0), 0), band)
    np.testing.assert_array_equal(table(Spec(1.0, 1, 0), 0), band)
    np.testing.assert_array_equal(table(Spec(1.0, 0, 0), 0), np.eye(4))


def test_dropout_is_fair_and_independent():
    seeds = jnp.array([3, 7], jnp.uint32)
    coins = jax.vmap(lambda n: kept(0.25, seeds, n, jnp.arange(256), jnp.arange(256)))(
        jnp.arange(2)
    )
    np.testing.assert_allclose(np.unique(coins), [0, 1 / 0.75], rtol=1e-6)
    assert abs(float((coins == 0).mean()) - 0.25) < 5e-3
    x = np.asarray(coins) - 1
    x /= x.std()
    shifts = [
        (x[0] * x[1]).mean(),
        (x[:, 1:] * x[:, :-1]).mean(),
        (x[:, :, 1:] * x[:, :, :-1]).mean(),
        (x[:, 1:, 1:] * x[:, 1:, :-1] * x[:, :-1, 1:] * x[:, :-1, :-1]).mean(),
    ]
    assert np.abs(shifts).max() < 0.015
    assert np.abs(x.mean(1)).max() < 0.3
    assert np.abs(x.mean(2)).max() < 0.3


def test_dropout_knows_positions_not_tiles():
    seeds, head = jnp.array([1, 2], jnp.uint32), jnp.int32(5)
    whole = kept(0.5, seeds, head, jnp.arange(20), jnp.arange(30))
    part = kept(0.5, seeds, head, jnp.arange(7, 11), jnp.arange(13, 30))
    np.testing.assert_array_equal(whole[7:11, 13:], part)
