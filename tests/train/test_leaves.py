"""Names of arrays in a tree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.train import TrainState
from jaxml.train.leaves import describe, leaves, listing, nonempty, placed


def test_names_follow_the_tree():
    tree = TrainState(
        np.int32(1), {"a": [np.ones(2), {"b": np.ones(3)}]}, {}, (None, ())
    )
    assert list(leaves(tree)) == ["step", "params/a/0", "params/a/1/b"]
    assert list(leaves(tree).values()) == jax.tree.leaves(tree)


def test_a_bare_array_has_an_empty_name():
    assert list(leaves(np.ones(2))) == [""]


def test_names_must_differ():
    with pytest.raises(ValueError, match="of its own, got two a/b"):
        leaves({"a": {"b": np.ones(1)}, "a/b": np.ones(1)})


def test_only_arrays_have_names():
    with pytest.raises(TypeError, match="arrays, got float at a/0"):
        leaves({"a": [1.0]})


def test_description_names_dtype_and_shape():
    assert describe(np.zeros((3, 4), np.int8)) == "int8[3,4]"
    assert describe(jnp.zeros((), jnp.bfloat16)) == "bfloat16[]"
    assert describe(jax.ShapeDtypeStruct((0,), bool)) == "bool[0]"


def test_empty_arrays_are_left_out():
    assert list(nonempty({"a": np.zeros((0, 3)), "b": np.zeros(())})) == ["b"]


def test_values_take_dtype_and_devices_of_their_model():
    device = jax.devices()[2]
    like = jax.device_put(jnp.zeros(3, jnp.bfloat16), device)
    found = placed(np.arange(3.0), like)
    assert found.dtype == jnp.bfloat16
    assert found.devices() == {device}
    assert isinstance(placed(jnp.arange(3.0), np.zeros(3, np.float64)), np.ndarray)


def test_long_lists_are_cut():
    assert listing(["a", "b"]) == "a; b"
    assert listing(list("abcdefg")) == "a; b; c; d; e and 2 more"
