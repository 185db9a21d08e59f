"""Convolution against float64 loops; its own gradient against the compiler's."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxml.nn import Conv, convolve
from jaxml.parallel import data_mesh, pmean


def convolve_numpy(x, kernel, stride, padding, dilation, groups):
    """The sum of the module docstring, output by output."""
    x = np.pad(x.astype(np.float64), ((0, 0), *padding, (0, 0)))
    rows, columns, depth, features = kernel.shape
    height = (x.shape[1] - dilation * (rows - 1) - 1) // stride + 1
    width = (x.shape[2] - dilation * (columns - 1) - 1) // stride + 1
    y = np.zeros((len(x), height, width, features))
    per_group = features // groups
    for i in range(height):
        for j in range(width):
            patch = x[
                :,
                stride * i : stride * i + dilation * rows : dilation,
                stride * j : stride * j + dilation * columns : dilation,
            ]
            for g in range(groups):
                out = slice(g * per_group, (g + 1) * per_group)
                part = patch[..., g * depth : (g + 1) * depth]
                y[:, i, j, out] = np.tensordot(part, kernel[..., out], 3)
    return y


CASES = [
    # height, width, kernel, stride, padding, dilation, groups
    (5, 7, 3, 1, ((1, 1), (1, 1)), 1, 1),
    (6, 5, 3, 2, ((1, 1), (1, 1)), 1, 1),
    (7, 7, 1, 2, ((0, 0), (0, 0)), 1, 1),
    (9, 8, 3, 1, ((2, 2), (2, 2)), 2, 1),
    (6, 6, 3, 1, ((0, 2), (1, 0)), 1, 1),
    (6, 6, 3, 1, ((1, 1), (1, 1)), 1, 2),
]


@pytest.mark.parametrize(
    "height, width, size, stride, padding, dilation, groups", CASES
)
def test_value_and_gradients(
    rng, height, width, size, stride, padding, dilation, groups
):
    x = rng.normal(size=(6, height, width, 4)).astype(np.float32)
    kernel = rng.normal(size=(size, size, 4 // groups, 6)).astype(np.float32)
    options = {"stride": stride, "dilation": dilation, "groups": groups}
    y, pull = jax.vjp(lambda *a: convolve(*a, padding=padding, **options), x, kernel)
    expected = convolve_numpy(x, kernel, stride, padding, dilation, groups)
    chex.assert_trees_all_close(y, np.float32(expected), rtol=1e-4, atol=1e-4)

    def reference(x, kernel):
        return lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            padding,
            rhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    g = rng.normal(size=y.shape).astype(np.float32)
    expected = jax.vjp(reference, x, kernel)[1](g)
    chex.assert_trees_all_close(pull(g), expected, rtol=1e-4, atol=1e-4)


def test_kernel_gradient_is_the_sum_over_the_devices(rng):
    x = rng.normal(size=(8, 5, 5, 2)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 2, 3)).astype(np.float32)

    def loss(x, kernel, axis_name=None):
        return pmean(jnp.mean(jnp.square(convolve(x, kernel))), axis_name)

    def sharded(kernel):
        return jax.shard_map(
            lambda x, kernel: loss(x, kernel, "data"),
            mesh=data_mesh(jax.devices()[:4]),
            in_specs=(P("data"), P()),
            out_specs=P(),
        )(x, kernel)

    actual = jax.jit(jax.grad(sharded))(kernel)
    expected = jax.grad(loss, argnums=1)(x, kernel)
    chex.assert_trees_all_close(
        jax.device_get(actual), jax.device_get(expected), rtol=1e-5, atol=1e-6
    )


def test_hessian_vector_products_work(rng):
    x = rng.normal(size=(2, 4, 4, 1)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 1, 1)).astype(np.float32)
    grad = jax.grad(lambda k: jnp.sum(convolve(x, k) ** 2))
    _, product = jax.jvp(grad, (kernel,), (kernel,))
    chex.assert_trees_all_close(product, grad(kernel), rtol=1e-4)  # it is quadratic


def test_it_vmaps(rng):
    x = rng.normal(size=(3, 2, 4, 4, 1)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 1, 2)).astype(np.float32)
    loss = jax.grad(lambda k, x: jnp.sum(convolve(x, k) ** 2))
    actual = jax.vmap(loss, (None, 0))(kernel, x)
    expected = jnp.stack([loss(kernel, each) for each in x])
    chex.assert_trees_all_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_module_has_a_bias_and_dtypes(rng):
    x = rng.normal(size=(2, 5, 5, 3)).astype(np.float32)
    module = Conv(4, 3, use_bias=True, dtype=jnp.bfloat16)
    variables = module.init(jax.random.key(0), x)
    assert variables["params"]["kernel"].dtype == jnp.float32
    assert module.apply(variables, x).dtype == jnp.bfloat16
    shifted = {"params": {**variables["params"], "bias": jnp.ones(4)}}
    difference = module.apply(shifted, x) - module.apply(variables, x)
    chex.assert_trees_all_close(
        np.float32(difference), np.ones((2, 5, 5, 4), np.float32), atol=5e-2
    )


def test_groups_must_divide_the_channels():
    with pytest.raises(ValueError, match="groups must divide the channels"):
        Conv(4, 3, groups=2).init(jax.random.key(0), jnp.ones((1, 4, 4, 3)))
