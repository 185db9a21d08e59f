"""Random calls of attention, and float64 to judge them by."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.attention.reference import reference
from jaxml.attention.spec import Operands, prepare


@pytest.fixture
def call(rng):
    """Makes (spec, operands, context) of given sizes and options."""
    return partial(random_call, rng)


def random_call(
    rng,
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
    """(spec, operands, context); a bias or a mask is given by its shape."""
    shapes = (
        (batch, queries, heads, dim),
        (batch, keys, kv_heads, dim),
        (batch, keys, kv_heads, value_dim),
    )
    q, k, v = (scale_of_inputs * rng.normal(size=shape) for shape in shapes)
    if isinstance(options.get("bias"), tuple):
        options["bias"] = jnp.asarray(rng.normal(size=options["bias"]), dtype)
    if isinstance(options.get("mask"), tuple):
        options["mask"] = jnp.asarray(rng.random(options["mask"]) < 0.7)
    q, k, v = (jnp.asarray(x, dtype) for x in (q, k, v))
    return prepare(q, k, v, **options)


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


def assert_errors_are_at_most_twice_those_of_plain_attention(
    run, spec, operands, context
):
    """Against float64, for out, lse and every gradient; the project's law of accuracy.

    Gradients may err by one rounding of the logits more: tiles make them a second time,
    where `reference` keeps what it made. It shows where logits are in the thousands.
    """
    truth = exact(spec, operands, context)
    plain = outputs(reference, spec, operands, context)
    tiles = outputs(run, spec, operands, context)
    unit = float(jnp.finfo(operands.query.dtype).eps)
    least = float(jnp.finfo(jnp.float32).eps)
    q, k = (np.abs(x).max(axis=(0, 1, 2), initial=0) for x in operands[:2])
    logit = spec.scale * np.float64(q) @ np.float64(k)
    assert truth.keys() == tiles.keys()
    finite = lambda x: np.where(np.isfinite(x), x, 0)  # lse may be -inf
    for key, true in truth.items():
        assert (np.isfinite(tiles[key]) == np.isfinite(true)).all(), key
        error, allowed = (
            np.abs(finite(result[key]) - finite(true)).max(initial=0)
            for result in (tiles, plain)
        )
        size = np.abs(finite(true)).max(initial=0)
        again = 0 if key in ("out", "lse") else logit * least
        assert error <= 2 * allowed + (2 * unit + again) * size, (key, error, allowed)
