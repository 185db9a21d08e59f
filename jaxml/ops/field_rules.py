"""How receptive fields pass through each primitive of a jaxpr.

A rule takes what the operands see (`jaxml.ops.field_views`) to what the result sees. What
no rule is known for, and would move places, is refused by name.

Reference: Araujo et al., "Computing Receptive Fields of Convolutional Neural Networks",
Distill 2019, https://distill.pub/2019/computing-receptive-fields/ (arbitrary graphs).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxml.ops.field_views import Seen, View
from jaxml.typing import Array

Shape = tuple[int, ...]

# fmt: off
ELEMENTWISE = frozenset(
    [
        "abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan",
        "atan2", "atanh", "cbrt", "ceil", "clamp", "convert_element_type", "copy",
        "copy_p", "cos", "cosh", "digamma", "div", "eq", "erf", "erf_inv", "erfc",
        "exp", "exp2", "expm1", "floor", "ge", "gt", "imag", "integer_pow",
        "is_finite", "le", "lgamma", "log", "log1p", "logistic", "lt", "max", "min",
        "mul", "ne", "neg", "nextafter", "not", "optimization_barrier", "or", "pow",
        "real", "reduce_precision", "rem", "round", "rsqrt", "select_n", "sign",
        "sin", "sinh", "sqrt", "square", "stop_gradient", "sub", "tan", "tanh",
        "xor",
    ]
)
# fmt: on


def follow(
    closed: Any, constants: int, spatial: Sequence[int], rank: int
) -> list[Seen | None]:
    """What the outputs of a jaxpr see of its last input, of `rank` axes."""
    start = Seen(tuple(View(i) if i in spatial else None for i in range(rank)))
    unknown = [None] * (constants + 1)
    with jax.ensure_compile_time_eval():  # of indices
        return _run(closed, [None] * constants + [start], unknown)


def _run(
    closed: Any, inputs: Sequence[Seen | None], values: Sequence[Array | None]
) -> list[Seen | None]:
    """What the outputs see; values are those of integers that no input can change."""
    jaxpr = getattr(closed, "jaxpr", closed)
    known: dict[Any, Seen | None] = dict(zip(jaxpr.invars, inputs, strict=True))
    fixed: dict[Any, Array | None] = dict(zip(jaxpr.invars, values, strict=True))
    fixed |= dict(zip(jaxpr.constvars, getattr(closed, "consts", ()), strict=True))

    def read(variable: Any) -> Seen | None:
        return known.get(variable) if not hasattr(variable, "val") else None

    def value(variable: Any) -> Array | None:
        is_literal = hasattr(variable, "val")
        return np.asarray(variable.val) if is_literal else fixed.get(variable)

    for equation in jaxpr.eqns:
        seen = [read(variable) for variable in equation.invars]
        values = [value(variable) for variable in equation.invars]
        if any(seen):
            outputs = _pass(equation, seen, values)
            known.update(zip(equation.outvars, outputs, strict=True))
        elif not any(x is None for x in values) and _are_indices(equation.outvars):
            fixed.update(
                zip(equation.outvars, _evaluated(equation, values), strict=True)
            )
    return [read(variable) for variable in jaxpr.outvars]


def _are_indices(variables: Sequence[Any]) -> bool:
    kinds = (jnp.integer, jnp.bool_)
    dtypes = [variable.aval.dtype for variable in variables]
    return all(any(jnp.issubdtype(d, kind) for kind in kinds) for d in dtypes)


def _evaluated(equation: Any, values: Sequence[Array | None]) -> Sequence[Array]:
    primitive = equation.primitive
    found = primitive.bind(*values, **primitive.get_bind_params(equation.params))
    return found if primitive.multiple_results else [found]


def _pass(
    equation: Any, seen: list[Seen | None], values: Sequence[Array | None]
) -> list[Seen | None]:
    """What the outputs of one equation see."""
    name, params = equation.primitive.name, equation.params
    inner = next((params[k] for k in ("jaxpr", "call_jaxpr") if k in params), None)
    if inner is not None and name not in ("scan", "while", "cond"):
        return _run(inner, seen, values)
    if name == "cond" and params.get("branches_platforms"):
        # All platforms compute the same; the last branch is the default's.
        return _run(params["branches"][-1], seen[1:], values[1:])
    if not any(
        view for one in seen if one for view in one.axes
    ):  # places do not matter
        whole = frozenset[int]().union(*(one.whole for one in seen if one))
        return [Seen((None,) * len(v.aval.shape), whole) for v in equation.outvars]
    shapes = [tuple(variable.aval.shape) for variable in equation.invars]
    out = tuple(equation.outvars[0].aval.shape)
    if name in ELEMENTWISE:
        return [_merged(seen, shapes, out)] * len(equation.outvars)
    if name == "gather":
        return [_gather(_only(name, seen), values[1], shapes[0], out, params)]
    if name.startswith("reduce_window"):
        return [_reduce_window(_only(name, seen), params)]
    if name.startswith(("reduce_", "arg")) and "axes" in params:
        return [_only(name, seen).losing(params["axes"])]
    rule = RULES.get(name)
    if rule is None:
        raise NotImplementedError(
            f"receptive fields cannot be followed through {name!r} of the jaxpr"
        )
    return [rule(seen, shapes, out, params)] * len(equation.outvars)


def _only(name: str, seen: Sequence[Seen | None]) -> Seen:
    """The first operand, if no other sees anything."""
    first, *others = seen
    if first is None or any(others):
        raise NotImplementedError(
            f"{name} depends on the input in more than one operand"
        )
    return first


def _merged(
    seen: Sequence[Seen | None], shapes: Sequence[Shape], out: Shape
) -> Seen | None:
    total: Seen | None = None
    for one, shape in zip(seen, shapes, strict=True):
        if one is not None:
            one = one if shape == out else Seen((None,) * len(out), one.whole)
            total = one if total is None else total.union(one)
    return total


Params = Any
Rule = Callable[[list[Seen | None], list[Shape], Shape, Params], Seen]


def _convolution(
    seen: list[Seen | None], shapes: list[Shape], out: Shape, params: Params
) -> Seen:
    source = _only("conv_general_dilated", seen)
    numbers = params["dimension_numbers"]
    axes: list[View | None] = [None] * len(out)
    for i, (place, end) in enumerate(
        zip(numbers.lhs_spec[2:], numbers.out_spec[2:], strict=True)
    ):
        view = source.axes[place]
        axes[end] = view and view.window(
            shapes[1][numbers.rhs_spec[2 + i]],
            params["window_strides"][i],
            params["rhs_dilation"][i],
            params["padding"][i][0],
            params["lhs_dilation"][i],
        )
    return Seen(tuple(axes), source.whole)


def _reduce_window(source: Seen, params: Params) -> Seen:
    axes = [
        view and view.window(kernel, stride, dilation, padding[0], upsampling)
        for view, kernel, stride, dilation, padding, upsampling in zip(
            source.axes,
            params["window_dimensions"],
            params["window_strides"],
            params["window_dilation"],
            params["padding"],
            params["base_dilation"],
            strict=True,
        )
    ]
    return Seen(tuple(axes), source.whole)


def _pad(
    seen: list[Seen | None], shapes: list[Shape], out: Shape, params: Params
) -> Seen:
    source = _only("pad", seen)
    axes = [
        view and view.window(1, 1, 1, int(front), int(interior) + 1)
        for view, (front, _, interior) in zip(
            source.axes, params["padding_config"], strict=True
        )
    ]
    return Seen(tuple(axes), source.whole)


def _slice(
    seen: list[Seen | None], shapes: list[Shape], out: Shape, params: Params
) -> Seen:
    source = _only("slice", seen)
    strides = params["strides"] or (1,) * len(source.axes)
    axes = [
        view and view.window(1, int(stride), 1, -int(start), 1)
        for view, start, stride in zip(
            source.axes, params["start_indices"], strides, strict=True
        )
    ]
    return Seen(tuple(axes), source.whole)


def _gather(
    source: Seen, indices: Array | None, before: Shape, out: Shape, params: Params
) -> Seen:
    """Entries of one axis by a list of places, such as nearest upsampling."""
    numbers = params["dimension_numbers"]
    by_place = numbers.start_index_map
    kept = [i for i in range(len(before)) if i not in numbers.collapsed_slice_dims]
    listed = [i for i in range(len(out)) if i not in numbers.offset_dims]
    if len(by_place) != 1 or set(by_place) != set(numbers.collapsed_slice_dims):
        raise NotImplementedError("gather of more than single entries of one axis")
    axes: list[View | None] = [None] * len(out)
    for end, place in zip(numbers.offset_dims, kept, strict=True):
        axes[end] = source.axes[place]
    view, whole = source.axes[by_place[0]], source.whole
    if view is None:
        return Seen(tuple(axes), whole)
    if indices is None:
        raise NotImplementedError("gather at places that are known at run time alone")
    if len(listed) != 1:
        return Seen(tuple(axes), whole | {view.axis})
    places = np.ravel(np.asarray(indices)).tolist()
    axes[listed[0]] = view.taken(places, before[by_place[0]])
    return Seen(tuple(axes), whole)


def _transpose(
    seen: list[Seen | None], shapes: list[Shape], out: Shape, params: Params
) -> Seen:
    source = _only("transpose", seen)
    return Seen(tuple(source.axes[i] for i in params["permutation"]), source.whole)


def _broadcast(
    seen: list[Seen | None], shapes: list[Shape], out: Shape, params: Params
) -> Seen:
    source = _only("broadcast_in_dim", seen)
    axes: list[View | None] = [None] * len(out)
    for place, view in zip(params["broadcast_dimensions"], source.axes, strict=True):
        axes[place] = view
    return Seen(tuple(axes), source.whole)


def _squeeze(
    seen: list[Seen | None], shapes: list[Shape], out: Shape, params: Params
) -> Seen:
    return _only("squeeze", seen).losing(params["dimensions"])


def _dot(
    seen: list[Seen | None], shapes: list[Shape], out: Shape, params: Params
) -> Seen:
    (contracted, batch) = params["dimension_numbers"]
    left, right = seen
    total: Seen | None = None
    ranks = [len(shape) for shape in shapes]
    free = ranks[0] - len(contracted[0]) - len(batch[0])
    for side, source in enumerate((left, right)):
        if source is None:
            continue
        gone = set(contracted[side])
        whole = source.losing(gone).whole
        order = [
            i for i in range(ranks[side]) if i not in gone and i not in batch[side]
        ]
        axes: list[View | None] = [None] * len(out)
        for end, place in enumerate(batch[side]):
            axes[end] = source.axes[place]
        offset = len(batch[side]) + (free if side else 0)
        for end, place in enumerate(order):
            axes[offset + end] = source.axes[place]
        part = Seen(tuple(axes), whole)
        total = part if total is None else total.union(part)
    assert total is not None
    return total


def _concatenate(
    seen: list[Seen | None], shapes: list[Shape], out: Shape, params: Params
) -> Seen:
    along = params["dimension"]
    total: Seen | None = None
    for one in seen:
        if one is None:
            continue
        if one.axes[along] is not None:  # places are mixed: all of the axis is seen
            rest = one.losing([along])
            one = Seen((*one.axes[:along], None, *one.axes[along + 1 :]), rest.whole)
        total = one if total is None else total.union(one)
    assert total is not None
    return total


def _reshape(
    seen: list[Seen | None], shapes: list[Shape], out: Shape, params: Params
) -> Seen:
    source, before = _only("reshape", seen), shapes[0]
    axes: list[View | None] = [None] * len(out)
    whole = set(source.whole)
    for left, right in _groups(before, out):
        views = [source.axes[i] for i in left]
        found = [view for view in views if view is not None]
        wide = [i for i in left if before[i] > 1]
        ends = [i for i in right if out[i] > 1] or right[:1]
        if not found:
            continue
        view = found[0]
        if len(found) == 1 and len(wide) <= 1 and ends:  # kept, or cut into blocks
            inner = math.prod(out[i] for i in ends[1:])
            axes[ends[0]] = view.window(inner, inner, 1, 0, 1)
        elif len(found) == 1 and len(ends) == 1 and views[left.index(wide[0])] is view:
            axes[ends[0]] = view.repeated(math.prod(before[i] for i in wide[1:]))
        else:
            whole |= {view.axis for view in found}
    return Seen(tuple(axes), frozenset(whole))


def _groups(before: Shape, after: Shape) -> Iterable[tuple[list[int], list[int]]]:
    """Axes of two shapes of one size in matching groups, each as small as can be.

    From the end: where axes of length one leave a choice, it is the batch that has been cut.
    """
    i, j = len(before), len(after)
    while i or j:
        left: list[int] = []
        right: list[int] = []
        sizes = [1, 1]
        while (i or j) and not (left and right and sizes[0] == sizes[1]):
            if i and (not left or sizes[0] < sizes[1] or not j):
                i -= 1
                left.insert(0, i)
                sizes[0] *= before[i]
            else:
                j -= 1
                right.insert(0, j)
                sizes[1] *= after[j]
        yield left, right


RULES: dict[str, Rule] = {
    "conv_general_dilated": _convolution,
    "pad": _pad,
    "slice": _slice,
    "transpose": _transpose,
    "broadcast_in_dim": _broadcast,
    "squeeze": _squeeze,
    "dot_general": _dot,
    "concatenate": _concatenate,
    "reshape": _reshape,
}
