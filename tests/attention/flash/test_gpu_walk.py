"""Which block does what, and in which order, looked at without a kernel."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.attention.flash import gpu_walk
from jaxml.attention.flash.arrange import Layout
from jaxml.attention.flash.gpu_walk import over_steps, place_of, steps_at
from jaxml.attention.flash.schedule import Sizes
from jaxml.attention.spec import Spec


@pytest.mark.parametrize("fits", [1, 2, 3, 6, 100])
@pytest.mark.parametrize("last_first", [False, True])
def test_every_place_has_a_block_and_heavy_tiles_come_first(fits, last_first):
    tiles, batch, heads = 5, 2, 3
    each = gpu_walk.L2 // fits
    places = [
        tuple(map(int, place_of(n, tiles, batch, heads, each, last_first=last_first)))
        for n in range(tiles * batch * heads)
    ]
    assert len(set(places)) == len(places)
    assert {max(x) for x in zip(*places, strict=True)} == {1, 2, 4}
    assert min(map(min, places)) == 0
    # As many heads at once as fit and divide all of them, and of those one tile each.
    section = max(n for n in (1, 2, 3, 6) if n <= fits)
    for start in range(0, len(places), section * tiles):
        of_section = places[start : start + section * tiles]
        assert len({place[:2] for place in of_section}) == section
        order = [tile for *_, tile in of_section]
        assert order == sorted(order, reverse=last_first)


RANGES = [[0, 0, 0, 0], [0, 0, 3, 3], [0, 0, 2, 4], [1, 3, 5, 6], [2, 2, 2, 5]]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("line", range(len(RANGES)))
def test_every_tile_is_visited_once_and_the_full_ones_first(line, shared):
    ranges = jnp.asarray([RANGES] if shared else [np.zeros((5, 4), int), RANGES])
    steps = steps_at(ranges, 1, line)
    lo, full_lo, full_hi, hi = RANGES[line]
    order = [int(steps.tile(n)) for n in range(int(steps.count))]
    assert sorted(order) == list(range(lo, hi))
    assert order[: int(steps.full)] == list(range(full_lo, full_hi))


@pytest.mark.parametrize("masked", [False, True])
def test_only_what_may_hide_something_is_masked(masked):
    """A layout in which nothing hides anything has one loop, without a mask."""
    layout = Layout(Spec(1.0), Sizes(1, 1, 1, 1), 1, None, False, masked)
    steps = gpu_walk.Steps(2, 5, lambda n: n)

    def step(with_mask, n, carry):
        seen, hidden = carry
        return seen.at[n].add(1), hidden.at[n].set(with_mask)

    empty = jnp.zeros(6, int), jnp.zeros(6, bool)
    seen, hidden = over_steps(layout, steps, step, empty)
    assert seen.tolist() == [1, 1, 1, 1, 1, 0]
    assert hidden.tolist() == [False, False, *[masked] * 3, False]
