import chex
import numpy as np
import pytest
from jax import lax

from jaxml.ops.columns import multiply_columns, shifted_columns


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (3, 2)])
def test_a_product_is_a_convolution(rng, size, groups):
    x = rng.normal(size=(2, 4, 5, 6)).astype(np.float32)
    kernel = rng.normal(size=(*size, 6 // groups, 4)).astype(np.float32)
    expected = lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        [(n - 1, n - 1) for n in size],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
    actual = multiply_columns(shifted_columns(x, size), kernel)
    chex.assert_trees_all_close(actual, expected, rtol=1e-5, atol=1e-5)
