"""Three dtypes: the usual policies, and what casting touches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.precision import Policy, policy


@pytest.mark.parametrize(
    "name, dtypes, needs_loss_scale",
    [
        ("float32", ("float32", "float32", "float32"), False),
        ("mixed_float16", ("float32", "float16", "float32"), True),
        ("mixed_bfloat16", ("float32", "bfloat16", "float32"), False),
        ("pure_bfloat16", ("bfloat16", "bfloat16", "float32"), False),
    ],
)
def test_named_policies(name, dtypes, needs_loss_scale):
    assert policy(name) == Policy(*dtypes)
    assert policy(name).needs_loss_scale is needs_loss_scale


def test_an_unknown_name_lists_the_known_ones():
    known = "float32, mixed_float16, mixed_bfloat16, pure_bfloat16"
    with pytest.raises(ValueError, match=f"one of {known}, got 'bf16'"):
        policy("bf16")


def test_dtypes_must_be_floating():
    with pytest.raises(ValueError, match=r"compute_dtype must be a floating.*got int8"):
        Policy("float32", "int8", "float32")


def test_policies_are_values():
    """Equal however the dtypes are spelled, and usable as a static argument."""
    a = Policy(np.float32, jnp.bfloat16, "float32")
    assert a == policy("mixed_bfloat16")
    assert hash(a) == hash(policy("mixed_bfloat16"))


def test_only_floating_arrays_are_cast():
    tree = {
        "x": jnp.ones(2),
        "host": np.ones(2),
        "half": jnp.ones(2, jnp.bfloat16),
        "label": jnp.arange(2),
        "mask": jnp.ones(2, bool),
        "key": jax.random.key(0),
        "none": None,
        "number": 0.1,
    }
    chosen = Policy("float64", "float16", "bfloat16")
    half = chosen.cast_to_compute(tree)
    for name in ("x", "host", "half"):
        assert half[name].dtype == jnp.float16, name
        assert chosen.cast_to_output(tree)[name].dtype == jnp.bfloat16, name
        assert policy("float32").cast_to_param(tree)[name].dtype == jnp.float32, name
    for name in ("label", "mask", "key", "none", "number"):
        assert half[name] is tree[name], name
