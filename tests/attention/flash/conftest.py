"""Gradients through a pair of kernels, and the program that a device would be given."""

import jax
import jax.numpy as jnp
import pytest

from jaxml.attention import explain
from jaxml.attention.flash import backends
from jaxml.attention.flash.rule import flash
from jaxml.attention.spec import prepare


def gradients(run, q, k, v, given, **options):
    """Of a scalar that reads both results; `given` holds the options that are arrays."""

    def loss(q, k, v):
        out, lse = flash(run, *prepare(q, k, v, **given, **options))
        return jnp.sum(out.astype(jnp.float32)) + jnp.sum(lse)

    return jax.grad(loss, (0, 1, 2))(q, k, v)


def types(queries, keys, dim, value_dim, dtype=jnp.bfloat16, batch=(2,)):
    """Of query, key and value: four heads, two of keys."""
    shapes = (queries, 4, dim), (keys, 2, dim), (keys, 2, value_dim)
    return [jax.ShapeDtypeStruct((*batch, *s), dtype) for s in shapes]


HALF = jax.ShapeDtypeStruct((2, 128, 4, 64), jnp.bfloat16)
IDS = jax.ShapeDtypeStruct((2, 128), jnp.int32)


def reason(name, platform, x=HALF, **options):
    """What is said of a backend."""
    return dict(explain(x, x, x, platform=platform, **options).reasons)[name]


@pytest.fixture
def with_cudnn(monkeypatch):
    """A GPU that has cuDNN, and XLA in its place."""
    monkeypatch.setattr(backends, "is_present", lambda: True)
    plain = jax.nn.dot_product_attention
    used = []

    def stand_in(*args, implementation, return_residual, **options):
        assert implementation == "cudnn"
        assert return_residual
        used.append(options)
        # XLA gives lse in the dtype of the key, cuDNN in float32.
        return plain(*args, implementation="xla", return_residual=True, **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    return used
