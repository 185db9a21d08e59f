"""What must stay in float32, and a look into a program for what does not.

    kind           primitives                                      why
    exponentials   exp, exp2, expm1, pow, sinh, cosh               float16 ends at e^11
    logarithms     log, log1p, lgamma, digamma, erf_inv            steep at one end
    roots          sqrt, rsqrt (norms, standard deviations)        what is under them
                                                                   was squared
    steep inverses acos, asin, acosh, atanh, tan                   poles
    long sums      reduce_sum, cumsum, reduce_window_sum,          bfloat16 counts to 256
                   scatter_add of more than `max_sum` terms        and no further
    products       reduce_prod, cumprod, cumlogsumexp              range
    all-reduces    psum, reduce_scatter                            as long sums

Softmax, losses and norms are made of these. Nothing intercepts them: losses and norms of
this library compute in float32 whatever they are given, `jnp.sum` and `jnp.mean` add up in
float32 and round once, matrix products and convolutions accumulate in float32 on every
backend. `assert_float32_ops` finds those that do not, with their source lines, and is how
the tests hold the library to it.

The trap is differentiation: the gradient of a bias is a sum over the batch that nobody
wrote, and it is in half precision. Check the gradient function as well as the loss.

Reference: Micikevicius et al., "Mixed Precision Training", ICLR 2018,
https://arxiv.org/abs/1710.03740 (section 3.3); the list follows CUDA autocast's,
https://docs.pytorch.org/docs/stable/amp.html, but leaves short sums and reciprocals alone.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import PurePath
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxml.export import export, export_constant

_EXPONENTIALS = {"exp", "exp2", "expm1", "pow", "sinh", "cosh"}
_LOGARITHMS = {"log", "log1p", "lgamma", "digamma", "erf_inv"}
_ROOTS = {"sqrt", "rsqrt"}
_STEEP = {"acos", "asin", "acosh", "atanh", "tan"}
_PRODUCTS = {"reduce_prod", "cumprod", "cumlogsumexp"}
_SUMS = {"reduce_sum", "cumsum", "reduce_window_sum", "scatter-add"}
_ALL_REDUCES = {"psum", "psum_invariant", "reduce_scatter"}

FLOAT32_OPS = frozenset(
    _EXPONENTIALS | _LOGARITHMS | _ROOTS | _STEEP | _PRODUCTS | _SUMS | _ALL_REDUCES
)
"""Names of the JAX primitives that must not run in half precision; sums, if long."""
export_constant("precision.FLOAT32_OPS", since="0.1")

_LIBRARIES = frozenset({"jax", "jaxlib", "flax", "optax", "chex", "jaxtyping"})


@export("precision.HalfOperation", since="0.1")
class HalfOperation(NamedTuple):
    """One operation in half precision.

    Attributes:
        primitive: JAX's name of it.
        dtype: float16, bfloat16 or narrower.
        terms: how many numbers it adds up or multiplies; 1 if elementwise, 0 if unknown.
        source: "file.py:12 (function)", the nearest line outside of jax, flax and optax.
    """

    primitive: str
    dtype: str
    terms: int
    source: str

    def __str__(self) -> str:
        terms = f" of {self.terms} terms" if self.terms > 1 else ""
        return f"{self.primitive} [{self.dtype}]{terms} at {self.source}"


@export("precision.half_operations", since="0.1")
def half_operations(fn: Callable[..., Any], *args: Any) -> list[HalfOperation]:
    """Everything that `fn(*args)` computes in half precision, in order of execution.

    Args:
        fn: a pure function, jitted or not; it is traced and not run.
        args: its arguments, or `jax.ShapeDtypeStruct`s of them.

    >>> half = jax.ShapeDtypeStruct((8,), jnp.bfloat16)
    >>> [op.primitive for op in half_operations(lambda x: jnp.exp(x) * 2, half)]
    ['exp', 'mul']
    """
    return [
        HalfOperation(equation.primitive.name, dtype, _terms(equation), source)
        for equation, source in _equations(jax.make_jaxpr(fn)(*args).jaxpr)
        if (dtype := _half_dtype(equation)) is not None
    ]


@export("precision.assert_float32_ops", since="0.1")
def assert_float32_ops(
    fn: Callable[..., Any],
    *args: Any,
    max_sum: int = 256,
    allow: Collection[str] = (),
) -> None:
    """Raises if `fn(*args)` runs an operation of the list above in half precision.

    Args:
        fn: a pure function, jitted or not; it is traced and not run. To check a step of
            many devices, give the `shard_map` of it.
        args: its arguments, or `jax.ShapeDtypeStruct`s of them.
        max_sum: sums of at most so many terms may run in half precision.
        allow: primitives to let pass.

    Raises:
        AssertionError: naming every primitive, its dtype and its source line.

    >>> half = jax.ShapeDtypeStruct((8,), jnp.bfloat16)
    >>> assert_float32_ops(lambda x: jax.nn.softmax(x.astype(jnp.float32)), half)
    """
    found = [
        operation
        for operation in half_operations(fn, *args)
        if operation.primitive in FLOAT32_OPS.difference(allow)
        and not (operation.primitive in _SUMS and operation.terms <= max_sum)
    ]
    if found:
        counts = {str(operation): found.count(operation) for operation in found}
        lines = [
            line + (f" ({count} times)" if count > 1 else "")
            for line, count in counts.items()
        ]
        raise AssertionError(
            f"{len(found)} operations must run in float32, got half precision:\n  "
            + "\n  ".join(lines)
        )


def _equations(jaxpr: Any, outer: str = "an unknown line") -> Iterator[tuple[Any, str]]:
    """All equations and their lines, those of inner programs instead of the calls."""
    for equation in jaxpr.eqns:
        source = _source(equation) or outer
        # A scatter or a reduction holds the sum of two numbers as a program: no call.
        is_leaf = equation.primitive.name.startswith(("scatter", "reduce", "select"))
        inner = [] if is_leaf else list(_inner_jaxprs(equation.params))
        if not inner:
            yield equation, source
        for sub in inner:
            yield from _equations(sub, source)


def _inner_jaxprs(value: Any) -> Iterator[Any]:
    if hasattr(value, "eqns"):
        yield value
    elif hasattr(value, "jaxpr"):
        yield from _inner_jaxprs(value.jaxpr)
    elif isinstance(value, Mapping):
        yield from _inner_jaxprs(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _inner_jaxprs(item)


def _half_dtype(equation: Any) -> str | None:
    """The dtype of the result if floating and narrower than float32."""
    dtypes = [getattr(v.aval, "dtype", None) for v in equation.outvars]
    for dtype in dtypes:
        if dtype is not None and jnp.issubdtype(dtype, jnp.floating):
            return str(dtype) if jnp.finfo(dtype).bits < 32 else None
    return None


def _terms(equation: Any) -> int:
    """How many numbers one number of the result is made from."""
    name, params = equation.primitive.name, equation.params
    if name in ("reduce_sum", "reduce_prod"):
        shape = equation.invars[0].aval.shape
        return math.prod(shape[axis] for axis in params["axes"])
    if name in ("cumsum", "cumprod", "cumlogsumexp"):
        return equation.invars[0].aval.shape[params["axis"]]
    if name == "reduce_window_sum":
        return math.prod(params["window_dimensions"])
    if name == "scatter-add":
        # At worst every update falls on one place.
        unique = params["unique_indices"]
        return 1 if unique else math.prod(equation.invars[1].aval.shape[:-1])
    return 0 if name in _ALL_REDUCES else 1


def _source(equation: Any) -> str | None:
    traceback = equation.source_info.traceback
    for frame in traceback.frames if traceback is not None else ():
        path = PurePath(frame.file_name)
        if not _LIBRARIES & set(path.parts) and not frame.file_name.startswith("<"):
            return f"{path.name}:{frame.line_num} ({frame.function_name})"
    return None
