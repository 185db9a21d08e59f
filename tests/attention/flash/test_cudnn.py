"""cuDNN through a stand-in: what it takes, what it is asked, and its derivatives."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.attention.flash import backends, cudnn
from jaxml.attention.flash.rule import flash
from jaxml.attention.spec import prepare
from tests.attention.flash.conftest import HALF, IDS, reason


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "runs"),
        ({"is_causal": True, "local_window_size": (9, None)}, "runs"),
        ({"key_value_seq_lengths": jnp.array([3, 4])}, "runs"),
        ({"segment_ids": IDS}, "no segments"),
        ({"logits_soft_cap": 3.0}, "no soft cap"),
        ({"local_window_size": 9}, "only to the left"),
        ({"is_causal": True, "causal_offset": 1}, "first query with the first key"),
        ({"causal_offset": 1}, "runs"),  # of nothing
        ({"mask": jax.ShapeDtypeStruct((1, 1, 128, 128), jnp.bool_)}, "with a mask"),
        ({"bias": jax.ShapeDtypeStruct((1, 4, 1, 128), jnp.bfloat16)}, "repeat a bias"),
        ({"return_lse": True}, "no gradient to lse"),
        ({"x": HALF.update(dtype=jnp.float32)}, "not float32"),
    ],
)
def test_what_cudnn_takes(with_cudnn, options, message):
    assert message in reason("cudnn", "gpu", **options)


def test_cudnn_and_its_derivatives(with_cudnn, rng):
    q, k, v = np.float32(rng.normal(size=(3, 1, 6, 2, 8)))

    @partial(jax.jit, static_argnums=0)
    def of(kernels, q):
        def loss(q):
            args = prepare(q, k, v, is_causal=True, scale=0.3)
            return jnp.sum(jnp.sin(flash(kernels, *args)[0]))

        first = jax.grad(loss)
        return first(q), jax.grad(lambda q: jnp.sum(first(q) ** 2))(q)

    actual = of(cudnn.CUDNN, q)
    assert with_cudnn[0]["is_causal"]
    assert with_cudnn[0]["scale"] == pytest.approx(0.3)
    chex.assert_trees_all_close(actual, of(backends.CHUNKED, q), rtol=1e-4, atol=1e-5)


def test_what_it_is_asked(with_cudnn, rng):
    """All that `jax.nn` can say, as it says it."""
    q = jnp.asarray(rng.normal(size=(2, 6, 4, 8)), jnp.bfloat16)
    k = q[:, :, :2]
    bias = jnp.asarray(rng.normal(size=(1, 4, 6, 6)), jnp.bfloat16)
    lengths = {
        "query_seq_lengths": jnp.array([6, 2]),
        "key_value_seq_lengths": jnp.array([1, 6]),
    }
    call = {"is_causal": True, "local_window_size": (3, 0), "scale": 0.3, **lengths}
    args = prepare(q, k, k, bias, **call)
    out, lse = flash(cudnn.CUDNN, *args)
    (asked,) = with_cudnn
    assert asked["local_window_size"] == (3, 0)
    assert asked["is_causal"]
    assert asked["scale"] == pytest.approx(0.3)
    expected = flash(backends.CHUNKED, *args)
    inside = jnp.arange(6)[None, :] < lengths["query_seq_lengths"][:, None]
    some = (inside & jnp.isfinite(expected[1]).all(-1))[..., None, None]
    assert (out.dtype, lse.dtype) == (jnp.bfloat16, jnp.float32)
    chex.assert_trees_all_close(
        jnp.where(some, out, 0), jnp.where(some, expected[0], 0), atol=2e-2
    )
    flash(cudnn.CUDNN, *prepare(q, k, k))
    assert not with_cudnn[1]["is_causal"]
    assert with_cudnn[1]["local_window_size"] is None
