"""The graph that operations leave behind, and the way back through it.

Every operation on tensors that require a gradient makes a node. A node has one edge for
each input that requires a gradient: where it leads (the node that made the input, or a
leaf), the rule that turns the gradient of the output into that of the input, and the
tensors which the rule needs. Going backward, a node waits until all gradients that it will
get have arrived and been added up; then its rules run:

    bar x = sum over the operations y = f(..., x, ...) of  bar y . df/dx.

The rules are written in operations on tensors. With `create_graph` they leave a graph of
their own, and gradients can be taken of gradients. The way is a loop, not a recursion: a
graph may be as deep as memory allows.

The trap is what was saved. A tensor that has been changed in place since a rule saved it
would give a wrong gradient silently; a version counter turns that into an error.

Reference: Paszke et al., "PyTorch: An Imperative Style, High-Performance Deep Learning
Library", NeurIPS 2019, https://arxiv.org/abs/1912.01703 (section 4.3); Baydin et al.,
"Automatic Differentiation in Machine Learning: a Survey", JMLR 2018,
https://arxiv.org/abs/1502.05767 (section 3.2, reverse accumulation).
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, Final, NamedTuple

from jaxml.export import export

_recording: ContextVar[bool] = ContextVar("recording", default=True)
_numbers = itertools.count()
OUT: Final = object()
"""In the place of a saved tensor: the output of the operation itself."""


@export("fundamentals.autograd.no_grad", since="0.1")
@contextlib.contextmanager
def no_grad() -> Iterator[None]:
    """Operations leave no graph inside; also a decorator."""
    with _mode(False):
        yield


@export("fundamentals.autograd.enable_grad", since="0.1")
@contextlib.contextmanager
def enable_grad() -> Iterator[None]:
    """Operations leave a graph again, inside of `no_grad`; also a decorator."""
    with _mode(True):
        yield


@contextlib.contextmanager
def _mode(recording: bool) -> Iterator[None]:
    token = _recording.set(recording)
    try:
        yield
    finally:
        _recording.reset(token)


@export("fundamentals.autograd.is_grad_enabled", since="0.1")
def is_grad_enabled() -> bool:
    """Whether operations leave a graph here."""
    return _recording.get()


class Version:
    """How often a tensor has been changed in place."""

    def __init__(self) -> None:
        self.count = 0


class Saved:
    """A tensor as it was when a rule saved it."""

    def __init__(self, tensor: Any) -> None:
        self.tensor, self.version = tensor, tensor.version.count

    def read(self, node: "Node") -> Any:
        """The tensor.

        Raises:
            RuntimeError: if it has been changed in place since.
        """
        now = self.tensor.version.count
        if now != self.version:
            raise RuntimeError(
                f"the backward pass of {node.name} needs a tensor that has been changed in "
                f"place since: it is at version {now}, expected {self.version}"
            )
        return self.tensor


Rule = Callable[..., Any]
"""(gradient of the output, *saved tensors) -> gradient of one input."""


class Edge(NamedTuple):
    """One input of an operation.

    Attributes:
        target: the node that made the input, or the input itself if it is a leaf.
        rule: for its gradient.
        saved: what the rule needs; None once the graph has been freed.
        shape: of the input, to which a gradient is summed if the input was broadcast.
        dtype: of the input.
    """

    target: Any
    rule: Rule
    saved: tuple[Any, ...] | None
    shape: tuple[int, ...]
    dtype: Any


class Node:
    """One operation.

    Attributes:
        name: of the operation.
        edges: to the inputs that require a gradient.
        number: counts operations; inputs have smaller ones.
        hooks: called with the gradient of the output before the rules are.
        keep: gives the tensor that keeps this gradient, or None.
    """

    def __init__(self, name: str, edges: Sequence[Edge]) -> None:
        self.name, self.edges, self.number = name, list(edges), next(_numbers)
        self.hooks: dict[int, Rule] = {}
        self.keep: Callable[[], Any] = lambda: None
        self.out: Saved | None = None

    def gradients(self, gradient: Any) -> Iterator[tuple[Any, Any]]:
        """For each edge where it leads, and the gradient there.

        Raises:
            RuntimeError: if the graph has been freed.
        """
        for target, rule, saved, shape, dtype in self.edges:
            if saved is None:
                raise RuntimeError(
                    f"the graph behind {self.name} has been freed by a backward pass; ask "
                    "the first one to retain_graph=True to go through it again"
                )
            values = [self.read(item) for item in saved]
            yield target, rule(gradient, *values).sum_to(shape).astype(dtype)

    def read(self, item: Any) -> Any:
        """A saved tensor; the output comes back as the result of this node."""
        if item is not OUT:
            return item.read(self)
        assert self.out is not None
        return self.out.read(self).made_by(self)

    def free(self) -> None:
        """Lets go of what was saved; an operation that saved nothing may run again."""
        self.out = None
        self.edges = [
            edge if edge.saved == () else edge._replace(saved=None)
            for edge in self.edges
        ]

    def __repr__(self) -> str:
        return f"<{self.name} number {self.number}>"


@export("fundamentals.autograd.backward", since="0.1")
def backward(
    tensors: Any,
    gradients: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
) -> None:
    """Adds to the `grad` of every leaf what the tensors' gradients make of it.

    Args:
        tensors: one, or several.
        gradients: of something with respect to each, in its shape: what is computed are
            vector-Jacobian products. None stands for 1, for a tensor of one number.
        retain_graph: keep the graph for another pass; by default if `create_graph`.
        create_graph: record the backward pass itself, for gradients of gradients.

    Raises:
        RuntimeError: if a tensor has no graph, the graph has been freed, a saved tensor
            has been changed in place, a gradient is missing for a tensor of several
            numbers, or has another shape.
    """
    run(*_paired(tensors, gradients), retain_graph, create_graph, None)


@export("fundamentals.autograd.grad", since="0.1")
def grad(
    outputs: Any,
    inputs: Any,
    gradients: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    allow_unused: bool = False,
) -> tuple[Any, ...]:
    """Gradients with respect to `inputs`, leaves or not; no `grad` is touched.

    Args:
        outputs: as `tensors` of `backward`.
        inputs: one tensor, or several.
        gradients: as for `backward`.
        retain_graph: as for `backward`.
        create_graph: as for `backward`.
        allow_unused: give None for an input that plays no part, rather than an error.

    Raises:
        RuntimeError: as `backward`, and if an input requires no gradient or plays no part.
    """
    inputs = _several(inputs)
    for tensor in inputs:
        if not tensor.requires_grad:
            raise RuntimeError("inputs must require a gradient, got one that does not")
    targets = [tensor.target() for tensor in inputs]
    found = run(*_paired(outputs, gradients), retain_graph, create_graph, targets)
    results = tuple(found.get(id(target)) for target in targets)
    if not allow_unused and any(result is None for result in results):
        raise RuntimeError(
            "an input plays no part in the outputs; allow_unused=True gives None for it"
        )
    return results


def _several(tensors: Any) -> tuple[Any, ...]:
    return tuple(tensors) if isinstance(tensors, tuple | list) else (tensors,)


def _paired(tensors: Any, gradients: Any) -> tuple[list[Any], list[Any]]:
    """Every tensor with its gradient."""
    tensors = _several(tensors)
    given = (None,) * len(tensors) if gradients is None else _several(gradients)
    if len(given) != len(tensors):
        raise RuntimeError(
            f"there must be a gradient for each tensor, got {len(given)} for {len(tensors)}"
        )
    return list(tensors), [
        x.checked_gradient(g) for x, g in zip(tensors, given, strict=True)
    ]


def run(
    tensors: Sequence[Any],
    gradients: Sequence[Any],
    retain_graph: bool | None,
    create_graph: bool,
    wanted: Sequence[Any] | None,
) -> dict[int, Any]:
    """The backward pass: into the leaves, or the gradients of `wanted` by identity."""
    retain = create_graph if retain_graph is None else retain_graph
    roots = [tensor.target() for tensor in tensors]
    keep = None if wanted is None else {id(target) for target in wanted}
    waiting = _count_gradients(roots)
    sums: dict[int, Any] = {}
    ready: list[Any] = []
    found: dict[int, Any] = {}

    def give(target: Any, gradient: Any) -> None:
        key = id(target)
        sums[key] = gradient if key not in sums else sums[key] + gradient
        waiting[key] -= 1
        if not waiting[key]:
            ready.append(target)

    with _mode(create_graph):
        for target, gradient in zip(roots, gradients, strict=True):
            give(target, gradient)
        while ready:
            target = ready.pop()
            key = id(target)
            gradient = sums.pop(key)
            for hook in list(target.hooks.values()):
                gradient = gradient.replaced_by(hook(gradient))
            if keep is None:
                keeper = target.keep()
                if keeper is not None:
                    keeper.accumulate(gradient, create_graph)
            elif key in keep:
                found[key] = gradient
            if isinstance(target, Node):
                for onward, part in target.gradients(gradient):
                    give(onward, part)
                if not retain:
                    target.free()
    return found


def _count_gradients(roots: Sequence[Any]) -> dict[int, int]:
    """For every node and leaf behind the roots how many gradients it will get."""
    counts: dict[int, int] = {}
    stack = []
    for root in roots:
        counts[id(root)] = counts.get(id(root), 0) + 1
        if counts[id(root)] == 1:
            stack.append(root)
    while stack:
        node = stack.pop()
        for edge in node.edges if isinstance(node, Node) else ():
            key = id(edge.target)
            counts[key] = counts.get(key, 0) + 1
            if counts[key] == 1:
                stack.append(edge.target)
    return counts


@export("fundamentals.autograd.graph", since="0.1")
def graph(tensor: Any) -> tuple[dict[int, str], list[tuple[int, int]]]:
    """The operations behind a tensor, and how they feed one another.

    Returns:
        (names, edges) as `jaxml.draw.save_graph` takes them, from the leaves to the tensor.
    """
    names: dict[int, str] = {}
    edges: list[tuple[int, int]] = []
    stack = [tensor.target()]
    while stack:
        target = stack.pop()
        if id(target) in names:
            continue
        is_node = isinstance(target, Node)
        names[id(target)] = target.name if is_node else f"leaf {list(target.shape)}"
        for edge in target.edges if is_node else ():
            edges.append((id(edge.target), id(target)))
            stack.append(edge.target)
    return names, edges
