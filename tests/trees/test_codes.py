"""Codes against NumPy's ranks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.trees.codes import encode

ENCODE = jax.jit(encode, static_argnames="max_codes")


def values(rng, n=48):
    x = np.round(rng.normal(size=(n, 3)) * 3).astype(np.float32)
    x[:, 1] = rng.normal(size=n)
    x[rng.random(x.shape) < 0.2] = np.nan
    x[0, 0], x[1, 0] = 0.0, -0.0
    return x


def test_codes_are_ranks_among_distinct_values(rng):
    x = values(rng)
    counted = rng.random(len(x)) < 0.8
    codes = ENCODE(x, counted=jnp.asarray(counted))
    for column, index, low, high in zip(x.T, *codes, strict=True):
        known = counted & ~np.isnan(column)
        distinct, rank = np.unique(column[known], return_inverse=True)
        assert (index[known] == rank).all()
        assert (index[~known] == len(x)).all()
        assert (low[: len(distinct)] == distinct).all()
        assert (high[: len(distinct)] == distinct).all()
        assert np.isposinf(low[len(distinct) :]).all()
        assert np.isneginf(high[len(distinct) :]).all()


def test_few_codes_share_rows_evenly_and_in_order(rng):
    x = values(rng)
    codes = ENCODE(x, max_codes=8)
    assert codes.index.dtype == jnp.uint8
    for column, index, low, high in zip(x.T, *codes, strict=True):
        known = ~np.isnan(column)
        value, code = column[known], np.asarray(index)[known]
        order = np.argsort(value, kind="stable")
        assert (np.diff(code[order].astype(int)) >= 0).all()
        for c in np.unique(code):
            assert low[c] == value[code == c].min()
            assert high[c] == value[code == c].max()
    smooth = np.asarray(codes.index[1])
    sizes = np.bincount(smooth[smooth < 8])
    assert sizes.max() - sizes.min() <= 1


def test_a_code_is_not_enough():
    with pytest.raises(ValueError, match="max_codes must be 2 or more, got 1"):
        encode(jnp.ones((3, 1)), 1)
