"""Intervals that move along, against lists of everything that is seen."""

from fractions import Fraction

import numpy as np
import pytest

from jaxml.ops.field_views import Seen, View, hull

PLAIN = View(0)
UNEVEN = View(1, 3, ((0, 1), (2, 4)))  # neighbours move by turns: 0, 2, 3, 5, 6 ...


def span(view, places):
    """First and last input that is seen from any of these indices."""
    return hull(view.interval(place) for place in places)


def test_intervals_move_by_a_step_after_each_period():
    assert [UNEVEN.interval(i) for i in range(-1, 4)] == [
        (-1, 1),
        (0, 1),
        (2, 4),
        (3, 4),
        (5, 7),
    ]
    assert (UNEVEN.period, UNEVEN.jump) == (2, Fraction(3, 2))
    assert View(0, 1, (None,)).interval(5) is None


@pytest.mark.parametrize("view", [PLAIN, UNEVEN], ids=["plain", "uneven"])
@pytest.mark.parametrize("seed", range(10))
def test_windows_see_what_their_taps_see(view, seed):
    rng = np.random.default_rng(seed)
    kernel, stride, dilation, upsampling = (int(n) for n in rng.integers(1, 5, 4))
    padding = int(rng.integers(-2, 4))
    behind = view.window(kernel, stride, dilation, padding, upsampling)
    for index in range(-3, 20):
        taps = [index * stride - padding + tap * dilation for tap in range(kernel)]
        real = [tap // upsampling for tap in taps if tap % upsampling == 0]
        assert behind.interval(index) == span(view, real), index
    assert behind.jump == view.jump * Fraction(stride, upsampling)


@pytest.mark.parametrize("view", [PLAIN, UNEVEN], ids=["plain", "uneven"])
@pytest.mark.parametrize(
    ("places", "length", "jump"),
    [
        ([0, 0, 1, 1, 2, 2], 3, Fraction(1, 2)),  # nearest upsampling
        ([i * 7 // 13 for i in range(13)], 7, Fraction(1, 2)),  # to an odd size
        ([i * 5 // 8 for i in range(8)], 5, Fraction(5, 8)),
        ([1, 3, 5], 6, Fraction(2)),
        ([3, 2, 1, 0], 4, Fraction(-1)),
        ([2, 0, 1], 3, Fraction(1)),  # no rule: as if the axis went on so
        ([0, 0], 1, Fraction(1, 2)),
        ([4], 6, Fraction(6)),
    ],
)
def test_entries_taken_by_their_places(view, places, length, jump):
    taken = view.taken(places, length)
    assert list(map(taken.interval, range(len(places)))) == list(
        map(view.interval, places)
    )
    assert taken.jump == jump * view.jump
    repeated = view.repeated(3)
    assert [repeated.interval(i) for i in range(9)] == [
        view.interval(i // 3) for i in range(9)
    ]


def test_branches_see_the_union():
    one = PLAIN.window(3, 2, 1, 1, 1)
    two = PLAIN.window(2, 4, 1, 0, 1).repeated(2)  # the same jump, in another rhythm
    both = one.union(two)
    for index in range(9):
        assert both.interval(index) == hull((one.interval(index), two.interval(index)))
    assert both.jump == 2
    for other in (PLAIN, View(1, 2)):
        with pytest.raises(NotImplementedError, match="jumps are 2 and"):
            one.union(other)


def test_hulls_leave_out_what_sees_nothing():
    assert hull([(1, 2), None, (-3, 0)]) == (-3, 2)
    assert hull([None]) is None


def test_values_lose_axes_and_meet():
    image = Seen((None, View(1), View(2), None))
    rows = image.losing([2, 3])
    assert rows == Seen((None, View(1)), frozenset({2}))
    with_mean = rows.union(Seen((None, None), frozenset({1})))
    assert with_mean == Seen((None, View(1)), frozenset({1, 2}))
