"""Which samples a split expression means: `train`, `train[:1000]`, `train[10%:20%]+test`.

The expressions are those of TFDS and cut every source alike: a bound is a number of
samples or per cent of the split (rounded to the nearest sample), and a negative one
counts from the end. Two slices that share a bound share no sample and leave none out.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

_SLICE = re.compile(r"\s*([\w.-]+)\s*(?:\[([^\[\]:]*):([^\[\]:]*)\])?\s*")
_BOUND = re.compile(r"(-?\d[\d_]*)|(-?\d+(?:\.\d+)?)%")


class Slice(NamedTuple):
    """The samples `start` to `stop` - 1 of a split, in its fixed order."""

    split: str
    start: int
    stop: int


def parse_split(
    expression: str, sizes: Mapping[str, int], *, endless: bool = False
) -> tuple[Slice, ...]:
    """The slices that an expression adds up.

    Args:
        expression: such as `train[:80%]` or `train+test[-100:]`.
        sizes: samples in each split.
        endless: the splits go on past their size, so any bound in samples is good.

    Raises:
        ValueError: if the expression is malformed, names no split, reaches out of one,
            or selects no sample.

    >>> parse_split("train[10%:]+test", {"train": 50, "test": 9})
    (Slice(split='train', start=5, stop=50), Slice(split='test', start=0, stop=9))
    """
    return tuple(_parse_slice(p, sizes, endless) for p in expression.split("+"))


def _parse_slice(text: str, sizes: Mapping[str, int], endless: bool) -> Slice:
    match = _SLICE.fullmatch(text)
    if match is None:
        raise ValueError(
            'a split must read like "train", "train[:1000]", "train[10%:20%]" or a sum '
            f"of such, got {text!r}"
        )
    split, start, stop = match.groups()
    if split not in sizes:
        raise ValueError(f"the split must be one of {', '.join(sizes)}, got {text!r}")
    size = sizes[split]
    first = _parse_bound((start or "").strip() or "0", size, text)
    last = _parse_bound((stop or "").strip() or "100%", size, text)
    if min(first, last) < 0 or (max(first, last) > size and not endless):
        raise ValueError(f"{split} has {size} samples, got {text!r}")
    if first >= last:
        raise ValueError(f"a split must select a sample, got {text!r} of {size}")
    return Slice(split, first, last)


def _parse_bound(text: str, size: int, expression: str) -> int:
    match = _BOUND.fullmatch(text)
    if match is None:
        raise ValueError(
            f"a bound must be a whole number or per cent, got {text!r} in "
            f"{expression!r}"
        )
    samples, percent = match.groups()
    bound = int(samples) if samples else round(float(percent) * size / 100)
    return bound + size if bound < 0 else bound
