"""cuDNN's attention through `jax.nn`, for the calls that it takes.

It is asked for by what it can do: no segments, no soft cap, no dropout, no dense mask
that it would have to expand, no lse, positions that start at zero. Whatever else JAX
refuses, it refuses with a message of its own.

Its derivative is cuDNN's: the forward pass runs inside `jax.vjp`, and what that keeps is
what the backward pass gets. Beyond first order, `chunked` takes over, as for kernels.

The trap is that it must be there when the program is traced: a machine without cuDNN
cannot even lower the call for another that has it.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxml.attention.flash.rule import Kernels
from jaxml.attention.spec import Context, Operands, Spec
from jaxml.typing import Array


def is_present() -> bool:
    """Whether a program that is traced now may call cuDNN."""
    if jax.default_backend() != "gpu":
        return False
    return "nvidia" in jax.devices()[0].device_kind.lower()


def _run(spec: Spec, operands: Operands, context: Context) -> tuple[Array, Array]:
    return jax.nn.dot_product_attention(
        *operands[:3],
        operands.bias,
        scale=spec.scale,
        is_causal=spec.right == 0,
        query_seq_lengths=context.query_lengths,
        key_value_seq_lengths=context.key_lengths,
        local_window_size=None if spec.left is None else (spec.left, 0),
        implementation="cudnn",
        return_residual=True,
    )


def _linearized(
    spec: Spec, operands: Operands, context: Context
) -> tuple[tuple[Array, Array], Any]:
    """(out, lse), and the function from gradients of out to those of q, k and v."""

    def run(*qkv: Array) -> tuple[Array, Array]:
        return _run(spec, Operands(*qkv, bias=operands.bias), context)

    out, pull, lse = jax.vjp(run, *operands[:3], has_aux=True)
    return (out, lse.astype(jnp.float32)), pull


def _forward(spec: Spec, operands: Operands, context: Context) -> Any:
    results, pull = _linearized(spec, operands, context)
    return results, tuple(jax.tree.leaves(pull))


def _backward(
    spec: Spec,
    operands: Operands,
    context: Context,
    results: tuple[Array, Array],
    saved: tuple[Array, ...],
    changes: tuple[Array, Array],
) -> Any:
    # Every trace makes a function of its own, whose arrays are those of the first.
    del results
    again = jax.eval_shape(partial(_linearized, spec), operands, context)[1]
    return jax.tree.unflatten(jax.tree.structure(again), saved)(changes[0])


CUDNN = Kernels(_forward, _backward)
