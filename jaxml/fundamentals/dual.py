"""Dual numbers: forward-mode automatic differentiation in one pass, without a graph.

A dual number x + x' e, with e^2 = 0, carries a value and how fast it changes. Every
operation applies the chain rule at once,

    f(x + x' e) = f(x) + f'(x) x' e,

so that one evaluation gives a directional derivative (a Jacobian-vector product), at the
price of about one more. n inputs need n passes, where the backward pass of
`jaxml.fundamentals.autograd` needs one for each output; the methods have the same names, so
that one function runs on either. Values may be dual numbers themselves: derivatives nest.

The trap is perturbation confusion. In d/dx (x d/dy (x + y)) the two e's are different, and
code that mixes them gives 2 in place of 1. Each `jvp` has a level of its own here, and a
number of an outer level is a constant to an inner one.

Reference: Baydin et al., "Automatic Differentiation in Machine Learning: a Survey", JMLR
2018, https://arxiv.org/abs/1502.05767 (section 3.1); Siskind and Pearlmutter, "Nesting
forward-mode AD in a functional framework", HOSC 2008 (the confusion).
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxml.export import export

_levels = itertools.count(1)


@export("fundamentals.dual.Dual", since="0.1")
class Dual:
    """A value and its tangent; made by `jvp`.

    Attributes:
        value: an array, or a dual number of an outer level.
        tangent: of the value, in its shape.
        level: which perturbation this is.
    """

    __array_priority__ = 100  # NumPy leaves its operators to this class

    def __init__(self, value: Any, tangent: Any, level: int) -> None:
        self.value, self.tangent, self.level = value, tangent, level

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    def __repr__(self) -> str:
        return f"Dual({self.value} + {self.tangent} e{self.level})"

    def __add__(self, other: Any) -> "Dual":
        x, dx, y, dy, level = _pair(self, other)
        return Dual(x + y, dx + dy, level)

    def __sub__(self, other: Any) -> "Dual":
        x, dx, y, dy, level = _pair(self, other)
        return Dual(x - y, dx - dy, level)

    def __mul__(self, other: Any) -> "Dual":
        x, dx, y, dy, level = _pair(self, other)
        return Dual(x * y, dx * y + x * dy, level)

    def __truediv__(self, other: Any) -> "Dual":
        x, dx, y, dy, level = _pair(self, other)
        return Dual(x / y, dx / y - x * dy / (y * y), level)

    def __matmul__(self, other: Any) -> "Dual":
        x, dx, y, dy, level = _pair(self, other)
        return Dual(x @ y, dx @ y + x @ dy, level)

    def __pow__(self, power: float | int) -> "Dual":
        """With a plain number as the exponent."""
        if power == 0:
            return self * 0.0 + 1.0
        slope = power * self.value ** (power - 1)
        return Dual(self.value**power, slope * self.tangent, self.level)

    def __neg__(self) -> "Dual":
        return self._linear(lambda x: -x)

    def __radd__(self, other: Any) -> "Dual":
        return self + other

    def __rsub__(self, other: Any) -> "Dual":
        return -self + other

    def __rmul__(self, other: Any) -> "Dual":
        return self * other

    def __rtruediv__(self, other: Any) -> "Dual":
        return _constant(other, self) / self

    def __rmatmul__(self, other: Any) -> "Dual":
        return _constant(other, self) @ self

    def __getitem__(self, index: Any) -> "Dual":
        return self._linear(lambda x: x[index])

    def sum(self, axis: Any = None) -> "Dual":
        return self._linear(lambda x: x.sum(axis))

    def reshape(self, *shape: int) -> "Dual":
        return self._linear(lambda x: x.reshape(*shape))

    @property
    def T(self) -> "Dual":  # noqa: N802 (the field's name)
        return self._linear(lambda x: x.T)

    def exp(self) -> "Dual":
        out = _apply("exp", self.value)
        return Dual(out, out * self.tangent, self.level)

    def log(self) -> "Dual":
        return Dual(_apply("log", self.value), self.tangent / self.value, self.level)

    def sqrt(self) -> "Dual":
        out = _apply("sqrt", self.value)
        return Dual(out, self.tangent / (2.0 * out), self.level)

    def sin(self) -> "Dual":
        slope = _apply("cos", self.value)
        return Dual(_apply("sin", self.value), slope * self.tangent, self.level)

    def cos(self) -> "Dual":
        slope = -_apply("sin", self.value)
        return Dual(_apply("cos", self.value), slope * self.tangent, self.level)

    def tanh(self) -> "Dual":
        out = _apply("tanh", self.value)
        return Dual(out, (1.0 - out * out) * self.tangent, self.level)

    def sigmoid(self) -> "Dual":
        out = _apply("sigmoid", self.value)
        return Dual(out, out * (1.0 - out) * self.tangent, self.level)

    def relu(self) -> "Dual":
        on = _plain(self.value) > 0
        return self._linear(lambda x: x * on)

    def abs(self) -> "Dual":
        sign = jnp.sign(_plain(self.value))
        return self._linear(lambda x: x * sign)

    def _linear(self, function: Callable[[Any], Any]) -> "Dual":
        return Dual(function(self.value), function(self.tangent), self.level)


def _pair(x: Any, y: Any) -> tuple[Any, Any, Any, Any, int]:
    """Values and tangents of two numbers at the inner one's level."""
    level = max(getattr(x, "level", 0), getattr(y, "level", 0))
    return (*_at(x, level), *_at(y, level), level)


