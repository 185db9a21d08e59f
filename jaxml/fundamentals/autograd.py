"""Define-by-run automatic differentiation, as PyTorch has it, on JAX arrays.

A `Tensor` is an array that remembers how it was made. Operations run at once, in ordinary
Python, and leave a graph; `backward` goes through it and adds to the `grad` of every leaf:

>>> x = Tensor([1.0, 2.0, 3.0], requires_grad=True)
>>> y = (x * x).sum()
>>> y.backward()
>>> x.grad
Tensor([2., 4., 6.])

`jax.grad` needs none of this: there a function is traced once into a program, and the program
is transformed into another one. Here the graph is that of this run, whatever `if` and `while`
did; the price is a Python object for every operation, kept until the way back. What follows
from that, `autograd_and_jax_grad.md` beside this file shows line by line.

The semantics are PyTorch's: leaves alone keep gradients (others by `retain_grad`), a second
pass through a graph needs `retain_graph`, changing a leaf in place or a value that a rule has
saved is an error. Deviations: JAX arrays are immutable, so that slices, reshapes and
`detach` are copies and not views; where several entries are the maximum they share its
gradient, as in `torch.amax`; at 0 the gradient of `abs` and `relu` is 0, as there.

Reference: Paszke et al., "PyTorch: An Imperative Style, High-Performance Deep Learning
Library", NeurIPS 2019, https://arxiv.org/abs/1912.01703 (section 4.3).
"""

import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxml.export import export
from jaxml.fundamentals.backward import (
    OUT,
    Edge,
    Node,
    Rule,
    Saved,
    Version,
    backward,
    enable_grad,
    grad,
    graph,
    is_grad_enabled,
    no_grad,
)

__all__ = [
    "Tensor",
    "backward",
    "concatenate",
    "enable_grad",
    "grad",
    "graph",
    "is_grad_enabled",
    "no_grad",
    "operation",
    "stack",
    "where",
]

Like = Any
"""A tensor, or what becomes one."""
Axes = int | tuple[int, ...] | None


