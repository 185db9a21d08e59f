"""Fixed-point sums against exact ones (`math.fsum`), and their independence of order."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxml.parallel import data_mesh
from jaxml.trees.fixed_point import (
    exact_sum,
    exponent_above,
    power_of_two,
    quantize,
    quantize_wide,
)

SCALES = [1e-30, 1e-6, 1.0, 1e6, 1e30]


def test_powers_and_exponents_are_exact():
    e = np.arange(-126, 128)
    assert (np.asarray(power_of_two(jnp.asarray(e))) == np.exp2(e)).all()
    with jax.enable_x64(True):
        wide = np.arange(-1000, 1000, 7)
        assert (
            np.asarray(power_of_two(jnp.asarray(wide), jnp.float64)) == 2.0**wide
        ).all()
    x = np.array([1.0, 0.99, -2.0, 3e-20, 5e20], np.float32)
    e = np.asarray(exponent_above(jnp.asarray(x)))
    assert (np.abs(x) < np.exp2(e)).all()
    assert (np.abs(x) >= np.exp2(e - 1)).all()


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("n", [1, 7, 4096])
def test_sums_fit_and_err_no_more_than_they_may(rng, scale, n):
    x = (scale * rng.standard_t(2, size=(2, n))).astype(np.float32)
    q, exponent = map(np.asarray, jax.jit(quantize)(x))
    q = q.astype(np.int64)
    assert (np.abs(q).sum(axis=1) < 2**31).all()
    used = np.abs(q).sum(axis=1) > 2**26
    assert (used | (exponent == 126)).all(), "the bits must be used, or be the last"
    for channel in range(2):
        total = math.fsum(x[channel].astype(np.float64))
        mass = np.abs(x[channel].astype(np.float64)).sum()
        actual = float(q[channel].sum()) * 2.0 ** -float(exponent[channel])
        assert abs(actual - total) <= 4 * math.sqrt(n) * 2.0**-29 * mass


@pytest.mark.parametrize("scale", SCALES)
def test_wide_sums_are_exact_to_float64(rng, scale):
    x = (scale * rng.normal(size=(1, 1000))).astype(np.float32)
    with jax.enable_x64(True):
        actual = np.asarray(exact_sum(jnp.asarray(x)))
        q, _ = quantize_wide(jnp.asarray(x))
        assert q.dtype == jnp.int64
    expected = math.fsum(x[0].astype(np.float64))
    assert actual[0] == pytest.approx(expected, rel=1e-13, abs=1e-14 * scale)


def test_zeros_and_one_number():
    for x in (np.zeros((1, 5)), np.full((1, 1), -3.5), np.full((1, 3), 1e-38)):
        q, exponent = map(np.asarray, quantize(jnp.asarray(x, jnp.float32)))
        back = q.astype(np.float64) * 2.0 ** -exponent.astype(float)
        np.testing.assert_allclose(back, x.astype(np.float32), rtol=1e-6, atol=1e-37)


def test_neither_order_nor_devices_change_a_bit(rng):
    x = (rng.standard_t(2, size=(2, 64))).astype(np.float32)
    q, exponent = map(np.asarray, quantize(jnp.asarray(x)))
    order = rng.permutation(64)
    shuffled, same = map(np.asarray, quantize(jnp.asarray(x[:, order])))
    assert (same == exponent).all()
    assert (shuffled == q[:, order]).all()

    @jax.shard_map(
        mesh=data_mesh(),
        in_specs=P(None, "data"),
        out_specs=(P(None, "data"), P(), P()),
    )
    def on_eight(x):
        with jax.enable_x64(True):
            total = exact_sum(x, "data").astype(jnp.float32)
        return *quantize(x, "data"), total

    parts, again, total = jax.jit(on_eight)(x)
    assert (np.asarray(again) == exponent).all()
    assert (np.asarray(parts) == q).all()
    with jax.enable_x64(True):
        assert (
            np.asarray(total) == exact_sum(jnp.asarray(x)).astype(jnp.float32)
        ).all()
