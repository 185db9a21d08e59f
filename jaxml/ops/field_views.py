"""What the indices of an axis see of the input: intervals that move along.

Along an array's axis, every index sees an interval of one axis of the input, and the
intervals repeat: `period` indices further on they have moved by `step` inputs. (Between a
stride and the transposed convolution that undoes it neighbours move by turns.) That is a
`View`. An axis of the input that a value sees entirely, from wherever, is in `Seen.whole`.
"""

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import NamedTuple

Interval = tuple[int, int] | None
"""First and last input; None where nothing is seen."""


class View(NamedTuple):
    """What the indices of one axis see.

    Attributes:
        axis: of the input.
        step: inputs by which the intervals have moved after all of `intervals`.
        intervals: of the indices from 0 on, until they repeat.
    """

    axis: int
    step: int = 1
    intervals: tuple[Interval, ...] = ((0, 0),)

    @property
    def period(self) -> int:
        return len(self.intervals)

    @property
    def jump(self) -> Fraction:
        """Inputs from one index to the next, on average."""
        return Fraction(self.step, self.period)

    def interval(self, index: int) -> Interval:
        """What an index sees."""
        turns, phase = divmod(index, self.period)
        seen = self.intervals[phase]
        move = turns * self.step
        return seen and (seen[0] + move, seen[1] + move)

    def window(
        self, kernel: int, stride: int, dilation: int, padding: int, upsampling: int
    ) -> "View":
        """Behind a window along this axis, its taps `dilation` apart."""
        inputs = upsampling * self.period
        period = inputs // math.gcd(inputs, stride)

        def seen(index: int) -> Interval:
            taps = range(0, kernel * dilation, dilation)
            places = (index * stride - padding + tap for tap in taps)
            return hull(
                self.interval(p // upsampling) for p in places if p % upsampling == 0
            )

        step = period * stride // inputs * self.step
        return View(self.axis, step, tuple(map(seen, range(period))))

    def repeated(self, times: int) -> "View":
        """With every index several times over."""
        repeated = (seen for seen in self.intervals for _ in range(times))
        return self._replace(intervals=tuple(repeated))

    def taken(self, places: Sequence[int], length: int) -> "View":
        """With the indices at these places of an axis of some length.

        Where the list does not repeat, it goes on from its start, one axis further.
        """
        count = len(places)

        def move_of(period: int) -> int:
            """By how much the list moves in a period; 0 if it does not repeat."""
            pairs = zip(places, places[period:], strict=False)
            moves = {later - now for now, later in pairs}
            return moves.pop() if len(moves) == 1 else 0

        found = ((n, move) for n in range(1, count // 2 + 1) if (move := move_of(n)))
        period, move = next(found, (count, length))
        times = self.period // math.gcd(self.period, move)
        seen = [
            self.interval(places[i % period] + i // period * move)
            for i in range(period * times)
        ]
        return View(self.axis, move * times // self.period * self.step, tuple(seen))

    def union(self, other: "View") -> "View":
        """Of two branches that meet."""
        if (self.axis, self.jump) != (other.axis, other.jump):
            raise NotImplementedError(
                "branches meet that do not move alike: their jumps are "
                f"{self.jump} and {other.jump}"
            )
        period = math.lcm(self.period, other.period)
        both = (hull((self.interval(i), other.interval(i))) for i in range(period))
        return View(self.axis, self.step * (period // self.period), tuple(both))


def hull(intervals: Iterable[Interval]) -> Interval:
    """The smallest interval around all of these."""
    found = [seen for seen in intervals if seen is not None]
    if not found:
        return None
    return min(first for first, _ in found), max(last for _, last in found)


class Seen(NamedTuple):
    """What a value sees: a view or None for each of its axes, and axes seen entirely."""

    axes: tuple[View | None, ...]
    whole: frozenset[int] = frozenset()

    def union(self, other: "Seen") -> "Seen":
        """Of two values of one shape, combined entry by entry."""
        axes = [
            one.union(two) if one and two else one or two
            for one, two in zip(self.axes, other.axes, strict=True)
        ]
        return Seen(tuple(axes), self.whole | other.whole)

    def losing(self, axes: Iterable[int]) -> "Seen":
        """Without these axes: they were summed over, and their inputs are seen entirely."""
        gone = set(axes)
        lost = {view.axis for i in gone if (view := self.axes[i]) is not None}
        kept = [view for i, view in enumerate(self.axes) if i not in gone]
        return Seen(tuple(kept), self.whole | lost)
