"""The report against a count of casts, number by number."""

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxml.precision import float_report


def gradients(rng, size):
    """Magnitudes from 2^-60 to 2^40, some zeros."""
    x = rng.normal(size=size) * np.exp2(rng.uniform(-60, 40, size=size))
    return np.where(rng.random(size) < 0.1, 0, x).astype(np.float32)


@pytest.mark.parametrize("scale", [1.0, 2.0**10, 3.7])
@pytest.mark.parametrize(
    "dtype", [np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e5m2]
)
def test_counts_match_numbers_cast_one_by_one(rng, dtype, scale):
    x = gradients(rng, 2003)
    tiny = float(jnp.finfo(dtype).tiny)
    zero = subnormal = infinite = 0
    for number in x[x != 0]:
        with np.errstate(over="ignore"):
            cast = float(dtype(np.float64(abs(number)) * scale))
        zero += cast == 0
        subnormal += 0 < cast < tiny
        infinite += not np.isfinite(cast)
    report = float_report({"x": x}, dtype, scale)
    row = report.total
    assert (row.to_zero, row.to_subnormal, row.to_infinity) == (
        zero,
        subnormal,
        infinite,
    )
    nonzero = np.count_nonzero(x)
    assert row.underflow == zero / nonzero
    assert row.precision_loss == subnormal / nonzero
    assert row.overflow == infinite / nonzero
    assert row.zeros == x.size - nonzero
    assert (row.smallest, row.largest) == (
        np.abs(x[x != 0]).min(),
        np.abs(x).max(),
    )


@pytest.mark.parametrize(
    "number, fate",
    [
        (2.0**-25, "to_zero"),  # half of the smallest: ties go to even, which is zero
        (2.0**-25 * (1 + 2**-20), "to_subnormal"),
        (2.0**-14 - 2.0**-24, "to_subnormal"),
        (2.0**-14, None),
        (65519.0, None),
        (65520.0, "to_infinity"),
    ],
)
def test_edges_of_float16(number, fate):
    for sign in (1, -1):
        row = float_report([np.float32(sign * number)[None]]).total
        fates = {n: getattr(row, n) for n in ("to_zero", "to_subnormal", "to_infinity")}
        assert fates == {n: int(n == fate) for n in fates}
    scaled = float_report([np.float32([number * 2**-8])], scale=256.0).total
    assert sum(getattr(scaled, n) for n in fates) == (fate is not None)


def test_the_histogram_counts_exponents():
    x = np.float32([1, 1.99, -2, 0.5, 0.49, 0, 2**-149, 3e38])
    row = float_report({"x": x}).total
    histogram = dict(zip(row.exponents.tolist(), row.counts.tolist(), strict=True))
    assert histogram == {-149: 1, -2: 1, -1: 1, 0: 2, 1: 1, 127: 1}
    assert row.subnormal == 1


def test_the_total_is_all_arrays_as_one(rng):
    a, b = gradients(rng, (7, 5)), gradients(rng, 201)
    parts = float_report({"a": a, "deep": {"b": b}, "count": np.arange(3)})
    whole = float_report({"total": np.concatenate([a.ravel(), b])})
    assert [row.name for row in parts.rows] == ["a", "deep/b"]
    chex.assert_trees_all_equal(vars(parts.total), vars(whole.rows[0]))


def test_numbers_that_are_not_finite_are_counted_apart():
    row = float_report([np.float32([np.nan, np.inf, 1, 0])]).total
    assert (row.non_finite, row.zeros, row.size) == (2, 1, 4)
    assert row.largest == 1
    assert row.overflow == 0


def test_all_zeros_and_no_numbers():
    row = float_report({"zeros": jnp.zeros(4), "none": jnp.zeros((0, 3))}).total
    assert (row.size, row.zeros, row.underflow) == (4, 4, 0.0)
    assert np.isnan(row.smallest)
    assert row.counts.size == 0


def test_device_arrays_of_half_precision(rng):
    x = jnp.asarray(gradients(rng, 64), jnp.bfloat16)
    as_half = float_report({"x": x}).total
    as_full = float_report({"x": np.asarray(x, np.float32)}).total
    chex.assert_trees_all_equal(vars(as_half), vars(as_full))


def test_a_larger_scale_saves_gradients_of_a_real_model(rng):
    w = jnp.asarray(rng.normal(size=(16, 4)), jnp.float32)
    x, y = rng.normal(size=(64, 16)), rng.normal(size=(64, 4))
    grads = jax.grad(lambda w: 1e-9 * jnp.mean((x @ w - y) ** 2))(w)
    shares = [float_report(grads, scale=2.0**k).total.underflow for k in (0, 8, 24)]
    assert shares[0] == 1 > shares[1] > shares[2] == 0


def test_the_table():
    tree = {"w": np.float32([1, 1e-9]), "b": np.float32([1e9, 1])}
    head, titles, *lines = str(float_report(tree, scale=2.0)).splitlines()
    assert "in float16 after x 2" in head
    assert " ".join(titles.split()) == "size smallest largest zero subnormal infinite"
    assert [line.split() for line in lines] == [
        ["b", "2", "1.00e+00", "1.00e+09", "0.0%", "0.0%", "50.0%"],
        ["w", "2", "1.00e-09", "1.00e+00", "50.0%", "0.0%", "0.0%"],
        ["total", "4", "1.00e-09", "1.00e+09", "25.0%", "0.0%", "25.0%"],
    ]
    assert len({len(line) for line in (titles, *lines)}) == 1


def test_bad_arguments():
    with pytest.raises(ValueError, match="scale must be positive, got 0"):
        float_report([np.ones(2)], scale=0.0)
    with pytest.raises(ValueError, match="must hold floating arrays, got none"):
        float_report({"label": np.arange(3)})
