"""The Hopper kernels and cuDNN on a Hopper GPU: numbers, and the same numbers again.

What has no GPU is lowered and interpreted in tests/attention/flash. NVIDIA's sanitizer
looks for races and for reads outside of memory on the device itself:

    compute-sanitizer --tool racecheck python -m pytest tests/gpu -k smallest
    compute-sanitizer --tool memcheck python -m pytest tests/gpu -k smallest
"""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.attention import attention, explain, linear_attention
from jaxml.attention.flash.backends import kernels
from jaxml.attention.flash.rule import flash
from jaxml.kernels.devices import capability
from tests.attention.conftest import (
    assert_errors_are_at_most_twice_those_of_plain_attention,
    outputs,
    random_call,
)

pytestmark = pytest.mark.skipif(
    capability() != "9.0", reason="needs a GPU of compute capability 9.0"
)

FEATURES = {
    "full": {},
    "causal": {"is_causal": True},
    "shared keys from the end": {
        "kv_heads": 1,
        "is_causal": True,
        "causal_offset": "bottom_right",
    },
    "window, cap": {"local_window_size": (200, 31), "logits_soft_cap": 3.0},
    "lengths": {
        "query_seq_lengths": np.array([300, 10]),
        "key_value_seq_lengths": np.array([0, 100]),
    },
    "segments": {
        "is_causal": True,
        "segment_ids": (
            np.sort(np.arange(600).reshape(2, 300) * 7 % 5, axis=1),
            np.sort(np.arange(900).reshape(2, 450) * 7 % 5, axis=1),
        ),
    },
    "whole bias": {"bias": (2, 1, 300, 450), "is_causal": True},
    "bias of keys, mask of queries": {"bias": (1, 4, 1, 450), "mask": (2, 1, 300, 1)},
    "whole mask": {"mask": (1, 4, 300, 450)},
}


def run(*args):
    return flash(kernels("mosaic_gpu"), *args)


def test_the_smallest_call(rng):
    """One tile of each kind; what the sanitizer is run on."""
    call = random_call(
        rng, batch=1, queries=65, keys=65, dtype=jnp.bfloat16, is_causal=True
    )
    assert_errors_are_at_most_twice_those_of_plain_attention(run, *call)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("dim", [40, 64, 128, 192, 256])
@pytest.mark.parametrize("name", FEATURES)
def test_errors_are_at_most_twice_those_of_plain_attention(rng, name, dim, dtype):
    sizes = {"queries": 300, "keys": 450, "dim": dim, "value_dim": dim, "dtype": dtype}
    call = random_call(rng, **sizes, **FEATURES[name])
    assert_errors_are_at_most_twice_those_of_plain_attention(run, *call)


@pytest.mark.parametrize("length", [1, 7, 64, 127, 128, 129, 1000, 4097])
def test_any_length(rng, length):
    sizes = {"queries": length, "keys": length, "dim": 64, "value_dim": 64, "batch": 1}
    call = random_call(rng, **sizes, dtype=jnp.bfloat16, is_causal=True)
    assert_errors_are_at_most_twice_those_of_plain_attention(run, *call)


@pytest.mark.parametrize("dim", [64, 128, 256])
def test_the_same_bits_every_time(rng, dim):
    sizes = {"queries": 2048, "keys": 2048, "dim": dim, "value_dim": dim}
    call = random_call(rng, **sizes, dtype=jnp.bfloat16, is_causal=True)
    first = outputs(run, *call)
    for _ in range(5):
        chex.assert_trees_all_equal(outputs(run, *call), first)


def test_cudnn(rng):
    q, k, v = (
        jnp.asarray(x, jnp.bfloat16) for x in rng.normal(size=(3, 2, 256, 4, 64))
    )
    assert explain(q, k, v, is_causal=True).implementation in ("cudnn", "mosaic_gpu")

    def results(name):
        f = partial(attention, is_causal=True, implementation=name)
        loss = lambda *x: jnp.sum(jnp.sin(f(*x).astype(jnp.float32)))
        first = jax.grad(loss, (0, 1, 2))
        second = jax.grad(
            lambda q: jnp.sum(jax.grad(loss)(q, k, v).astype(jnp.float32) ** 2)
        )
        return f(q, k, v), first(q, k, v), second(q)

    chex.assert_trees_all_close(
        results("cudnn"), results("chunked"), rtol=0.05, atol=0.05
    )


@pytest.mark.parametrize("length", [100, 3000])
@pytest.mark.parametrize("dim", [64, 128])
def test_linear_attention(rng, dim, length):
    shapes = (2, length, 4, dim), (2, length, 2, dim), (2, length, 2, dim)
    args = [jnp.asarray(rng.normal(size=s), jnp.bfloat16) for s in shapes]

    def results(name):
        f = partial(linear_attention, is_causal=True, implementation=name)
        loss = lambda *x: jnp.sum(jnp.sin(f(*x).astype(jnp.float32)))
        return jax.jit(lambda *x: (f(*x), *jax.grad(loss, (0, 1, 2))(*x)))(*args)

    for actual, expected in zip(results("mosaic_gpu"), results("chunked"), strict=True):
        actual, expected = (np.asarray(x, np.float64) for x in (actual, expected))
        size = np.abs(expected).max()
        assert np.abs(actual - expected).max() < 2e-2 * size
