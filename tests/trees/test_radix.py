"""Sorting by digits against NumPy, for keys of every width, under vmap and on a mesh."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.trees import radix


@pytest.mark.parametrize(
    ("n", "low", "high"), [(1, 0, 1), (97, 0, 5), (300, 9, 22), (300, 9, 62)]
)
def test_keys_are_sorted_by_all_their_bits(n, low, high, rng):
    upper = rng.integers(0, 2 ** (high - low), n)
    upper[n // 2 :] = upper[: n - n // 2]  # ties
    upper[0] = 2 ** (high - low) - 1
    keys = (upper << low) + (np.arange(n) if low else 0)
    with jax.enable_x64(True):
        told = jax.jit(lambda k: radix.sort(k, low, high))(jnp.asarray(keys))
        assert told.dtype == jnp.int64
    np.testing.assert_array_equal(told, np.sort(keys))


def test_low_bits_are_left_in_the_order_that_they_have():
    keys = jnp.array([0b111, 0b100, 0b011, 0b110, 0b010])
    by_digits = jax.jit(radix.by_digits(2, 3))
    assert by_digits(keys).tolist() == [0b011, 0b010, 0b111, 0b100, 0b110]
    assert radix.sort(keys, 3, 3).tolist() == keys.tolist()


def test_batches_are_sorted_one_by_one(rng):
    keys = rng.integers(0, 2**40, (3, 50))
    with jax.enable_x64(True):
        told = jax.jit(jax.vmap(lambda k: radix.sort(k, 0, 40)))(jnp.asarray(keys))
        np.testing.assert_array_equal(told, np.sort(keys, axis=1))


def test_no_step_copies_an_array():
    """What makes the loop fast: nothing longer than a number is copied on a CPU."""
    by_digits = jax.jit(radix.by_digits(0, radix.DIGIT))
    program = by_digits.lower(jnp.zeros(5000, jnp.int32)).compile().as_text()
    copies = re.findall(r"= (\S+) copy\(", program)
    assert copies
    assert {kind for kind in copies if kind != "s32[]"} == set()
