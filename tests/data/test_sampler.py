"""The sampler against a stream of epochs written out, on any number of processes."""

import itertools
from collections import Counter

import chex
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxml.data.sampler import Sampler, permutation

cases = st.fixed_dictionaries(
    {
        "num_samples": st.integers(1, 40),
        "local": st.integers(1, 7),
        "process_count": st.integers(1, 4),
        "seed": st.sampled_from([0, 1, 2**64 - 1]),
        "shuffle": st.booleans(),
        "repeat": st.booleans(),
        "drop_remainder": st.sampled_from([None, False, True]),
    }
)


def order_numpy(num_samples, seed, epoch):
    """Sorts one random number per sample, keeping as many bits as the index leaves."""
    raw = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(
        num_samples
    )
    drawn = raw << np.uint64(num_samples.bit_length())
    return np.argsort(drawn, kind="stable")


def stream_numpy(case, batch_size, num_epochs):
    """Epoch after epoch as one list; None is padding."""
    n, stream = case["num_samples"], []
    pads = case["drop_remainder"] is False or (
        case["drop_remainder"] is None and not case["repeat"]
    )
    for epoch in range(num_epochs):
        order = order_numpy(n, case["seed"], epoch) if case["shuffle"] else range(n)
        order = list(map(int, order))
        if case["drop_remainder"]:
            del order[n - n % batch_size :]
        if pads:
            order += [None] * (-n % batch_size)
        stream += order
    return stream


def make(case, process_index=0, process_count=1):
    case = dict(case)
    batch_size = case.pop("local") * case.pop("process_count")
    return Sampler(
        batch_size=batch_size,
        process_index=process_index,
        process_count=process_count,
        **case,
    )


@hypothesis.settings(deadline=None, max_examples=200)
@hypothesis.given(cases)
def test_batches_match_the_stream_on_any_number_of_processes(case):
    count = case["process_count"]
    batch_size = case["local"] * count
    if case["drop_remainder"] and case["num_samples"] < batch_size:
        with pytest.raises(ValueError, match="full batch"):
            make(case)
        return
    stream = stream_numpy(case, batch_size, 3 if case["repeat"] else 1)
    one = make(case)
    steps = len(stream) // batch_size
    assert one.num_batches == (None if case["repeat"] else steps)
    for step in range(steps):
        expected = stream[step * batch_size : (step + 1) * batch_size]
        parts = [make(case, p, count)(step) for p in range(count)]
        chex.assert_shape([a for part in parts for a in part], (case["local"],))
        indices, mask = map(np.concatenate, zip(*parts, strict=True))
        assert mask.tolist() == [i is not None for i in expected]
        assert indices[mask].tolist() == [i for i in expected if i is not None]
        assert set(indices.tolist()) <= set(range(case["num_samples"]))
        chex.assert_trees_all_equal(one(step), (indices, mask))
    if not case["repeat"]:
        with pytest.raises(IndexError, match=f"step must lie in \\[0, {steps}\\)"):
            one(steps)


@pytest.mark.parametrize("num_samples, batch_size", [(10, 4), (8, 4), (3, 7), (1, 2)])
def test_every_epoch_holds_every_sample_once(num_samples, batch_size):
    carried = Sampler(num_samples, batch_size)
    drawn = np.concatenate([carried(t)[0] for t in range(num_samples)])
    epochs = drawn.reshape(batch_size, num_samples)  # n batches of B are B epochs of n
    chex.assert_trees_all_equal(
        np.sort(epochs), np.tile(np.arange(num_samples), (batch_size, 1))
    )
    padded = Sampler(num_samples, batch_size, repeat=False)
    indices, masks = zip(*map(padded, range(padded.num_batches)), strict=True)
    counted = np.concatenate(indices)[np.concatenate(masks)]
    assert Counter(counted.tolist()) == Counter(range(num_samples))


def test_dropping_leaves_out_other_samples_every_epoch():
    sampler = Sampler(10, 4, drop_remainder=True)
    epochs = [
        np.concatenate([sampler(2 * e)[0], sampler(2 * e + 1)[0]]) for e in range(9)
    ]
    assert all(len(set(epoch.tolist())) == 8 for epoch in epochs)
    assert set().union(*epochs) == set(range(10))
    assert len({frozenset(epoch.tolist()) for epoch in epochs}) > 1


def test_any_step_is_as_near_as_the_first():
    far = 10**12
    sampler = Sampler(7, 3, process_index=1, process_count=3)
    epoch, offset = divmod(far * 3 + 1, 7)
    assert sampler(far)[0].tolist() == [permutation(7, 0, epoch)[offset]]


def test_permutation_is_uniform():
    counts = Counter(tuple(permutation(4, 5, e).tolist()) for e in range(4800))
    assert set(counts) == set(itertools.permutations(range(4)))
    # chi-square with 23 degrees of freedom; 1 in 1000 is beyond 49.7
    assert sum((c - 200) ** 2 / 200 for c in counts.values()) < 49.7


@pytest.mark.parametrize("num_samples", [1, 2, 3, 4, 255, 256, 257, 70_000])
def test_permutation_has_every_sample_and_depends_on_seed_and_epoch(num_samples):
    order = permutation(num_samples, 3, 4)
    chex.assert_trees_all_equal(np.sort(order), np.arange(num_samples))
    assert order.dtype == np.int64
    assert not order.flags.writeable
    if num_samples > 200:
        for other in [(4, 4), (3, 5), (4, 3)]:
            agree = np.mean(order == permutation(num_samples, *other))
            assert agree < 0.05


def test_permutation_stays_the_same_for_ever():
    """Made with NumPy 2.4.6: `permutation(12, 7, 2).tolist()`."""
    assert permutation(12, 7, 2).tolist() == GOLDEN


GOLDEN = [6, 8, 4, 9, 1, 11, 2, 5, 7, 3, 10, 0]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_samples": 0}, "num_samples must be positive, got 0"),
        ({"batch_size": 0}, "batch_size must be positive, got 0"),
        ({"process_count": 3}, "must divide .* got 4 and 3"),
        ({"process_count": 2, "process_index": 2}, r"lie in \[0, 2\), got 2"),
        ({"process_index": -1}, r"lie in \[0, 1\), got -1"),
        ({"seed": -1}, "seed must lie in .* got -1"),
        ({"seed": 2**64}, "seed must lie in"),
        ({"num_samples": 3, "drop_remainder": True}, "got 3 samples and batch_size 4"),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        Sampler(**{"num_samples": 10, "batch_size": 4, **change})


def test_negative_step():
    with pytest.raises(IndexError, match="got -1"):
        Sampler(10, 4)(-1)
