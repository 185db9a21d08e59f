"""Exchanging tokens for heads and back is attention on one device."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxml.attention import attention, ulysses_attention
from tests.attention.test_ring import AXIS, mesh_of


def on_devices(devices, **options):
    rows = P(None, AXIS)
    return jax.jit(
        jax.shard_map(
            partial(ulysses_attention, axis_name=AXIS, **options),
            mesh=mesh_of(devices),
            in_specs=(rows, rows, rows),
            out_specs=rows,
        )
    )


def make(rng, heads=8, kv_heads=8):
    shapes = (16, heads, 6), (24, kv_heads, 6), (24, kv_heads, 3)
    return [jnp.asarray(rng.normal(size=(2, *shape)), jnp.float32) for shape in shapes]


@pytest.mark.parametrize("devices, kv_heads", [(8, 8), (4, 2), (4, 1), (2, 4)])
def test_it_is_attention_with_its_gradients(rng, devices, kv_heads):
    qkv = make(rng, kv_heads=kv_heads)
    options = {
        "is_causal": True,
        "causal_offset": "bottom_right",
        "local_window_size": 9,
    }
    one = partial(attention, implementation="reference", **options)
    f = on_devices(devices, **options)
    chex.assert_trees_all_close(f(*qkv), one(*qkv), rtol=1e-5, atol=1e-5)
    grads = (
        jax.jit(jax.grad(lambda *x, g=g: jnp.sum(jnp.sin(g(*x))), (0, 1, 2)))(*qkv)
        for g in (f, one)
    )
    chex.assert_trees_all_close(*grads, rtol=1e-4, atol=1e-5)


def test_bad_input_is_refused(rng):
    with pytest.raises(ValueError, match="divide the heads, got 4 devices and 6 heads"):
        on_devices(4)(*make(rng, 6, 6))
    with pytest.raises(ValueError, match="nothing with heads, got bias"):
        on_devices(2, bias=np.zeros((1, 1, 1, 1), np.float32))(*make(rng))
