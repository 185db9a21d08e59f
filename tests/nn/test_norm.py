"""Batch norm against float64 NumPy, in groups, on devices, and where it is hard."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxml.nn.norm import BatchNorm, FrozenBatchNorm
from jaxml.parallel.mesh import data_mesh


def numpy_batch_norm(x, scale, bias, groups=1, epsilon=1e-5):
    """Returns outputs, and the mean over the groups of mean and unbiased variance."""
    x, scale, bias = (np.asarray(v, np.float64) for v in (x, scale, bias))
    outputs, means, variances = [], [], []
    for part in np.split(x, groups):
        rows = part.reshape(-1, x.shape[-1])
        mean, var = rows.mean(0), rows.var(0)
        outputs.append((part - mean) / np.sqrt(var + epsilon) * scale + bias)
        means.append(mean)
        variances.append(rows.var(0, ddof=1))
    return np.concatenate(outputs), np.mean(means, 0), np.mean(variances, 0)


def numpy_gradient(x, scale, g, groups=1, epsilon=1e-5):
    """Gradients of sum(g * outputs) in x, scale and bias, from the closed form."""
    dx, d_scale, scale = [], 0.0, np.asarray(scale, np.float64)
    pairs = zip(np.split(x, groups), np.split(g, groups), strict=True)
    for part, g_part in pairs:
        rows = part.reshape(-1, x.shape[-1]).astype(np.float64)
        g_rows = g_part.reshape(rows.shape).astype(np.float64)
        deviation = np.sqrt(rows.var(0) + epsilon)
        z = (rows - rows.mean(0)) / deviation
        inner = g_rows - g_rows.mean(0) - z * (g_rows * z).mean(0)
        dx.append((scale / deviation * inner).reshape(part.shape))
        d_scale += (g_rows * z).sum(0)
    return np.concatenate(dx), d_scale, g.reshape(-1, x.shape[-1]).sum(0)


def random_variables(rng, channels):
    f32 = lambda x: jnp.asarray(x, jnp.float32)
    return {
        "params": {
            "scale": f32(rng.normal(size=channels)),
            "bias": f32(rng.normal(size=channels)),
        },
        "batch_stats": {
            "mean": f32(rng.normal(size=channels)),
            "var": f32(rng.uniform(1, 2, channels)),
        },
    }


def train(module, variables, x):
    y, updates = module.apply(variables, x, train=True, mutable=["batch_stats"])
    return y, updates["batch_stats"]


@pytest.mark.parametrize("shape", [(2, 1), (6, 3), (12, 5, 4), (6, 3, 7, 2)])
@pytest.mark.parametrize("groups", [1, 2])
def test_training_matches_numpy(rng, shape, groups):
    if shape[0] // groups == 1:
        groups = 1
    x = (3 + 2 * rng.normal(size=shape)).astype(np.float32)
    variables = random_variables(rng, shape[-1])
    module = BatchNorm(num_groups=groups, momentum=0.3, epsilon=1e-3)
    y, state = jax.jit(lambda v, x: train(module, v, x))(variables, x)
    expected, mean, var = numpy_batch_norm(
        x, **variables["params"], groups=groups, epsilon=1e-3
    )
    before = variables["batch_stats"]
    chex.assert_trees_all_close(y, expected, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close(
        state,
        {
            "mean": 0.7 * before["mean"] + 0.3 * mean,
            "var": 0.7 * before["var"] + 0.3 * var,
        },
        rtol=1e-5,
    )


@pytest.mark.parametrize("groups", [1, 3])
def test_gradient_matches_the_closed_form(rng, groups):
    x, g = rng.normal(size=(2, 6, 3, 4)).astype(np.float32)
    variables = random_variables(rng, 4)
    module = BatchNorm(num_groups=groups)

    def objective(x, params):
        y, _ = train(module, {**variables, "params": params}, x)
        return jnp.sum(g * y)

    dx, d_params = jax.jit(jax.grad(objective, (0, 1)))(x, variables["params"])
    expected = numpy_gradient(x, variables["params"]["scale"], g, groups)
    actual = (dx, d_params["scale"], d_params["bias"])
    chex.assert_trees_all_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_second_derivatives_are_exact(rng):
    """The shift that is held constant in derivatives must not show in them."""
    x, g, v = (jnp.asarray(rng.normal(size=(5, 2)), jnp.float32) for _ in range(3))
    variables = random_variables(rng, 2)

    def plain(x):
        mean, var = jnp.mean(x, 0, keepdims=True), jnp.var(x, 0, keepdims=True)
        return (x - mean) / jnp.sqrt(var + 1e-5) * variables["params"]["scale"][None]

    def curvature(f):
        return jax.jvp(jax.grad(lambda x: jnp.sum(g * jnp.sin(f(x)))), (x,), (v,))[1]

    bias = variables["params"]["bias"][None]
    actual = curvature(lambda x: train(BatchNorm(), variables, x)[0] - bias)
    chex.assert_trees_all_close(actual, curvature(plain), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(64, 3), (33, 16, 16, 2)])
@pytest.mark.parametrize("mean", [0.0, 1e2, -1e4])
def test_a_large_mean_does_no_harm(rng, shape, mean):
    x = (mean + rng.normal(size=shape)).astype(np.float32)
    variables = random_variables(rng, shape[-1])
    y, state = train(BatchNorm(momentum=1.0), variables, x)
    expected, _, var = numpy_batch_norm(x, **variables["params"])
    chex.assert_trees_all_close(state["var"], var, rtol=1e-5)
    # The mean itself is a float32: half a unit in its last place is inevitable.
    chex.assert_trees_all_close(y, expected, rtol=1e-5, atol=1e-5 + 2e-7 * abs(mean))


def test_an_outlier_in_front_does_no_harm(rng):
    """The worst case of a shift taken from the first samples."""
    x = rng.normal(size=(64, 8, 8, 2)).astype(np.float32)
    x[:4] += 1e4
    _, state = train(BatchNorm(momentum=1.0), random_variables(rng, 2), x)
    _, mean, var = numpy_batch_norm(x, 1.0, 0.0)
    chex.assert_trees_all_close(state, {"mean": mean, "var": var}, rtol=1e-5)


def test_evaluation_uses_the_running_averages_only(rng):
    x = rng.normal(size=(3, 2, 4)).astype(np.float32)
    variables = random_variables(rng, 4)
    y = BatchNorm(epsilon=1e-3).apply(variables, x, train=False)
    params, stats = jax.device_get((variables["params"], variables["batch_stats"]))
    expected = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-3) * params["scale"]
    chex.assert_trees_all_close(y, expected + params["bias"], rtol=1e-5, atol=1e-6)
    alone = BatchNorm(epsilon=1e-3).apply(variables, x[:1], train=False)
    chex.assert_trees_all_close(alone, y[:1], rtol=1e-6)


def test_switches_of_scale_and_bias():
    x = jnp.ones((4, 3))
    init = lambda **kw: BatchNorm(**kw).init(jax.random.key(0), x, train=True)
    assert set(init()["params"]) == {"scale", "bias"}
    assert set(init(use_bias=False)["params"]) == {"scale"}
    assert set(init(use_scale=False)["params"]) == {"bias"}
    assert "params" not in init(use_scale=False, use_bias=False)
    zero = init(scale_init=nn.initializers.zeros)
    y, _ = train(BatchNorm(), zero, jnp.arange(12.0).reshape(4, 3))
    chex.assert_trees_all_equal(y, jnp.zeros((4, 3)))
    chex.assert_trees_all_equal(
        init()["batch_stats"], {"mean": jnp.zeros(3), "var": jnp.ones(3)}
    )


@pytest.mark.parametrize("groups", [1, 2, 4, 8, 16])
def test_eight_devices_equal_one(rng, groups):
    x, g = (2 + rng.normal(size=(2, 32, 3, 2))).astype(np.float32)
    variables = random_variables(rng, 2)

    def step(axis_name, variables, x, g):
        module = BatchNorm(num_groups=groups, axis_name=axis_name)

        def objective(params, x):
            y, state = train(module, {**variables, "params": params}, x)
            value = jnp.mean(g * jnp.sin(y))
            value = value if axis_name is None else jax.lax.pmean(value, axis_name)
            return value, (y, state)

        grads, (y, state) = jax.grad(objective, (0, 1), has_aux=True)(
            variables["params"], x
        )
        return grads[0], state, (grads[1], y)

    mesh = data_mesh()
    assert mesh.size == 8
    many = jax.shard_map(
        lambda *args: step("data", *args),
        mesh=mesh,
        in_specs=(P(), P("data"), P("data")),
        out_specs=(P(), P(), P("data")),
    )
    expected = jax.jit(lambda *args: step(None, *args))(variables, x, g)
    actual = jax.jit(many)(variables, x, g)
    chex.assert_trees_all_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_groups_of_one_device_are_the_local_batch_norm(rng):
    x = rng.normal(size=(16, 3)).astype(np.float32)
    variables = random_variables(rng, 3)
    split = train(BatchNorm(num_groups=8), variables, x)[0]
    parts = [train(BatchNorm(), variables, part)[0] for part in np.split(x, 8)]
    chex.assert_trees_all_close(split, jnp.concatenate(parts), rtol=1e-5, atol=1e-6)


def test_init_needs_no_mesh_and_leaves_the_averages(rng):
    x = 5 + rng.normal(size=(1, 3)).astype(np.float32)
    module = BatchNorm(axis_name="data", num_groups=4)
    variables = module.init(jax.random.key(0), x, train=True)
    expected = {"mean": jnp.zeros(3), "var": jnp.ones(3)}
    chex.assert_trees_all_equal(variables["batch_stats"], expected)
    module.apply(variables, x, train=False)  # nor does evaluation


def test_bfloat16_keeps_float32_statistics(rng):
    x = jnp.asarray(20 + rng.normal(size=(64, 4)), jnp.bfloat16)
    variables = random_variables(rng, 4)
    y, state = train(BatchNorm(momentum=1.0), variables, x)
    expected, mean, var = numpy_batch_norm(np.asarray(x), **variables["params"])
    assert y.dtype == jnp.bfloat16
    assert state["mean"].dtype == state["var"].dtype == jnp.float32
    chex.assert_trees_all_close(state, {"mean": mean, "var": var}, rtol=1e-5)
    chex.assert_trees_all_close(y.astype(np.float32), expected, rtol=1e-2, atol=1e-2)
    wide, _ = train(BatchNorm(dtype=jnp.float32), variables, x)
    assert wide.dtype == jnp.float32


def test_a_constant_input_is_finite():
    x = jnp.full((4, 2), 3.0)
    variables = BatchNorm().init(jax.random.key(0), x, train=True)
    value, grad = jax.value_and_grad(
        lambda x: jnp.sum(train(BatchNorm(), variables, x)[0] ** 2)
    )(x)
    chex.assert_tree_all_finite((value, grad))


@pytest.mark.parametrize("shape, groups", [((1, 3), 1), ((4, 3), 4), ((4, 1, 1, 2), 4)])
def test_rejects_single_values(shape, groups):
    module = BatchNorm(num_groups=groups)
    variables = module.init(jax.random.key(0), jnp.ones(shape), train=True)
    with pytest.raises(ValueError, match="more than one value per channel"):
        train(module, variables, jnp.ones(shape))


def test_rejects_groups_that_do_not_divide():
    module = BatchNorm(num_groups=3)
    variables = module.init(jax.random.key(0), jnp.ones((4, 2)), train=True)
    with pytest.raises(ValueError, match="num_groups must divide"):
        train(module, variables, jnp.ones((4, 2)))


def test_frozen_norm_is_evaluation_for_ever(rng):
    """The outputs of a trained norm in evaluation, and nothing moves in training."""
    x = jnp.asarray(3 + 2 * rng.normal(size=(4, 5, 6, 3)), jnp.float32)
    stats = {
        "mean": jnp.asarray(rng.normal(size=3), jnp.float32),
        "var": jnp.asarray(rng.uniform(0.5, 2, 3), jnp.float32),
    }
    affine = {
        "scale": jnp.asarray(rng.normal(size=3), jnp.float32),
        "bias": jnp.asarray(rng.normal(size=3), jnp.float32),
    }
    expected = BatchNorm().apply(
        {"params": affine, "batch_stats": stats}, x, train=False
    )
    frozen = {"batch_stats": {**stats, **affine}}
    actual, after = FrozenBatchNorm().apply(
        frozen, x, train=True, mutable=["batch_stats"]
    )
    chex.assert_trees_all_close(actual, expected, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_equal(after, frozen)
    variables = FrozenBatchNorm().init(jax.random.key(0), x, train=True)
    assert set(variables) == {"batch_stats"}
    half = FrozenBatchNorm(dtype=jnp.bfloat16).apply(frozen, x, train=False)
    assert half.dtype == jnp.bfloat16
