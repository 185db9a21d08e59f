"""The derivative of attention whose two passes are kernels.

A `Kernels` is a forward pass that gives (out, lse), and a backward pass from them to the
gradients of query, key and value. Reverse mode runs the two. Everything beyond it, a
gradient of a gradient or a forward derivative of one, comes from the tiles of `chunked`:
both passes carry its derivative as theirs, so that kernels are never differentiated.

The gradient of a bias is of the same kind: it is asked for seldom, it is as large as the
bias, and `chunked` gives it. Where nobody uses it, the compiler drops it.

The trap is plain forward mode: a `custom_vjp` refuses `jax.jvp`. Whoever needs that asks
for `implementation="chunked"`.

Reference: Dao et al., "FlashAttention", NeurIPS 2022, https://arxiv.org/abs/2205.14135
(algorithm 4); delta and its part from lse as in `chunked`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxml.attention.chunked import chunked, partial_change
from jaxml.attention.spec import Context, Operands, Spec
from jaxml.typing import Array, Float

Results = tuple[Float[Array, "B T N V"], Float[Array, "B T N"]]  # out, lse
Saved = Any  # what a forward pass keeps for its backward pass besides


class Kernels(NamedTuple):
    """The two passes of a backend; hashable, for it decides what is compiled.

    Attributes:
        forward: (spec, operands, context) -> (results, saved).
        backward: (spec, operands, context, results, saved, changes of results) ->
            gradients; that of the bias is not asked for.
    """

    forward: Callable[[Spec, Operands, Context], tuple[Results, Saved]]
    backward: Callable[
        [Spec, Operands, Context, Results, Saved, Results], tuple[Array, Array, Array]
    ]


def flash(
    kernels: Kernels, spec: Spec, operands: Operands, context: Context
) -> Results:
    """The output in the query's dtype, and the log-sum-exp in float32."""
    if 0 in (*operands.query.shape[:3], operands.key.shape[1]):
        return chunked(spec, operands, context)
    return _compiled(kernels, spec, operands, context)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(
    kernels: Kernels, spec: Spec, operands: Operands, context: Context
) -> Results:
    return _forward(kernels, spec, operands, context)[0]


def _attend_fwd(
    kernels: Kernels, spec: Spec, operands: Operands, context: Context
) -> tuple[Results, Any]:
    results, saved = _forward(kernels, spec, operands, context)
    return results, (operands, context, results, saved)


def _attend_bwd(kernels: Kernels, spec: Spec, kept: Any, changes: Results) -> Any:
    operands, context, results, saved = kept
    grads = _backward(kernels, spec, operands, context, results, saved, changes)
    bias = None
    if operands.bias is not None:
        bias = _transposed(spec, operands, context, results, changes, "bias")[0]
    return Operands(*grads, bias), None


_attend.defvjp(_attend_fwd, _attend_bwd)
_compiled = jax.jit(_attend, static_argnums=(0, 1))  # once, for calls outside of jit


# The passes, and their derivatives by tiles.


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _forward(
    kernels: Kernels, spec: Spec, operands: Operands, context: Context
) -> tuple[Results, Saved]:
    return kernels.forward(spec, operands, context)


@_forward.defjvp
def _forward_jvp(
    kernels: Kernels, spec: Spec, primals: tuple[Operands, Context], tangents: Any
) -> Any:
    results, saved = _forward(kernels, spec, *primals)
    moved = _change(spec, *primals, results, tangents[0])
    # What is saved is a function of the operands, of which `_backward_jvp` knows.
    return (results, saved), (moved, jax.tree.map(_zero_tangent, saved))


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _backward(
    kernels: Kernels,
    spec: Spec,
    operands: Operands,
    context: Context,
    results: Results,
    saved: Saved,
    changes: Results,
) -> tuple[Array, Array, Array]:
    return kernels.backward(spec, operands, context, results, saved, changes)


@_backward.defjvp
def _backward_jvp(kernels: Kernels, spec: Spec, primals: Any, tangents: Any) -> Any:
    operands, context, results, _, changes = primals
    moving = (tangents[0], tangents[2], tangents[4])

    def plain(operands: Operands, results: Results, changes: Results) -> Any:
        names = ("query", "key", "value")
        return _transposed(spec, operands, context, results, changes, *names)

    moved = jax.jvp(plain, (operands, results, changes), moving)[1]
    return _backward(kernels, spec, *primals), moved


def _zero_tangent(x: Array) -> Array:
    return jnp.zeros(jnp.shape(x), jax.dtypes.float0 if not _moves(x) else x.dtype)


def _moves(x: Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.inexact)


def _change(
    spec: Spec, operands: Operands, context: Context, results: Results, moved: Operands
) -> Results:
    """How (out, lse) changes with the operands: linear in `moved`."""
    out, lse = results
    # Any finite maximum will do where nothing is seen: its weights are exp(-inf).
    base = jnp.where(lse > -jnp.inf, lse, 0), jnp.ones_like(lse)
    a, b = partial_change(spec, operands, moved, context, *base)
    return (a - out.astype(a.dtype) * b[..., None]).astype(out.dtype), b


def _transposed(
    spec: Spec,
    operands: Operands,
    context: Context,
    results: Results,
    changes: Results,
    *names: str,
) -> tuple[Array, ...]:
    """Gradients of the named operands, as the transpose of `_change`."""
    nothing = Operands(None, None, None)

    def linear(moved: tuple[Array, ...]) -> Results:
        some = nothing._replace(**dict(zip(names, moved, strict=True)))
        return _change(spec, operands, context, results, some)

    at = tuple(getattr(operands, name) for name in names)
    return jax.linear_transpose(linear, at)(changes)[0]


# The tiles as kernels, for platforms that have none.


def _chunked_forward(
    spec: Spec, operands: Operands, context: Context
) -> tuple[Results, Saved]:
    return chunked(spec, operands, context), ()


def _chunked_backward(
    spec: Spec,
    operands: Operands,
    context: Context,
    results: Results,
    saved: Saved,
    changes: Results,
) -> tuple[Array, ...]:
    del saved
    names = ("query", "key", "value")
    return _transposed(spec, operands, context, results, changes, *names)


CHUNKED = Kernels(_chunked_forward, _chunked_backward)
