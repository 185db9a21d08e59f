"""Random calls of attention, and float64 to judge them by."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.attention.reference import reference
from jaxml.attention.spec import Operands, prepare


@pytest.fixture
def call(rng):
    """Makes (spec, operands, context) of given sizes and options."""

    def make(
        batch=2,
        queries=37,
        keys=53,
        heads=4,
        kv_heads=2,
        dim=8,
        value_dim=5,
        dtype=np.float32,
        scale_of_inputs=1.0,
        **options,
    ):
        shapes = (
            (batch, queries, heads, dim),
            (batch, keys, kv_heads, dim),
            (batch, keys, kv_heads, value_dim),
        )
        q, k, v = (scale_of_inputs * rng.normal(size=shape) for shape in shapes)
        arrays = {
            name: jnp.asarray(rng.normal(size=x), dtype)
            for name, x in options.items()
            if name == "bias"
        } | {
            name: jnp.asarray(rng.random(x) < 0.7)
            for name, x in options.items()
            if name == "mask"
        }
        q, k, v = (jnp.asarray(x, dtype) for x in (q, k, v))
        return prepare(q, k, v, **options | arrays)

    return make


def loss(run, spec, context, weights):
    """A scalar that reads every output, and lse where there is one."""

    def value(operands):
        out, lse = run(spec, operands, context)
        seen = jnp.where(lse > -jnp.inf, lse, 0)
        read = jnp.sum(out.astype(seen.dtype) * weights[0].astype(seen.dtype))
        return read + jnp.sum(seen * weights[1].astype(seen.dtype))

    return value


def outputs(run, spec, operands, context):
    """{out, lse, and the gradients of a loss of both}, compiled."""
    rng = np.random.default_rng(7)
    (*rows, _), dim = operands.query.shape, operands.value.shape[-1]
    weights = rng.normal(size=(*rows, dim)), rng.normal(size=rows)
    weights = [jnp.asarray(w, jnp.float32) for w in weights]

    @jax.jit
    def everything(operands):
        out, lse = run(spec, operands, context)
        grads = jax.grad(loss(run, spec, context, weights))(operands)
        return {"out": out, "lse": lse, **grads._asdict()}

    result = everything(operands)
    return {
        name: np.asarray(x, np.float64) for name, x in result.items() if x is not None
    }


def exact(spec, operands, context):
    """The same in float64, from the same inputs."""
    with jax.enable_x64(True):
        wide = Operands(
            *(
                None if x is None else jnp.asarray(np.asarray(x, np.float64))
                for x in operands
            )
        )
        return outputs(reference, spec, wide, context)
