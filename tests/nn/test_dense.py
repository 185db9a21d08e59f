"""Dense against NumPy and flax."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.nn.dense import Dense


@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (2, 1, 4)])
@pytest.mark.parametrize("bias", [True, False])
def test_matches_numpy_and_flax(rng, leading, bias):
    x = rng.normal(size=(*leading, 5)).astype(np.float32)
    variables = Dense(4, use_bias=bias).init(jax.random.key(0), x)
    if bias:
        variables["params"]["bias"] = jnp.arange(4.0)
    y = Dense(4, use_bias=bias).apply(variables, x)
    params = {k: np.asarray(v, np.float64) for k, v in variables["params"].items()}
    expected = np.einsum("...i,io->...o", x, params["kernel"]) + params.get("bias", 0.0)
    chex.assert_trees_all_close(y, expected, rtol=1e-5, atol=1e-6)
    theirs = nn.Dense(4, use_bias=bias)
    chex.assert_trees_all_equal_shapes(theirs.init(jax.random.key(0), x), variables)

    def gradient(module):
        return jax.grad(lambda v, x: jnp.sum(jnp.sin(module.apply(v, x))), (0, 1))

    ours = gradient(Dense(4, use_bias=bias))(variables, x)
    chex.assert_trees_all_close(
        ours, gradient(theirs)(variables, x), rtol=1e-5, atol=1e-6
    )


def test_types(rng):
    x = jnp.ones((2, 3, 5))
    variables = Dense(4, dtype=jnp.bfloat16).init(jax.random.key(0), x)
    assert variables["params"]["kernel"].dtype == jnp.float32
    assert Dense(4, dtype=jnp.bfloat16).apply(variables, x).dtype == jnp.bfloat16
    narrow = Dense(4, param_dtype=jnp.bfloat16).init(jax.random.key(0), x)
    assert narrow["params"]["kernel"].dtype == jnp.bfloat16
    assert Dense(4).apply(narrow, x).dtype == jnp.float32


def test_the_kernels_gradient_needs_no_transposed_copy():
    """What the layer exists for: its operands stay as they lie."""
    x = jnp.ones((8, 65, 192))
    variables = Dense(256).init(jax.random.key(0), x)
    gradient = jax.grad(lambda v: jnp.sum(jnp.sin(Dense(256).apply(v, x))))
    text = jax.jit(gradient).lower(variables).as_text()
    dots = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert any("contracting_dims = [0] x [0]" in line for line in dots), dots
    assert not any("[0, 1] x [0, 1]" in line for line in dots), dots
