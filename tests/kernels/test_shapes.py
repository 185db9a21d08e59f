"""Padding, and along which axes of a mesh the results of a kernel differ."""

import jax.numpy as jnp
import pytest

from jaxml.kernels import shapes
from tests.kernels.conftest import in_shards


@pytest.mark.parametrize("length, padded", [(1, 4), (4, 4), (5, 8)])
def test_an_axis_is_padded_and_cut_again(length, padded):
    x = jnp.ones((2, length, 3))
    made = shapes.padded(x, 1, 4)
    assert made.shape == (2, padded, 3)
    assert made[:, length:].sum() == 0
    assert shapes.padded(x, -2, 4, "edge").sum() == 6 * padded
    assert (shapes.unpadded(made, x.shape) == x).all()


def test_results_differ_between_devices_as_inputs_do():
    def f(x, same):
        assert shapes.axes_of(same) == frozenset()
        assert shapes.axes_of((same, x)) == {"heads"}
        assert "heads" in repr(shapes.like((same, x), x.shape, jnp.float32))
        assert shapes.axes_of(shapes.varying(same, frozenset({"heads"}))) == {"heads"}
        assert shapes.varying(x, frozenset({"heads"})) is x
        return x

    x = jnp.ones((1, 2, 4, 3))
    in_shards(lambda x: f(x, jnp.ones(3)))(x)
    assert shapes.axes_of(x) == frozenset()
    like = shapes.like(x, (2,), jnp.int32)
    assert (like.shape, like.dtype) == ((2,), jnp.int32)