@export("fundamentals.autograd.Tensor", since="0.1")
class Tensor:
    """An array that remembers how it was made.

    Attributes:
        data: the array.
        requires_grad: whether gradients with respect to it can be asked for.
        grad: of a leaf (or after `retain_grad`), the sum over all backward passes.
        node: the operation that made it; None for a leaf.
        version: counts the changes in place.

    Raises:
        RuntimeError: if a gradient is asked for integers or booleans.
    """

    __array_priority__ = 100  # NumPy leaves its operators to this class

    def __init__(self, data: Any, requires_grad: bool = False) -> None:
        self.data: Any = data.data if isinstance(data, Tensor) else jnp.asarray(data)
        self.node: Node | None = None
        self.grad: Tensor | None = None
        self.version = Version()
        self.hooks: dict[int, Rule] = {}
        self._requires_grad = False
        self.requires_grad = requires_grad

    # What it is.

    @property
    def requires_grad(self) -> bool:
        return self._requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if value and not jnp.issubdtype(self.data.dtype, jnp.inexact):
            raise RuntimeError(
                f"only real numbers have gradients, got {self.data.dtype}"
            )
        if not value and self.node is not None:
            raise RuntimeError(
                "requires_grad can be turned off for leaves; use detach()"
            )
        self._requires_grad = value

    @property
    def is_leaf(self) -> bool:
        """Whether no recorded operation made it."""
        return self.node is None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def dtype(self) -> Any:
        return self.data.dtype

    @property
    def ndim(self) -> int:
        return self.data.ndim

    @property
    def size(self) -> int:
        return self.data.size

    def item(self) -> float | int | bool:
        """The number of a tensor of one."""
        return self.data.item()

    def numpy(self) -> np.ndarray:
        """The array.

        Raises:
            RuntimeError: if it requires a gradient, which NumPy would lose.
        """
        if self.requires_grad:
            raise RuntimeError("this tensor requires a gradient; use detach().numpy()")
        return np.asarray(self.data)

    def tolist(self) -> Any:
        """The numbers as nested lists."""
        return self.data.tolist()

    def __float__(self) -> float:
        return float(self.data)

    def __bool__(self) -> bool:
        return bool(self.data)

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator["Tensor"]:
        return (self[i] for i in range(len(self)))

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        text = np.array2string(np.asarray(self.data), separator=", ", prefix="Tensor(")
        made = f", made by {self.node.name}" if self.node else ""
        leaf = ", requires_grad=True" if self.requires_grad and not self.node else ""
        return f"Tensor({text}{made}{leaf})"

    # Its gradient.

    def backward(
        self,
        gradient: Like = None,
        retain_graph: bool | None = None,
        create_graph: bool = False,
    ) -> None:
        """`autograd.backward` of this tensor."""
        backward(self, gradient, retain_graph, create_graph)

    def detach(self) -> "Tensor":
        """The same numbers, a leaf that requires no gradient."""
        return Tensor(self.data)

    def retain_grad(self) -> None:
        """Lets a tensor that is no leaf keep its gradient in `grad`."""
        self._check_requires_grad()
        if self.node is not None:
            self.node.keep = weakref.ref(self)

    def register_hook(self, hook: Rule) -> Callable[[], None]:
        """Calls `hook` with the gradient; what it returns, if anything, takes its place.

        Returns:
            A function that removes the hook.
        """
        self._check_requires_grad()
        hooks = self.hooks if self.node is None else self.node.hooks
        key = max(hooks, default=-1) + 1
        hooks[key] = hook
        return lambda: hooks.pop(key, None) and None

    def _check_requires_grad(self) -> None:
        if not self.requires_grad:
            raise RuntimeError("this tensor requires no gradient")

    # What the backward pass asks of it.

    def target(self) -> Any:
        """Where its gradient goes: the node that made it, or a leaf itself."""
        return self if self.node is None else self.node

    def keep(self) -> "Tensor":
        """A leaf keeps its gradient itself."""
        return self

    def checked_gradient(self, gradient: Like) -> "Tensor":
        """The gradient that a backward pass begins with."""
        if not self.requires_grad:
            raise RuntimeError("this tensor requires no gradient and has no graph")
        if gradient is None:
            if self.size != 1:
                raise RuntimeError(
                    "a gradient goes without saying for one number only; give one for "
                    f"this tensor of shape {self.shape}"
                )
            return Tensor(jnp.ones_like(self.data))
        return Tensor(self.data).replaced_by(gradient)

    def replaced_by(self, other: Like) -> "Tensor":
        """`other` in place of this gradient, if it is not None and fits."""
        if other is None:
            return self
        other = _tensor(other, self)
        if other.shape != self.shape:
            raise RuntimeError(
                f"a gradient must have shape {self.shape}, got {other.shape}"
            )
        return other

    def accumulate(self, gradient: "Tensor", create_graph: bool) -> None:
        """Adds to `grad`."""
        if not create_graph:
            gradient = gradient.detach()
        self.grad = gradient if self.grad is None else self.grad + gradient

    def made_by(self, node: Node | None) -> "Tensor":
        """The same numbers and version as the result of a node."""
        twin = Tensor(self.data)
        twin.version, twin.node = self.version, node
        twin._requires_grad = node is not None or self.requires_grad
        return twin

    def sum_to(self, shape: tuple[int, ...]) -> "Tensor":
        """The opposite of broadcasting: sums over the axes that were added or stretched."""
        if self.shape == shape:
            return self
        added = self.ndim - len(shape)
        stretched = [added + i for i, n in enumerate(shape) if n == 1]
        axes = (*range(added), *stretched)
        data = self.data.sum(axes, keepdims=True).reshape(shape)
        whole = self.shape
        return _record("sum_to", data, (self, lambda g: g.expand(whole)))

    # Arithmetic. Each rule gives the gradient of one input.

    def __add__(self, other: Like) -> "Tensor":
        other = _tensor(other, self)
        edges = (self, lambda g: g), (other, lambda g: g)
        return _record("add", self.data + other.data, *edges)

    def __neg__(self) -> "Tensor":
        return _record("neg", -self.data, (self, lambda g: -g))

    def __sub__(self, other: Like) -> "Tensor":
        other = _tensor(other, self)
        edges = (self, lambda g: g), (other, lambda g: -g)
        return _record("sub", self.data - other.data, *edges)

    def __mul__(self, other: Like) -> "Tensor":
        other = _tensor(other, self)
        edges = (self, lambda g, y: g * y, other), (other, lambda g, x: g * x, self)
        return _record("mul", self.data * other.data, *edges)

    def __truediv__(self, other: Like) -> "Tensor":
        other = _tensor(other, self)
        edges = (
            (self, lambda g, y: g / y, other),
            (other, lambda g, x, y: -g * x / (y * y), self, other),
        )
        return _record("div", self.data / other.data, *edges)

    def __pow__(self, other: Like) -> "Tensor":
        other = _tensor(other, self)

        def of_base(g: Tensor, x: Tensor, y: Tensor) -> Tensor:
            still = y.data == 0  # x^0 is constant, at x = 0 too
            power = where(still, 1.0, y)
            return g * where(still, 0.0, power * x ** (power - 1.0))

        def of_exponent(g: Tensor, x: Tensor, out: Tensor) -> Tensor:
            return g * where(x.data > 0, out * where(x.data > 0, x, 1.0).log(), 0.0)

        edges = (self, of_base, self, other), (other, of_exponent, self, OUT)
        return _record("pow", self.data**other.data, *edges)

    def __matmul__(self, other: Like) -> "Tensor":
        other = _tensor(other, self)
        if self.ndim == 1 or other.ndim == 1:
            rows = self.reshape(1, -1) if self.ndim == 1 else self
            columns = other.reshape(-1, 1) if other.ndim == 1 else other
            product = rows @ columns
            kept = product.shape[:-2]
            kept += () if self.ndim == 1 else product.shape[-2:-1]
            kept += () if other.ndim == 1 else product.shape[-1:]
            return product.reshape(*kept)
        edges = (
            (self, lambda g, y: g @ y.mT, other),
            (other, lambda g, x: x.mT @ g, self),
        )
        return _record("matmul", self.data @ other.data, *edges)

    def __radd__(self, other: Like) -> "Tensor":
        return _tensor(other, self) + self

    def __rsub__(self, other: Like) -> "Tensor":
        return _tensor(other, self) - self

    def __rmul__(self, other: Like) -> "Tensor":
        return _tensor(other, self) * self

    def __rtruediv__(self, other: Like) -> "Tensor":
        return _tensor(other, self) / self

    def __rpow__(self, other: Like) -> "Tensor":
        return _tensor(other, self) ** self

    def __rmatmul__(self, other: Like) -> "Tensor":
        return _tensor(other, self) @ self

    # Comparisons have no gradient.

    def __lt__(self, other: Like) -> "Tensor":
        return Tensor(self.data < _tensor(other, self).data)

    def __le__(self, other: Like) -> "Tensor":
        return Tensor(self.data <= _tensor(other, self).data)

    def __gt__(self, other: Like) -> "Tensor":
        return Tensor(self.data > _tensor(other, self).data)

    def __ge__(self, other: Like) -> "Tensor":
        return Tensor(self.data >= _tensor(other, self).data)

    def __eq__(self, other: Like) -> "Tensor":  # type: ignore[override]
        return Tensor(self.data == _tensor(other, self).data)

    def __ne__(self, other: Like) -> "Tensor":  # type: ignore[override]
        return Tensor(self.data != _tensor(other, self).data)

    # Functions of every entry.

    def exp(self) -> "Tensor":
        return _record("exp", jnp.exp(self.data), (self, lambda g, out: g * out, OUT))

    def log(self) -> "Tensor":
        return _record("log", jnp.log(self.data), (self, lambda g, x: g / x, self))

    def sqrt(self) -> "Tensor":
        edge = (self, lambda g, out: g / (2.0 * out), OUT)
        return _record("sqrt", jnp.sqrt(self.data), edge)

    def sin(self) -> "Tensor":
        return _record(
            "sin", jnp.sin(self.data), (self, lambda g, x: g * x.cos(), self)
        )

    def cos(self) -> "Tensor":
        return _record(
            "cos", jnp.cos(self.data), (self, lambda g, x: -g * x.sin(), self)
        )

    def tanh(self) -> "Tensor":
        edge = (self, lambda g, out: g * (1.0 - out * out), OUT)
        return _record("tanh", jnp.tanh(self.data), edge)

    def sigmoid(self) -> "Tensor":
        edge = (self, lambda g, out: g * out * (1.0 - out), OUT)
        return _record("sigmoid", jax.nn.sigmoid(self.data), edge)

    def relu(self) -> "Tensor":
        edge = (self, lambda g, out: where(out.data > 0, g, 0.0), OUT)
        return _record("relu", jnp.maximum(self.data, 0), edge)

    def abs(self) -> "Tensor":
        edge = (self, lambda g, x: g * jnp.sign(x.data), self)
        return _record("abs", jnp.abs(self.data), edge)

    # Sums and shapes.

    def sum(self, axis: Axes = None, keepdims: bool = False) -> "Tensor":
        whole, kept = self.shape, _kept(self.shape, axis)
        edge = (self, lambda g: g.reshape(*kept).expand(whole))
        return _record("sum", self.data.sum(axis, keepdims=keepdims), edge)

    def mean(self, axis: Axes = None, keepdims: bool = False) -> "Tensor":
        total = self.sum(axis, keepdims)
        return total * (math.prod(total.shape) / max(self.size, 1))

    def max(self, axis: Axes = None, keepdims: bool = False) -> "Tensor":
        kept = _kept(self.shape, axis)

        def rule(g: Tensor, x: Tensor, out: Tensor) -> Tensor:
            first = x.data == out.data.reshape(kept)
            share = first / first.sum(axis, keepdims=True, dtype=x.dtype)
            return g.reshape(*kept) * share

        return _record(
            "max", self.data.max(axis, keepdims=keepdims), (self, rule, self, OUT)
        )

    def logsumexp(self, axis: Axes = None) -> "Tensor":
        """The logarithm of the sum of exponentials, safe for large numbers."""
        top = Tensor(self.data.max(axis, keepdims=True))
        total = (self - top).exp().sum(axis, keepdims=True).log() + top
        return total.sum(axis)

    def softmax(self, axis: int = -1) -> "Tensor":
        exps = (self - Tensor(self.data.max(axis, keepdims=True))).exp()
        return exps / exps.sum(axis, keepdims=True)

    def expand(self, shape: tuple[int, ...]) -> "Tensor":
        """Broadcast to `shape`."""
        return _record(
            "expand", jnp.broadcast_to(self.data, shape), (self, lambda g: g)
        )

    def reshape(self, *shape: int) -> "Tensor":
        before = self.shape
        edge = (self, lambda g: g.reshape(*before))
        return _record("reshape", self.data.reshape(shape), edge)

    def transpose(self, *axes: int) -> "Tensor":
        """With the axes in this order; reversed by default."""
        order = axes or tuple(reversed(range(self.ndim)))
        back = tuple(int(i) for i in np.argsort(order))
        edge = (self, lambda g: g.transpose(*back))
        return _record("transpose", self.data.transpose(order), edge)

    @property
    def T(self) -> "Tensor":  # noqa: N802 (the field's name)
        return self.transpose()

    @property
    def mT(self) -> "Tensor":  # noqa: N802 (the field's name)
        """Matrices transposed, behind any batch axes."""
        return self.transpose(*range(self.ndim - 2), self.ndim - 1, self.ndim - 2)

    def astype(self, dtype: Any) -> "Tensor":
        if self.dtype == dtype:
            return self
        return _record("astype", self.data.astype(dtype), (self, lambda g: g))

    def __getitem__(self, index: Any) -> "Tensor":
        index, whole = _plain(index), self.shape
        edge = (self, lambda g: g.scattered(index, whole))
        return _record("getitem", self.data[index], edge)

    def scattered(self, index: Any, shape: tuple[int, ...]) -> "Tensor":
        """Zeros of `shape` to which this is added at `index`: the opposite of indexing."""
        data = jnp.zeros(shape, self.dtype).at[index].add(self.data)
        return _record("scattered", data, (self, lambda g: g[index]))

    # Changes in place.

    def _become(self, change: Callable[["Tensor"], "Tensor"]) -> "Tensor":
        """Takes the place of what `change` makes of it.

        Raises:
            RuntimeError: for a leaf that requires a gradient, unless inside `no_grad`; or if
                the shape or kind of number would change.
        """
        if is_grad_enabled() and self.requires_grad and self.is_leaf:
            raise RuntimeError(
                "a leaf that requires a gradient cannot be changed in place"
            )
        out = change(self.made_by(self.node))
        if (out.shape, out.dtype) != (self.shape, self.dtype):
            raise RuntimeError(
                f"a change in place must keep {self.dtype}{list(self.shape)}, got "
                f"{out.dtype}{list(out.shape)}"
            )
        self.version.count += 1
        self.data = out.data
        if out.node is not None:
            if out.node.out is not None:
                out.node.out = Saved(self.made_by(None))
            if self.node is not None and self.node.keep() is self:
                self.node.keep, out.node.keep = out.node.keep, self.node.keep
            self.node, self._requires_grad = out.node, True
        return self

    def add_(self, other: Like) -> "Tensor":
        return self._become(lambda x: x + other)

    def sub_(self, other: Like) -> "Tensor":
        return self._become(lambda x: x - other)

    def mul_(self, other: Like) -> "Tensor":
        return self._become(lambda x: x * other)

    def div_(self, other: Like) -> "Tensor":
        return self._become(lambda x: x / other)

    def exp_(self) -> "Tensor":
        return self._become(lambda x: x.exp())

    def copy_(self, other: Like) -> "Tensor":
        """Takes the numbers of another, and its way back."""
        return self._become(lambda x: _tensor(other, x).expand(x.shape).astype(x.dtype))

    __iadd__, __isub__, __imul__, __itruediv__ = add_, sub_, mul_, div_

    def __setitem__(self, index: Any, value: Like) -> None:
        index = _plain(index)

        def put(x: Tensor) -> Tensor:
            new = _tensor(value, x).astype(x.dtype)
            edges = (
                (x, lambda g: g * jnp.ones_like(g.data).at[index].set(0)),
                (new, lambda g: g[index]),
            )
            return _record("setitem", x.data.at[index].set(new.data), *edges)

        self._become(put)


