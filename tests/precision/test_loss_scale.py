"""The scales against their definition in NumPy, step for step."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxml.parallel import data_mesh
from jaxml.precision import DynamicLossScale, StaticLossScale, all_finite


def trace(scale, finite):
    """The scales in force after each step, in one compiled scan."""

    def step(scale, is_finite):
        scale = scale.adjust(is_finite)
        return scale, scale.scale

    return np.asarray(jax.jit(lambda s, f: jax.lax.scan(step, s, f)[1])(scale, finite))


def trace_numpy(finite, initial, interval, growth, backoff, low, high):
    scale, clean, scales = initial, 0, []
    for is_finite in finite:
        if is_finite:
            clean += 1
            if clean == interval:
                scale, clean = min(scale * growth, high), 0
        else:
            scale, clean = max(scale * backoff, low), 0
        scales.append(scale)
    return np.float32(scales)


@pytest.mark.parametrize("interval", [1, 2, 3, 7])
@pytest.mark.parametrize("growth, backoff", [(2.0, 0.5), (1.5, 0.25), (4.0, 0.75)])
@pytest.mark.parametrize("share", [0.05, 0.4])
def test_the_trace_matches_numpy(rng, interval, growth, backoff, share):
    """Long enough to meet both bounds and to come back from them."""
    finite = rng.random(400) > share
    scale = DynamicLossScale.create(
        2.0**6,
        growth_interval=interval,
        growth_factor=growth,
        backoff_factor=backoff,
        min_scale=0.5,
        max_scale=2.0**12,
    )
    expected = trace_numpy(finite, 2.0**6, interval, growth, backoff, 0.5, 2.0**12)
    np.testing.assert_allclose(trace(scale, finite), expected, rtol=1e-5)


def test_it_grows_on_the_third_clean_step_and_not_one_later():
    scale = DynamicLossScale.create(growth_interval=3)
    finite = np.array([1, 1, 1, 1, 1, 0, 1, 1, 0, 1, 1, 1], bool)
    powers = [16, 16, 17, 17, 17, 16, 16, 16, 15, 15, 15, 16]
    np.testing.assert_array_equal(trace(scale, finite), np.exp2(np.float32(powers)))


def test_defaults_are_the_usual_ones():
    scale = DynamicLossScale.create()
    assert float(scale.scale) == 65536
    assert (scale.growth_interval, scale.growth_factor) == (2000, 2.0)
    assert (scale.backoff_factor, scale.min_scale) == (0.5, 1.0)
    scales = trace(scale, np.ones(2001, bool))
    assert scales[1998] == 65536
    assert scales[1999] == scales[2000] == 131072


def test_a_static_scale_stays():
    scale = StaticLossScale.create(1024.0)
    finite = np.array([True, False, True])
    np.testing.assert_array_equal(trace(scale, finite), [1024, 1024, 1024])
    np.testing.assert_array_equal(scale.bounds, [1024, 1024])


@pytest.mark.parametrize("kind", [StaticLossScale, DynamicLossScale])
def test_scaling_happens_in_float32(kind):
    """2^16 is infinite in float16, and 2^-24 / 2^16 is zero."""
    scale = kind.create(2.0**16)
    loss = scale.scale_loss(jnp.asarray(3, jnp.float16))
    chex.assert_trees_all_equal(loss, jnp.float32(3 * 2**16))
    grads = {"half": jnp.asarray(2**-24, jnp.float16), "full": jnp.float32(8)}
    expected = {"half": jnp.float32(2**-40), "full": jnp.float32(2**-13)}
    chex.assert_trees_all_equal(scale.unscale(grads), expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_one_bad_number_is_found(bad, dtype):
    tree = {"a": jnp.ones((3, 2), dtype), "b": [jnp.zeros(5, dtype), jnp.arange(3)]}
    assert all_finite(tree)
    tree["b"][0] = tree["b"][0].at[4].set(bad)
    assert not all_finite(tree)


def test_nothing_is_finite():
    assert all_finite({})
    assert all_finite({"count": jnp.arange(3)})


@pytest.mark.parametrize("devices", [2, 8])
def test_one_device_decides_for_all(devices):
    """Each device says what it decided; one infinity on the last makes all say no."""
    mesh = data_mesh(jax.devices()[:devices])

    def decide(x):
        return all_finite({"x": x}, "data")[None]

    decide = jax.jit(
        jax.shard_map(decide, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    )
    x = jnp.ones((devices, 3))
    np.testing.assert_array_equal(decide(x), [True] * devices)
    np.testing.assert_array_equal(decide(x.at[-1, 1].set(jnp.inf)), [False] * devices)


def test_many_scales_at_once():
    """The state is arrays only, so it vmaps: one row for each scale."""
    starts = [4.0, 8.0, 16.0]
    each = [DynamicLossScale.create(s, growth_interval=1) for s in starts]
    stacked = jax.tree.map(lambda *rows: jnp.stack(rows), *each)
    after = jax.vmap(DynamicLossScale.adjust)(stacked, jnp.array([True, False, True]))
    np.testing.assert_array_equal(after.scale, [8, 4, 32])


def test_structure_and_dtypes_are_stable():
    scale = DynamicLossScale.create()
    adjust = jax.jit(chex.assert_max_traces(lambda s, f: s.adjust(f), n=1))
    for is_finite in (True, False, True):
        after = adjust(scale, jnp.array(is_finite))
        chex.assert_trees_all_equal_shapes_and_dtypes(scale, after)
        scale = after


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"initial_scale": 0.0}, "scale must be positive and finite, got 0"),
        ({"initial_scale": float("nan")}, "scale must be positive and finite, got nan"),
        ({"initial_scale": 0.5}, "rising order, got min_scale 1, scale 0.5, max_scale"),
        ({"initial_scale": 2.0**30}, "rising order"),
        ({"growth_interval": 0}, "growth_interval must be positive, got 0"),
        ({"growth_factor": 1.0}, "growth_factor must be above 1, got 1.0"),
        ({"backoff_factor": 1.0}, r"backoff_factor must lie in \(0, 1\), got 1.0"),
        ({"min_scale": -1.0}, "min_scale must be positive and finite, got -1.0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        DynamicLossScale.create(**arguments)


def test_a_bad_static_scale():
    with pytest.raises(ValueError, match="scale must be positive and finite, got -2"):
        StaticLossScale.create(-2.0)
