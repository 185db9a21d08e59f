"""Trees in stages: the same trees as in one go, and no row or node is lost on the way."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.trees.codes import encode
from jaxml.trees.frontier import Limits, grow, shape
from jaxml.trees.impurity import impurity
from jaxml.trees.random_forest import most_drawn
from jaxml.trees.search import Rows
from jaxml.trees.stages import CROWD, SHARES, keep, stages_of, take_or, which
from jaxml.trees.tree import leaf_index

ROWS, COUNTED = 96, 61


def grown(x, y, counted, stages):
    plan = shape(ROWS, 16, draws=True)._replace(stages=stages)

    @jax.jit
    def run(x, y, counted):
        w = counted.astype(jnp.float32)
        return grow(
            x.T,
            encode(x, 16, counted),
            jnp.stack([w * (y == 0), w * (y == 1)]),
            y,
            counted,
            impurity("gini", num_classes=2),
            Limits(40, 2, 1, 0.0, x.shape[1], 2),
            plan,
            jax.random.key(3),
        )

    return run(x, y, counted)


def test_stages_change_nothing(rng):
    x = rng.normal(size=(ROWS, 3)).astype(np.float32)
    x[rng.random(x.shape) < 0.1] = np.nan
    y = rng.integers(0, 2, ROWS).astype(np.int32)
    counted = rng.permutation(ROWS) < COUNTED
    whole = shape(ROWS, 16, draws=True)
    stages = (
        (COUNTED, whole._replace(open=4, tables=(2,), sorts=False)),
        (COUNTED, whole._replace(open=8)),  # has no room for all, and must hand on
        (COUNTED, whole._replace(open=30)),
        (20, whole._replace(open=10)),
    )
    at_once, leaf, used = grown(x, y, counted, ())
    tree, same_leaf, same_used = grown(x, y, counted, stages)
    assert used == same_used > 20
    for one, other in zip(at_once, tree, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(leaf, same_leaf)
    assert (leaf_index(tree, x) == leaf)[counted].all()
    assert (leaf[~counted] == 0).all()


@pytest.mark.parametrize(
    ("rows", "width", "depth"),
    [(100_000, 255, None), (20_000, 20_000, None), (50_000, 64, 6)],
)
def test_every_stage_holds_what_the_one_before_hands_on(rows, width, depth):
    whole = shape(rows, width, depth, staged=False)
    stages = stages_of(whole, rows - 1000, width)
    assert stages[0][0] == rows - 1000
    if depth is not None:
        assert [s.open for _, s in stages] == [2 ** (depth - 1)]
        return
    for (_, before), (size, after) in pairwise(stages):
        if before.sorts:  # a node that is open has two rows or more
            assert after.open == size // 2 <= rows // 2
        else:  # one level more than tables serve
            assert before.open == 2 * before.tables[-1] <= after.open
    assert stages[-1][1].sorts
    rooms = [s.open for size, s in stages if size == rows - 1000 and s.sorts]
    assert rooms == [(rows - 1000) // CROWD, (rows - 1000) // 2]
    assert stages[-1][0] == int(SHARES[-1] * (rows - 1000))


def test_rows_that_move_keep_their_order_and_their_numbers():
    moves = jnp.array([False, True, True, False, True])
    kept = which(moves, 4)
    assert kept.tolist() == [1, 2, 4, 5]
    assert take_or(jnp.arange(10, 15), kept, -1).tolist() == [11, 12, 14, -1]
    x = jnp.arange(10.0).reshape(2, 5)
    rows = keep(Rows(x, encode(x.T), x.T, jnp.arange(5)), kept)
    assert rows.x.tolist() == [[1, 2, 4, 4], [6, 7, 9, 9]]
    assert rows.codes.index.tolist() == [[1, 2, 4, 4]] * 2
    assert rows.q.tolist() == rows.x.T.tolist()
    assert rows.same.tolist() == [1, 2, 4, 4]


def test_no_more_rows_are_drawn_than_stages_have_room_for(rng):
    for rows, draws in [(1000, 1000), (1000, 300), (20_000, 20_000)]:
        most = most_drawn(draws, rows)
        hit = [len(np.unique(rng.integers(0, rows, draws))) for _ in range(50)]
        assert max(hit) <= most <= min(np.mean(hit) + 7 * np.sqrt(rows), draws)