def _record(name: str, data: Any, *inputs: Any) -> Tensor:
    """The result of an operation; each input is (tensor, rule, *what the rule needs)."""
    out = Tensor(data)
    if not is_grad_enabled() or not any(x.requires_grad for x, *_ in inputs):
        return out
    edges = [
        Edge(
            x.target(),
            rule,
            tuple(item if item is OUT else Saved(item) for item in saved),
            x.shape,
            x.dtype,
        )
        for x, rule, *saved in inputs
        if x.requires_grad
    ]
    node = Node(name, edges)
    if any(item is OUT for edge in edges for item in edge.saved or ()):
        node.out = Saved(out)
        out = out.made_by(None)
    out.node, out._requires_grad = node, True
    return out


def _tensor(value: Like, like: Tensor) -> Tensor:
    """`value` as a tensor; plain numbers take the type of their partner."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, int | float) and jnp.issubdtype(like.dtype, jnp.inexact):
        return Tensor(jnp.asarray(value, like.dtype))
    return Tensor(value)


def _plain(index: Any) -> Any:
    """An index without tensors in it."""
    if isinstance(index, tuple):
        return tuple(map(_plain, index))
    return index.data if isinstance(index, Tensor) else index


def _kept(shape: tuple[int, ...], axis: Axes) -> tuple[int, ...]:
    """The shape of a reduction that keeps its axes, with length one."""
    axes = range(len(shape)) if axis is None else axis
    axes = (axes,) if isinstance(axes, int) else axes
    gone = {i % len(shape) for i in axes}
    return tuple(1 if i in gone else n for i, n in enumerate(shape))


@export("fundamentals.autograd.where", since="0.1")
def where(condition: Like, x: Like, y: Like) -> Tensor:
    """Entries of `x` where the condition holds, of `y` elsewhere."""
    mask = jnp.asarray(condition.data if isinstance(condition, Tensor) else condition)
    like = next((value for value in (x, y) if isinstance(value, Tensor)), Tensor(0.0))
    x, y = _tensor(x, like), _tensor(y, like)
    edges = (
        (x, lambda g: where(mask, g, 0.0)),
        (y, lambda g: where(mask, 0.0, g)),
    )
    return _record("where", jnp.where(mask, x.data, y.data), *edges)


@export("fundamentals.autograd.concatenate", since="0.1")
def concatenate(tensors: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Tensors one after the other along an axis."""
    ends = np.cumsum([x.shape[axis] for x in tensors])
    axis = axis % tensors[0].ndim

    def part(start: int, end: int) -> Rule:
        index = (slice(None),) * axis + (slice(start, end),)
        return lambda g: g[index]

    edges = [
        (x, part(int(end) - x.shape[axis], int(end)))
        for x, end in zip(tensors, ends, strict=True)
    ]
    return _record(
        "concatenate", jnp.concatenate([x.data for x in tensors], axis), *edges
    )


