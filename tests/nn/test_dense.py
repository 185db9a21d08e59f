"""The dense layer against NumPy, over any leading axes."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.nn import Dense


@pytest.mark.parametrize("shape", [(3,), (5, 3), (2, 4, 3), (0, 3)])
def test_value_and_gradient_match_numpy(rng, shape):
    x = rng.normal(size=shape).astype(np.float32)
    module = Dense(4)
    params = module.init(jax.random.key(0), x)["params"]
    params = {**params, "bias": rng.normal(size=4).astype(np.float32)}
    y, pull = jax.vjp(lambda p: module.apply({"params": p}, x), params)
    expected = x.astype(np.float64) @ np.float64(params["kernel"]) + params["bias"]
    chex.assert_trees_all_close(y, np.float32(expected), rtol=1e-5, atol=1e-6)
    g = rng.normal(size=y.shape).astype(np.float32)
    rows, slopes = x.reshape(-1, 3), g.reshape(-1, 4)
    expected = {"kernel": rows.T @ slopes, "bias": slopes.sum(0)}
    chex.assert_trees_all_close(pull(g)[0], expected, rtol=1e-4, atol=1e-5)


def test_bias_and_dtypes(rng):
    x = rng.normal(size=(2, 3)).astype(np.float32)
    module = Dense(4, use_bias=False, dtype=jnp.bfloat16)
    variables = module.init(jax.random.key(0), x)
    assert variables["params"].keys() == {"kernel"}
    assert variables["params"]["kernel"].dtype == jnp.float32
    assert module.apply(variables, x).dtype == jnp.bfloat16
