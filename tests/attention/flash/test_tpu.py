"""The TPU kernels: run by the interpreter, lowered for the device they are for."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.attention.flash import tpu, tpu_backward
from jaxml.attention.flash.rule import Kernels, flash
from tests.attention.conftest import (
    assert_errors_are_at_most_twice_those_of_plain_attention,
)
from tests.attention.flash.conftest import gradients, types
from tests.kernels.conftest import in_shards, lowered

# Two tiles each way at least, none of them whole; every feature, and some together.
CASES = {
    "causal, shared keys": {
        "queries": 140,
        "keys": 140,
        "kv_heads": 1,
        "is_causal": True,
    },
    "window, offsets, soft cap, whole bias": {
        "queries": 129,
        "keys": 150,
        "local_window_size": (40, 9),
        "causal_offset": np.array([20, -5]),
        "logits_soft_cap": 1.5,
        "bias": (2, 1, 129, 150),
    },
    "lengths, segments, bias of keys, mask of queries": {
        "queries": 130,
        "keys": 130,
        "query_seq_lengths": np.array([130, 10]),
        "key_value_seq_lengths": np.array([0, 100]),
        "segment_ids": np.sort(np.arange(260).reshape(2, 130) * 7 % 5, axis=1),
        "bias": (1, 4, 1, 130),
        "mask": (1, 1, 130, 1),
    },
}


@pytest.mark.parametrize(
    "name, dtype",
    [(name, jnp.float32) for name in CASES] + [(next(iter(CASES)), jnp.bfloat16)],
)
def test_errors_are_at_most_twice_those_of_plain_attention(call, name, dtype):
    kernels = Kernels(
        partial(tpu.forward, block=128, interpret=True),
        partial(tpu_backward.backward, block=128, interpret=True),
    )
    spec, operands, context = call(dtype=dtype, **CASES[name])
    assert_errors_are_at_most_twice_those_of_plain_attention(
        partial(flash, kernels), spec, operands, context
    )


ON_TPU = Kernels(tpu.forward, tpu_backward.backward)


@pytest.mark.parametrize(
    "sizes, options, given",
    [
        ((1024, 1024, 128, 128), {"is_causal": True}, {}),
        ((513, 1000, 80, 32), {"logits_soft_cap": 5.0}, {"bias": (1, 4, 1, 1000)}),
        (
            (1000, 1000, 256, 256),
            {},
            {"bias": (2, 4, 1000, 1000), "mask": (1, 1, 1000, 1)},
        ),
        (
            (700, 700, 64, 64),
            {"local_window_size": (100, 3)},
            {"segment_ids": (2, 700)},
        ),
    ],
)
def test_it_lowers_for_a_tpu(sizes, options, given):
    dtypes = {"bias": jnp.bfloat16, "mask": jnp.bool_, "segment_ids": jnp.int32}
    given = {n: jax.ShapeDtypeStruct(s, dtypes[n]) for n, s in given.items()}
    f = partial(gradients, ON_TPU, **options)
    assert lowered("tpu", f, *types(*sizes), given).count("@tpu_custom_call") == 3


@pytest.mark.parametrize("dim", [64, 128, 192, 256])
def test_it_lowers_under_vmap_and_shard_map(dim):
    """Forward and both backward kernels, at every dim that the GPU's table has too."""
    f = partial(gradients, ON_TPU, given={}, is_causal=True)
    batched = types(256, 256, dim, dim, batch=(3, 2))
    assert lowered("tpu", jax.vmap(f), *batched).count("@tpu_custom_call") == 3
    x = jax.ShapeDtypeStruct((2, 256, 8, dim), jnp.float32)
    assert lowered("tpu", in_shards(f), x, x, x).count("@tpu_custom_call") == 3