@export("fundamentals.autograd.stack", since="0.1")
def stack(tensors: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Tensors of one shape along a new axis."""
    axis = axis % (tensors[0].ndim + 1)
    rows = [x.reshape(*x.shape[:axis], 1, *x.shape[axis:]) for x in tensors]
    return concatenate(rows, axis)


@export("fundamentals.autograd.operation", since="0.1")
def operation(function: Callable[..., Any]) -> Callable[..., Tensor]:
    """Any differentiable JAX function of arrays to one array, as one operation.

    Its rules are `jax.vjp`'s, taken on the way back, and can be differentiated again.

    >>> x = Tensor(2.0, requires_grad=True)
    >>> operation(jnp.cbrt)(x * 4.0).backward()
    >>> round(x.grad.item(), 4)
    0.3333
    """

    def run(*inputs: Like) -> Tensor:
        tensors = [x if isinstance(x, Tensor) else Tensor(x) for x in inputs]

        def rule(i: int) -> Rule:
            def pull(g: Any, *arrays: Any) -> Any:
                return jax.vjp(function, *arrays)[1](g)[i]

            return operation(pull)

        edges = [(x, rule(i), *tensors) for i, x in enumerate(tensors)]
        name = getattr(function, "__name__", "operation")
        return _record(name, function(*(x.data for x in tensors)), *edges)

    return run