def _at(x: Any, level: int) -> tuple[Any, Any]:
    """Value and tangent at a level; what belongs to an outer one does not change here."""
    if isinstance(x, Dual) and x.level == level:
        return x.value, x.tangent
    return x, x * 0.0


def _constant(x: Any, like: Dual) -> Dual:
    return Dual(x, x * 0.0, like.level)


def _array(x: Any) -> Any:
    return x if isinstance(x, Dual) else jnp.asarray(x)


def _plain(x: Any) -> Any:
    """The array at the bottom."""
    return _plain(x.value) if isinstance(x, Dual) else x


def _apply(name: str, x: Any) -> Any:
    if isinstance(x, Dual):
        return getattr(x, name)()
    return jax.nn.sigmoid(x) if name == "sigmoid" else getattr(jnp, name)(x)


@export("fundamentals.dual.jvp", since="0.1")
def jvp(
    function: Callable[..., Any], primals: Sequence[Any], tangents: Sequence[Any]
) -> tuple[Any, Any]:
    """The value of a function, and how fast it changes along `tangents`.

    Args:
        function: of dual numbers, to one.
        primals: where; arrays, or dual numbers of an outer `jvp`.
        tangents: the direction, one for each.

    Raises:
        ValueError: if a tangent is missing or has another shape than its primal.

    >>> jvp(lambda x: (x * x).sum(), [jnp.array([1.0, 2.0])], [jnp.array([0.0, 1.0])])[1]
    Array(4., dtype=float32)
    """
    if len(primals) != len(tangents):
        raise ValueError(
            f"every primal needs a tangent, got {len(primals)} and {len(tangents)}"
        )
    for x, dx in zip(primals, tangents, strict=True):
        if jnp.shape(_plain(x)) != jnp.shape(_plain(dx)):
            raise ValueError(
                f"a tangent must have the shape of its primal, got "
                f"{jnp.shape(_plain(dx))} for {jnp.shape(_plain(x))}"
            )
    level = next(_levels)
    duals = [
        Dual(_array(x), _array(dx), level)
        for x, dx in zip(primals, tangents, strict=True)
    ]
    out = function(*duals)
    if isinstance(out, Dual) and out.level == level:
        return out.value, out.tangent
    return out, out * 0.0  # does not depend on the primals
