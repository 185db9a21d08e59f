"""The door: which backend runs and why, sinks, shapes, and what is refused."""

import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.attention import attention, attention_weights, explain
from jaxml.attention.dispatch import BACKENDS


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_nothing_quadratic_is_chosen_unasked(platform):
    plan = explain(platform=platform)
    assert plan.implementation == "chunked"
    reasons = dict(plan.reasons)
    assert reasons.keys() == {backend.name for backend in BACKENDS}
    assert "only by name" in reasons["reference"]
    absent = [b.name for b in BACKENDS if b.platforms and platform not in b.platforms]
    assert all(f"not on {platform}" in reasons[name] for name in absent)
    assert str(plan).count("\n") == len(BACKENDS) - 1


def test_by_name():
    assert explain(implementation="reference").reasons == (("reference", "runs"),)
    with pytest.raises(ValueError, match="not there when this program is traced"):
        explain(implementation="cudnn", platform="gpu")
    with pytest.raises(ValueError, match="not on cpu"):
        explain(implementation="pallas_tpu", platform="cpu")
    with pytest.raises(ValueError, match=r"flash or one of mosaic_gpu, .* got 'xla'"):
        explain(implementation="xla")
    with pytest.raises(ValueError, match="has no kernel to interpret"):
        explain(implementation="chunked", interpret=True)


def test_the_door_asks_the_same_table(rng):
    x = jnp.ones((1, 2, 1, 4))
    with pytest.raises(
        ValueError, match="implementation must be None, flash or one of"
    ):
        attention(x, x, x, implementation="fast")


def test_tracing_asks_for_no_device_but_the_platform():
    code = (
        "import jax, jax.numpy as jnp; from jaxml.attention import explain;"
        "from jax._src import xla_bridge;"
        "assert explain(platform='tpu').implementation == 'chunked';"
        "assert not xla_bridge.backends_are_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_it_lowers_for_every_platform():
    x = jax.ShapeDtypeStruct((1, 600, 2, 64), jnp.bfloat16)
    loss = lambda *x: jnp.sum(attention(*x, is_causal=True).astype(jnp.float32))
    traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(x, x, x)
    for platform in ("cpu", "cuda", "tpu"):
        assert traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("implementation", ["chunked", "reference"])
def test_sinks_are_one_more_key_of_value_zero(rng, implementation):
    q, k, v = np.float32(rng.normal(size=(3, 2, 5, 4, 8)))
    sinks = np.float32(rng.normal(size=4))
    lengths = jnp.array([5, 0])
    options = {"key_value_seq_lengths": lengths, "implementation": implementation}
    out, lse = attention(q, k, v, sinks=sinks, return_lse=True, **options)
    # As a key: its logit comes from a bias, its value is zero, and it is always seen.
    wide = lambda x: np.concatenate([np.zeros_like(x[:, :1]), x], axis=1)
    bias = np.zeros((1, 4, 1, 6), np.float32)
    bias[0, :, 0, 0] = sinks
    expected = attention(
        q, wide(k), wide(v), bias, key_value_seq_lengths=lengths + 1, return_lse=True
    )
    chex.assert_trees_all_close((out, lse), expected, rtol=1e-5, atol=1e-5)
    f = lambda s: jnp.sum(attention(q, k, v, sinks=s, **options) ** 2)
    by_bias = lambda s: jnp.sum(
        attention(
            q,
            wide(k),
            wide(v),
            jnp.asarray(bias).at[0, :, 0, 0].set(s),
            key_value_seq_lengths=lengths + 1,
        )
        ** 2
    )
    chex.assert_trees_all_close(jax.grad(f)(sinks), jax.grad(by_bias)(sinks), rtol=1e-4)
    with pytest.raises((ValueError, TypeError), match=r"one logit per head|heads"):
        attention(q, k, v, sinks=sinks[:2])


def test_without_a_batch_axis(rng):
    q, k = np.float32(rng.normal(size=(2, 5, 4, 8)))
    v = k[..., :3]
    out, lse = attention(q, k, v, return_lse=True, is_causal=True)
    chex.assert_shape((out, lse), ((5, 4, 3), (5, 4)))
    batched = attention(q[None], k[None], v[None], is_causal=True)
    chex.assert_trees_all_equal(out, batched[0])


def test_dtypes_of_results():
    x = jnp.ones((1, 3, 2, 4), jnp.bfloat16)
    out, lse = attention(x, x, x, return_lse=True)
    assert (out.dtype, lse.dtype) == (jnp.bfloat16, jnp.float32)
    with jax.enable_x64(True):
        x = jnp.ones((1, 3, 2, 4), jnp.float64)
        out, lse = attention(x, x, x, return_lse=True)
        assert (out.dtype, lse.dtype) == (jnp.float64, jnp.float64)


def test_no_retracing_for_new_numbers(rng):
    run = jax.jit(chex.assert_max_traces(attention, n=1), static_argnames="is_causal")
    for _ in range(2):
        q = np.float32(rng.normal(size=(1, 4, 2, 4)))
        run(q, q, q, is_causal=True)


def test_weights_are_those_of_the_output(rng):
    q, k, v = (np.float32(rng.normal(size=(2, 5, heads, 8))) for heads in (4, 2, 2))
    options = {"is_causal": True, "key_value_seq_lengths": jnp.array([5, 0])}
    weights = attention_weights(q, k, **options)
    chex.assert_shape(weights, (2, 4, 5, 5))
    out = jnp.einsum("bnts,bsnv->btnv", weights, jnp.repeat(v, 2, axis=2))
    expected = attention(q, k, v, **options)
    chex.assert_trees_all_close(out, expected, rtol=1e-5, atol=1e-6)
    assert not weights[1].any()
    chex.assert_trees_all_equal(weights[0], jnp.tril(weights[0]))
