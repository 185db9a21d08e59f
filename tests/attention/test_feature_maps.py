"""Feature maps: weights are never negative, and gradients are finite at zero."""

import chex
import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.attention.feature_maps import FEATURE_MAPS, feature_map_of

numbers = st.floats(-50, 50, width=32)
pairs = hnp.arrays(np.float32, (2, 3), elements=numbers)


@pytest.mark.parametrize("name", FEATURE_MAPS)
@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(pair=pairs)
def test_weights_are_not_negative(name, pair):
    q, k = FEATURE_MAPS[name](pair)
    weight, size = jnp.vdot(q, k), jnp.linalg.norm(q) * jnp.linalg.norm(k)
    assert weight >= -1e-6 * size


@pytest.mark.parametrize("name", FEATURE_MAPS)
def test_gradients_are_finite_at_zero(name):
    f = FEATURE_MAPS[name]
    jacobian = jax.jacobian(f)(jnp.zeros(3))
    chex.assert_tree_all_finite(jacobian)


def test_functions_pass_and_unknown_names_do_not():
    assert feature_map_of(jnp.abs) is jnp.abs
    with pytest.raises(ValueError, match="got 'tanh'"):
        feature_map_of("tanh")
