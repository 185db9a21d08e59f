"""The kernel of linear attention: lowered, and interpreted with all its derivatives."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.attention import linear
from jaxml.attention.flash import gpu_linear
from jaxml.attention.flash.gpu_linear import causal_sums
from tests.attention.flash.conftest import types
from tests.kernels.conftest import in_shards, lowered


@pytest.mark.parametrize(
    "shape",
    [(2, 1000, 8, 4, 64, 65), (2, 200, 64, 64, 128, 129), (1, 4096, 2, 1, 40, 40)],
)
def test_it_lowers_for_a_gpu(shape):
    batch, length, heads, kv_heads, features, columns = shape
    sizes = (heads, features), (kv_heads, features), (kv_heads, columns)
    q, k, v = (jax.ShapeDtypeStruct((batch, length, *s), jnp.bfloat16) for s in sizes)
    f = jax.grad(lambda *x: jnp.sum(causal_sums(*x)), (0, 1, 2))
    # Each gradient is the function itself, of others.
    assert lowered("cuda", f, q, k, v).count("custom_call @mosaic_gpu") == 3


def test_it_lowers_under_vmap_and_shard_map():
    f = jax.grad(lambda *x: jnp.sum(causal_sums(*x)), (0, 1, 2))
    batched = types(130, 130, 40, 33, batch=(3, 2))
    assert lowered("cuda", jax.vmap(f), *batched).count("custom_call @mosaic_gpu") == 3
    x = jax.ShapeDtypeStruct((1, 4096, 4, 64), jnp.float16)
    assert lowered("cuda", in_shards(f), x, x, x).count("custom_call @mosaic_gpu") == 3


@pytest.mark.parametrize(
    "batch, length, heads, parts",
    [(1, 65536, 2, 66), (1, 4096, 2, 8), (4, 65536, 33, 1), (8, 65536, 96, 1)],
)
def test_a_sequence_is_cut_where_processors_would_idle(batch, length, heads, parts):
    """Into as many parts as fill them, each of eight chunks at least."""
    assert gpu_linear._parts(batch, length, heads) == parts
    assert gpu_linear._parts(1, 100, 1) == 1


def plain(q, k, v):
    """In float64, with its matrix of weights."""
    groups = q.shape[2] // k.shape[2]
    k, v = (jnp.repeat(x, groups, axis=2) for x in (k, v))
    weights = jnp.tril(jnp.einsum("btnf,bsnf->bnts", q, k))
    return jnp.einsum("bnts,bsnv->btnv", weights, v)


@pytest.mark.skipif(
    jax.__version_info__ < (0, 12), reason="its interpreter is not there"
)
def test_sums_and_gradients_in_parts(rng, monkeypatch):
    from jax.experimental.pallas import mosaic_gpu as plgpu

    # Two parts of a sequence that fills neither of them.
    monkeypatch.setattr(gpu_linear, "_parts", lambda batch, length, heads: 2)
    how = plgpu.InterpretGPUParams(detect_races=True)
    shapes = (1, 200, 2, 20), (1, 200, 1, 20), (1, 200, 1, 17)
    args = [jnp.asarray(rng.normal(size=s), jnp.bfloat16) for s in shapes]
    change = jnp.asarray(rng.normal(size=(1, 200, 2, 17)), jnp.bfloat16)
    change = change.astype(jnp.float32)
    out, pull = jax.vjp(lambda *x: causal_sums(*x, False, how), *args)
    actual = (out, *pull(change))
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(x, np.float64)) for x in args]
        out, pull = jax.vjp(plain, *wide)
        expected = (out, *pull(jnp.asarray(np.asarray(change, np.float64))))
    for a, e in zip(actual, expected, strict=True):
        size = np.abs(e).max()
        assert np.abs(np.asarray(a, np.float64) - np.asarray(e)).max() < 1e-2 * size


def test_the_door(rng):
    """One program for every platform, and what the kernel does not take."""
    from jaxml.attention import LinearState, linear_attention

    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in rng.normal(size=(3, 1, 70, 2, 8)))
    state = LinearState(
        *(jnp.asarray(rng.random(s), jnp.float32) for s in ((1, 2, 8, 8), (1, 2, 8)))
    )
    options = {"is_causal": True, "return_state": True, "initial_state": state}
    run = lambda *x: linear_attention(*x, implementation="flash", **options)
    traced = jax.jit(run).trace(q, k, v)
    for platform, count in (("cpu", 0), ("cuda", 1)):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert text.count("custom_call @mosaic_gpu") == count
    chex.assert_trees_all_close(
        jax.jit(run)(q, k, v),
        linear_attention(q, k, v, **options),
        rtol=1e-2,
        atol=1e-2,
    )
    refused = [
        ({"segment_ids": jnp.zeros((1, 70), jnp.int32)}, "and segments"),
        ({"feature_map": lambda x: jnp.tile(x, 40)}, "320"),
        ({"is_causal": False}, "takes causal sums"),
        ({"implementation": "mosaic_gpu"}, "runs on gpu, got cpu"),
        ({"implementation": "triton"}, "must be None"),
    ]
    for change, message in refused:
        given = {"is_causal": True, "implementation": "flash"} | change
        with pytest.raises(ValueError, match=message):
            linear_attention(q, k, v, **given)
    with pytest.raises(ValueError, match="got float32"):
        linear_attention(
            *(x.astype(jnp.float32) for x in (q, k, v)),
            is_causal=True,
            implementation="flash",
        )


def test_the_kernel_and_the_chunks_agree(rng, monkeypatch):
    """With the function in place of the kernel: what the door adds around it."""
    from jaxml.attention import LinearState, linear_attention

    monkeypatch.setattr(
        gpu_linear,
        "causal_sums",
        lambda q, k, v, *_: plain(*(x.astype(jnp.float32) for x in (q, k, v))),
    )
    monkeypatch.setattr(linear, "_check_kernel", lambda *_: None)
    q = jnp.asarray(rng.normal(size=(2, 21, 4, 8)), jnp.float32)
    k, v = (jnp.asarray(x, jnp.float32) for x in rng.normal(size=(2, 2, 21, 2, 8)))
    state = LinearState(
        *(jnp.asarray(rng.random(s), jnp.float32) for s in ((2, 2, 8, 8), (2, 2, 8)))
    )
    options = {
        "is_causal": True,
        "return_state": True,
        "initial_state": state,
        "key_value_seq_lengths": jnp.array([21, 9]),
    }
    actual = linear_attention(q, k, v, implementation="mosaic_gpu", **options)
    expected = linear_attention(q, k, v, **options)
    chex.assert_trees_all_close(actual, expected, rtol=1e-4, atol=1e-5)
