"""Arrays of one naming and layout to another and back, as a list of rules.

A rule pairs one of our leaves with the tensors that hold it elsewhere, and a layout that
is a pair of inverse functions. One list serves both directions, so that what is written
is what would be read:

    ours = to_ours(theirs),    theirs = to_theirs(ours),    to_theirs(to_ours(x)) = x

Placeholders such as {i} stand for the same number on both sides. Where names have changed
in the course of time, several rules tell of one leaf: the first whose tensors are there is
followed in reading, the very first in writing.

The trap is a square matrix, which fits transposed or not. No check of shapes can see
that; only the outputs can, beside those of the library that the weights come from.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxml.export import export

State = Mapping[str, np.ndarray]
"""Named tensors, as a file holds them."""

Variables = Mapping[str, Any]
"""The collections of a linen module: `params`, `batch_stats`."""

Split = tuple[np.ndarray, ...]


class Layout(NamedTuple):
    """A pair of inverse functions between their tensors, a tuple, and one of ours."""

    to_ours: Callable[[Split], np.ndarray]
    to_theirs: Callable[[np.ndarray], Split]


def _single(
    to_ours: Callable[[np.ndarray], np.ndarray],
    to_theirs: Callable[[np.ndarray], np.ndarray],
) -> Layout:
    return Layout(lambda x: to_ours(x[0]), lambda x: (to_theirs(x),))


SAME = _single(lambda x: x, lambda x: x)
DENSE = _single(np.transpose, np.transpose)  # [out, in] <-> [in, out]
CONV = _single(  # OIHW <-> HWIO
    lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)
)


def leading(axes: int) -> Layout:
    """Axes of length one before theirs, as of a class token [1, 1, width]."""
    return _single(lambda x: x.reshape(x.shape[axes:]), lambda x: x[(None,) * axes])


def patches(side: int) -> Layout:
    """A convolution whose stride is its size, OIHW <-> [H W I, O], a matrix."""

    def to_ours(x: np.ndarray) -> np.ndarray:
        return x.transpose(2, 3, 1, 0).reshape(-1, len(x))

    def to_theirs(x: np.ndarray) -> np.ndarray:
        return x.reshape(side, side, -1, x.shape[1]).transpose(3, 2, 0, 1)

    return _single(to_ours, to_theirs)


def stacked() -> Layout:
    """Several tensors of theirs, which are ours along a new first axis."""
    return Layout(lambda x: np.stack(x), lambda x: tuple(x))


def without_key() -> Layout:
    """Biases of queries and values <-> one of queries, keys and values.

    A bias of the keys adds the same to all logits of a query, and changes nothing.
    """
    return Layout(
        lambda x: np.concatenate([x[0], np.zeros_like(x[0]), x[1]]),
        lambda x: tuple(np.split(x, 3))[::2],
    )


def joined(layout: Layout, parts: int) -> Layout:
    """Several tensors of theirs, one after the other along their first axis."""

    def to_theirs(x: np.ndarray) -> Split:
        return tuple(np.split(layout.to_theirs(x)[0], parts))

    return Layout(lambda x: layout.to_ours((np.concatenate(x),)), to_theirs)


class Rule(NamedTuple):
    """Where one of our leaves stands elsewhere.

    Attributes:
        ours: a path such as "params/blocks_{i}/norm1/scale".
        theirs: names such as "blocks.{i}.norm1.weight"; several where they are joined.
        layout: between the arrays.
    """

    ours: str
    theirs: tuple[str, ...]
    layout: Layout = SAME


@export("interop.Conversion", since="0.1")
@dataclass(frozen=True)
class Conversion:
    """All that is known of a naming.

    Attributes:
        rules: one or more for each of our leaves.
        prefixes: what may stand before a name, once or nested, and says nothing.
        ignored: regular expressions of their names that have no counterpart here.
        fixed: tensors that are constants here, such as positions that are not learned:
            written as they are, and if there in reading, they must be the same.
    """

    rules: tuple[Rule, ...]
    prefixes: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    fixed: Mapping[str, np.ndarray] = field(default_factory=dict)

    def bare(self, name: str) -> str:
        """The name without all prefixes."""
        for prefix in (p for p in self.prefixes if name.startswith(p)):
            return self.bare(name.removeprefix(prefix))
        return name

    def candidates(self, path: str) -> Iterator[tuple[tuple[str, ...], Layout]]:
        """Names and layouts under which one of our leaves may stand, in order."""
        for rule in self.rules:
            match = re.fullmatch(_pattern(rule.ours), path)
            if match:
                yield (
                    tuple(n.format(**match.groupdict()) for n in rule.theirs),
                    (rule.layout),
                )


def _pattern(text: str) -> str:
    return re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[0-9]+)", re.escape(text))


@export("interop.ConversionError", since="0.1")
class ConversionError(ValueError):
    """Weights do not fit a module, or no converter knows them."""


@export("interop.Report", since="0.1")
@dataclass(frozen=True)
class Report:
    """What `convert` did; `print` it.

    Attributes:
        matched: our path -> the names it was made of.
        missing: our path -> what was looked for; zero.
        mismatched: our path -> what differs; zero.
        unexpected: their names that nothing asked for.
        ignored: their names that are known to have no counterpart here.
        converted: our path -> "bfloat16 to float32", of those that matched.
    """

    matched: Mapping[str, tuple[str, ...]]
    missing: Mapping[str, str]
    mismatched: Mapping[str, str]
    unexpected: tuple[str, ...]
    ignored: tuple[str, ...]
    converted: Mapping[str, str]

    @property
    def exact(self) -> bool:
        """Whether every leaf has its tensors and every tensor its leaf."""
        return not (self.missing or self.mismatched or self.unexpected)

    def __str__(self) -> str:
        total = len(self.matched) + len(self.missing) + len(self.mismatched)
        lines = [f"{len(self.matched)} of {total} arrays loaded"]
        for title, names in (
            ("missing, left at zero", _pairs(self.missing)),
            ("of another shape or kind, left at zero", _pairs(self.mismatched)),
            ("unexpected", self.unexpected),
            ("without a counterpart here", self.ignored),
            ("converted", _pairs(self.converted)),
        ):
            if names:
                lines += [f"  {title} ({len(names)}):"]
                lines += [f"    {name}" for name in names[:20]]
                lines += ["    ..."] * (len(names) > 20)
        return "\n".join(lines)


def _pairs(names: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(f"{name}: {what}" for name, what in names.items())


@export("interop.convert", since="0.1")
def convert(
    state: State,
    conversion: Conversion,
    like: Variables,
    *,
    fresh: Sequence[str] = (),
) -> tuple[Variables, Report]:
    """Their tensors as our variables.

    Args:
        state: named tensors.
        conversion: how they are named there.
        like: the module's variables, or their shapes as of `jax.eval_shape`; the result
            has its structure, shapes and dtypes.
        fresh: beginnings of our paths, such as "params/head", that need not fit: what is
            missing or of another shape is zero, a start for a new head.

    Returns:
        The variables, and a report of what matched and what did not.

    Raises:
        ConversionError: if two names differ by a prefix alone, or anything does not fit
            that is not `fresh`.
    """
    names = _bare_names(state, conversion)
    matched, missing, mismatched, converted = {}, {}, {}, {}
    leaves: dict[str, Any] = {}
    asked: set[str] = set()
    for path, leaf in flatten_dict(like, sep="/").items():
        candidates = list(conversion.candidates(path))
        if not candidates:
            raise ConversionError(f"no rule tells where {path} stands")
        leaves[path] = jnp.zeros(leaf.shape, leaf.dtype)
        found_there = (
            (theirs, layout)
            for theirs, layout in candidates
            if all(conversion.bare(name) in names for name in theirs)
        )
        theirs, layout = next(found_there, ((), SAME))
        if not theirs:
            missing[path] = f"there is no {' or '.join(candidates[0][0])}"
            continue
        found = tuple(names[conversion.bare(name)] for name in theirs)
        asked.update(found)
        arrays = tuple(state[name] for name in found)
        problem = _problem(found, arrays, layout, leaf)
        if problem:
            mismatched[path] = problem
            continue
        array = layout.to_ours(arrays)
        matched[path] = found
        if array.dtype != leaf.dtype:
            converted[path] = f"{array.dtype} to {leaf.dtype}"
        leaves[path] = jnp.array(array, leaf.dtype)  # theirs may change in place
    for name, wanted in conversion.fixed.items():
        there = names.get(conversion.bare(name))
        if there is not None:
            asked.add(there)
            if not _same(state[there], wanted):
                mismatched[there] = "it must be the constant that is computed here"
    others = sorted(set(state) - asked)
    new = [path for path in leaves if path.startswith(tuple(fresh))]
    ignored = tuple(name for name in others if _is_ignored(name, conversion))
    unexpected = tuple(name for name in others if name not in ignored)
    report = Report(matched, missing, mismatched, unexpected, ignored, converted)
    wrong = [path for path in (*missing, *mismatched) if path not in new]
    wrong += [name for name in unexpected if not _is_of(name, conversion, fresh)]
    if wrong:
        raise ConversionError(f"the weights do not fit the module: {report}")
    return unflatten_dict(leaves, sep="/"), report


@export("interop.export_state", since="0.1")
def export_state(variables: Variables, conversion: Conversion) -> dict[str, np.ndarray]:
    """Our variables under their names and in their layout: the inverse of `convert`.

    Raises:
        ConversionError: if no rule tells where a leaf stands.
    """
    state: dict[str, np.ndarray] = {}
    for path, leaf in flatten_dict(variables, sep="/").items():
        names, layout = next(conversion.candidates(path), ((), SAME))
        if not names:
            raise ConversionError(f"no rule tells where {path} stands")
        arrays = layout.to_theirs(np.asarray(jax.device_get(leaf)))
        state |= dict(zip(names, map(np.ascontiguousarray, arrays), strict=True))
    return state | dict(conversion.fixed)


def _same(array: np.ndarray, wanted: np.ndarray) -> bool:
    wide = np.asarray(array, np.float32)
    # Half precision, and sines computed in single precision, are no difference.
    near = 1e-4 if array.dtype == np.float32 else 1e-2
    return wide.shape == wanted.shape and np.allclose(wide, wanted, rtol=0, atol=near)


def _bare_names(state: State, conversion: Conversion) -> dict[str, str]:
    """{name without prefixes: name}."""
    names: dict[str, str] = {}
    for name in state:
        other = names.setdefault(conversion.bare(name), name)
        if other != name:
            raise ConversionError(
                f"names must differ by more than a prefix, got {other} and {name}"
            )
    return names


def _problem(
    names: Sequence[str], arrays: Split, layout: Layout, leaf: Any
) -> str | None:
    """Why the tensors cannot become the leaf, or None."""
    try:
        wanted = layout.to_theirs(np.broadcast_to(np.int8(0), leaf.shape))
    except ValueError:  # such as three equal parts of ten
        return f"{leaf.shape} here cannot be {' + '.join(names)}"
    for name, array, expected in zip(names, arrays, wanted, strict=True):
        if array.shape != expected.shape:
            return f"{name} is {array.shape}, must be {expected.shape}"
        if not jnp.issubdtype(array.dtype, jnp.floating):
            return f"{name} is {array.dtype}, must be floating-point"
    return None


def _is_ignored(name: str, conversion: Conversion) -> bool:
    bare = conversion.bare(name)
    return any(re.fullmatch(pattern, bare) for pattern in conversion.ignored)


def _is_of(name: str, conversion: Conversion, beginnings: Sequence[str]) -> bool:
    """Whether a name of theirs is that of a leaf of ours with such a beginning."""
    bare = conversion.bare(name)
    return any(
        re.fullmatch(_pattern(conversion.bare(theirs)), bare)
        for rule in conversion.rules
        if rule.ours.startswith(tuple(beginnings))
        for theirs in rule.theirs
    )
