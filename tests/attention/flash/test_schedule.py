"""Schedules against every pair of query and key, looked at one by one."""

import numpy as np
import pytest

from jaxml.attention.flash.schedule import Sizes, limits_of, most_steps, schedule
from jaxml.attention.reference import visibility

CASES = {
    "full": {},
    "causal": {"is_causal": True},
    "causal from the end": {"is_causal": True, "causal_offset": "bottom_right"},
    "window": {"local_window_size": (20, 9), "causal_offset": np.array([7, -30])},
    "wide window": {"local_window_size": (70, 60)},
    "lengths": {
        "query_seq_lengths": np.array([90, 0]),
        "key_value_seq_lengths": np.array([0, 70]),
    },
    "segments": {
        "segment_ids": (np.arange(192).reshape(2, 96) // 33, np.ones((2, 130), int)),
        "local_window_size": (None, 40),
    },
    "sorted segments": {  # the first has no keys, and the last no queries
        "segment_ids": (
            np.tile(np.arange(96) // 33, (2, 1)),
            np.tile(np.arange(130) // 50 + 1, (2, 1)),
        )
    },
    "segments in any order": {
        "segment_ids": (
            np.arange(192).reshape(2, 96) // 16 % 3,
            np.arange(260).reshape(2, 130) // 32 % 2,
        )
    },
}
SIZES = Sizes(queries=96, keys=130, block_q=16, block_k=32)


def truth(call, options):
    """Who sees whom, in whole tiles [batch, tall, block_q, wide, block_k]."""
    spec, _, context = call(queries=96, keys=130, **options)
    sees = np.asarray(visibility(spec, context, (2, 1, 96, 130)))[:, 0]
    wide = SIZES.wide * SIZES.block_k
    sees = np.pad(sees, ((0, 0), (0, 0), (0, wide - 130)))
    shape = (2, SIZES.tall, SIZES.block_q, SIZES.wide, SIZES.block_k)
    return spec, context, sees.reshape(shape)


@pytest.mark.parametrize("by_column", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_every_visible_pair_is_visited_and_no_full_tile_hides_one(
    call, name, by_column
):
    spec, context, sees = truth(call, CASES[name])
    table = np.asarray(schedule(spec, context, SIZES, by_column=by_column))
    some, full = sees.any((2, 4)), sees.all((2, 4))
    if by_column:
        some, full = some.swapaxes(1, 2), full.swapaxes(1, 2)
    table = np.broadcast_to(table, (2, *table.shape[1:]))
    assert table.shape == (*some.shape[:2], 4)
    for sample in range(2):
        for line, (lo, full_lo, full_hi, hi) in enumerate(table[sample]):
            assert lo <= full_lo <= full_hi <= hi
            (visible,) = np.nonzero(some[sample, line])
            assert all(lo <= tile < hi for tile in visible)
            assert full[sample, line, full_lo:full_hi].all()
    assert (table[..., 3] - table[..., 0]).max() <= most_steps(
        spec, SIZES, by_column=by_column
    )


EXACT = ("causal", "window", "wide window", "lengths", "sorted segments")


@pytest.mark.parametrize("name", EXACT)
def test_nothing_empty_is_visited_and_nothing_full_is_masked(call, name):
    spec, context, sees = truth(call, CASES[name])
    table = np.asarray(schedule(spec, context, SIZES))
    table = np.broadcast_to(table, (2, *table.shape[1:]))
    count = table[..., 3] - table[..., 0]
    np.testing.assert_array_equal(count, sees.any((2, 4)).sum(2))
    count = table[..., 2] - table[..., 1]
    np.testing.assert_array_equal(count, sees.all((2, 4)).sum(2))


def test_a_window_bounds_the_steps():
    from jaxml.attention.spec import Spec

    long = Sizes(2**20, 2**20, 128, 128)
    assert most_steps(Spec(1.0, left=1000, right=0), long) == 10
    assert most_steps(Spec(1.0, left=None, right=0), long) == 8192


def test_padded_keys_have_an_end(call):
    _, _, context = call(queries=96, keys=130)
    assert limits_of(context, SIZES).num_keys.tolist() == [130]
    assert limits_of(context, SIZES._replace(block_k=65)).num_keys is None
