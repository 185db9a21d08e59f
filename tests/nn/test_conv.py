"""Convolution against loops in float64, and its own gradient against the compiler's."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxml.nn.conv import Conv, convolve
from jaxml.parallel.mesh import data_mesh

# batch, height, width, in, out, kernel, stride, dilation, padding
CASES = [
    (6, 9, 7, 3, 5, (3, 3), 1, 1, None),
    (7, 9, 8, 3, 5, (3, 3), 2, 1, 1),
    (3, 11, 8, 2, 4, (5, 3), 2, 2, ((1, 2), (0, 3))),
    (4, 9, 8, 3, 5, (1, 1), 2, 1, 0),
    (2, 40, 30, 2, 3, (7, 7), 2, 1, 3),
    (2, 5, 5, 2, 2, (2, 2), 1, 1, 0),
]


def pairs(padding, kernel, dilation):
    if padding is None:
        return [(dilation * (k - 1) // 2,) * 2 for k in kernel]
    return [(padding, padding)] * 2 if isinstance(padding, int) else padding


def numpy_convolve(x, kernel, stride, dilation, padding, groups=1):
    """One output at a time, in float64."""
    rows, columns, _, features = kernel.shape
    pads = pairs(padding, (rows, columns), dilation)
    x = np.pad(x.astype(np.float64), [(0, 0), *pads, (0, 0)])
    reach = [dilation * (k - 1) for k in (rows, columns)]
    height, width = (
        (n - r - 1) // stride + 1 for n, r in zip(x.shape[1:3], reach, strict=True)
    )
    y = np.zeros((len(x), height, width, features))
    inputs, outputs = x.shape[-1] // groups, features // groups
    for group in range(groups):
        part = x[..., group * inputs : (group + 1) * inputs]
        own = slice(group * outputs, (group + 1) * outputs)
        for i in range(height):
            for j in range(width):
                top, left = i * stride, j * stride
                seen = part[
                    :,
                    top : top + reach[0] + 1 : dilation,
                    left : left + reach[1] + 1 : dilation,
                ]
                y[:, i, j, own] = np.einsum("nabc,abcf->nf", seen, kernel[..., own])
    return y


def compilers_own(x, kernel, stride, dilation, padding):
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        pairs(padding, kernel.shape[:2], dilation),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def random_case(rng, case):
    batch, height, width, inputs, outputs, kernel, *geometry = case
    x = rng.normal(size=(batch, height, width, inputs))
    k = rng.normal(size=(*kernel, inputs, outputs))
    return x.astype(np.float32), k.astype(np.float32), geometry


@pytest.mark.parametrize("case", CASES)
def test_matches_loops(rng, case):
    x, kernel, (stride, dilation, padding) = random_case(rng, case)
    actual = convolve(x, kernel, stride=stride, dilation=dilation, padding=padding)
    expected = numpy_convolve(x, kernel, stride, dilation, padding)
    chex.assert_trees_all_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_groups_match_loops(rng):
    x = rng.normal(size=(2, 5, 6, 6)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 2, 9)).astype(np.float32)
    expected = numpy_convolve(x, kernel, 2, 1, 1, groups=3)
    actual = convolve(x, kernel, stride=2, groups=3)
    chex.assert_trees_all_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_gradient_is_the_compilers(rng, case):
    x, kernel, (stride, dilation, padding) = random_case(rng, case)

    def gradient(conv):
        return jax.jit(jax.grad(lambda x, k: jnp.sum(jnp.sin(conv(x, k))), (0, 1)))

    ours = gradient(
        lambda x, k: convolve(x, k, stride=stride, dilation=dilation, padding=padding)
    )
    theirs = gradient(lambda x, k: compilers_own(x, k, stride, dilation, padding))
    chex.assert_trees_all_close(
        ours(x, kernel), theirs(x, kernel), rtol=1e-5, atol=1e-4
    )


def test_higher_derivatives_and_vmap(rng):
    x, kernel, _ = random_case(rng, CASES[0])
    xs = np.stack([x, 2 * x])

    def curvature(conv):
        slope = jax.grad(lambda k, x: jnp.sum(jnp.sin(conv(x, k))))
        forward_over_reverse = jax.vmap(
            lambda x: jax.jvp(lambda k: slope(k, x), (kernel,), (kernel,))[1]
        )
        reverse_over_reverse = jax.grad(lambda k: jnp.sum(slope(k, x) ** 2))
        return jax.jit(
            lambda xs, k: (forward_over_reverse(xs), reverse_over_reverse(k))
        )

    ours = curvature(convolve)(xs, kernel)
    theirs = curvature(lambda x, k: compilers_own(x, k, 1, 1, None))(xs, kernel)
    chex.assert_trees_all_close(ours, theirs, rtol=1e-4, atol=1e-3)


def test_eight_devices_equal_one(rng):
    x, kernel, _ = random_case(rng, (16, 6, 6, 2, 3, (3, 3), 1, 1, None))
    objective = lambda k, x: jnp.mean(jnp.sin(convolve(x, k)))
    many = jax.shard_map(
        jax.grad(lambda k, x: lax.pmean(objective(k, x), "data"), (0, 1)),
        mesh=data_mesh(),
        in_specs=(P(), P("data")),
        out_specs=(P(), P("data")),
    )
    expected = jax.jit(jax.grad(objective, (0, 1)))(kernel, x)
    actual = jax.jit(many)(kernel, x)
    chex.assert_trees_all_close(actual, expected, rtol=1e-5, atol=1e-7)


def test_only_the_cpu_gets_the_patches():
    """Everywhere else the gradient is three convolutions and no loop."""
    gradient = jax.jit(jax.grad(lambda k, x: jnp.sum(jnp.sin(convolve(x, k)))))
    traced = gradient.trace(jnp.ones((3, 3, 2, 4)), jnp.ones((4, 8, 8, 2)))
    lowered = {
        platform: traced.lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "cuda", "tpu")
    }
    loops = {name: text.count("stablehlo.while") for name, text in lowered.items()}
    assert loops == {"cpu": 1, "cuda": 0, "tpu": 0}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_sums_in_float32(rng, dtype):
    x, kernel, _ = random_case(rng, (64, 16, 16, 2, 2, (3, 3), 1, 1, None))
    gradient = jax.grad(lambda k, x: jnp.sum(convolve(x, k).astype(jnp.float32)))
    narrow = gradient(kernel.astype(dtype), x.astype(dtype))
    wide = gradient(kernel, x.astype(dtype).astype(np.float32))
    assert narrow.dtype == dtype
    chex.assert_trees_all_close(narrow.astype(np.float32), wide, rtol=1e-2, atol=0.1)


def test_module_adds_a_bias_and_keeps_its_types(rng):
    x = jnp.asarray(rng.normal(size=(2, 6, 5, 4)), jnp.float32)
    module = Conv(6, (3, 1), stride=2, groups=2, use_bias=True, dtype=jnp.bfloat16)
    variables = module.init(jax.random.key(0), x)
    params = variables["params"]
    chex.assert_shape([params["kernel"], params["bias"]], [(3, 1, 2, 6), (6,)])
    assert params["kernel"].dtype == jnp.float32
    params = {**params, "bias": jnp.arange(6.0)}
    y = module.apply({"params": params}, x)
    expected = convolve(x, params["kernel"], stride=2, groups=2)
    expected = np.asarray(expected) + np.arange(6.0)
    assert y.dtype == jnp.bfloat16
    chex.assert_trees_all_close(y.astype(np.float32), expected, rtol=0.02, atol=0.05)


def test_default_initialisation_is_he_fan_out():
    variables = Conv(64, 3).init(jax.random.key(0), jnp.ones((1, 4, 4, 32)))
    kernel = variables["params"]["kernel"]
    assert abs(float(jnp.std(kernel)) / np.sqrt(2 / (9 * 64)) - 1) < 0.03


def test_rejects_groups_that_do_not_divide():
    with pytest.raises(ValueError, match="groups must divide"):
        Conv(6, 3, groups=4).init(jax.random.key(0), jnp.ones((1, 4, 4, 8)))
