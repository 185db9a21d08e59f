"""Split expressions against TFDS's own reading of them."""

import itertools

import hypothesis
import pytest
from hypothesis import strategies as st

from jaxml.data.splits import Slice, parse_split

SIZES = {"train": 1437, "test": 360, "train-extra.2": 10}


@pytest.mark.parametrize(
    "expression, expected",
    [
        ("train", [("train", 0, 1437)]),
        ("train[:1000]", [("train", 0, 1000)]),
        ("train[1000:]", [("train", 1000, 1437)]),
        ("train[:]", [("train", 0, 1437)]),
        ("train[-100:-50]", [("train", 1337, 1387)]),
        ("train[10%:20%]", [("train", 144, 287)]),
        ("train[:0.5%]", [("train", 0, 7)]),
        ("train[-25%:]", [("train", 1078, 1437)]),
        ("train[1_0:2_0]", [("train", 10, 20)]),
        ("train[10:50%]", [("train", 10, 718)]),
        (" train [ :5 ] + test ", [("train", 0, 5), ("test", 0, 360)]),
        ("train[:3]+train[-3:]", [("train", 0, 3), ("train", 1434, 1437)]),
        ("train-extra.2[5:]", [("train-extra.2", 5, 10)]),
    ],
)
def test_expressions(expression, expected):
    assert parse_split(expression, SIZES) == tuple(Slice(*e) for e in expected)


bounds = st.none() | st.integers(-60, 60)


@hypothesis.settings(deadline=None)
@hypothesis.given(bounds, bounds, st.booleans(), st.integers(1, 60))
def test_slices_are_those_of_tfds(start, stop, percent, size):
    from tensorflow_datasets.core import splits as tfds

    unit = "%" if percent else ""
    text = [f"{b}{unit}" if b is not None else "" for b in (start, stop)]
    expression = f"train[{text[0]}:{text[1]}]"
    info = {"train": tfds.SplitInfo("train", shard_lengths=[size], num_bytes=0)}
    try:
        their = tfds._rel_to_abs_instr(
            tfds.ReadInstruction("train", start, stop, "%" if percent else "abs"),
            info,
        )
    except ValueError:
        their = None
    expected = None
    if their is not None:
        first, last = their.from_ or 0, size if their.to is None else their.to
        expected = (first, last) if first < last else None
    if expected is None:
        with pytest.raises(ValueError, match="got 'train"):
            parse_split(expression, {"train": size})
    else:
        assert parse_split(expression, {"train": size}) == (Slice("train", *expected),)


@hypothesis.given(st.integers(1, 3000), st.lists(st.integers(1, 99), min_size=1))
def test_neighbours_share_no_sample(size, cuts):
    cuts = sorted({0, 100, *cuts})
    covered = []
    for low, high in itertools.pairwise(cuts):
        try:
            (part,) = parse_split(f"a[{low}%:{high}%]", {"a": size})
        except ValueError:
            continue  # it rounds to nothing
        covered += range(part.start, part.stop)
    assert covered == list(range(size))


@pytest.mark.parametrize(
    "expression, message",
    [
        ("valid", "must be one of train, test, train-extra.2, got 'valid'"),
        ("train[:2000]", r"train has 1437 samples, got 'train\[:2000\]'"),
        ("train[-2000:]", "train has 1437 samples"),
        ("train[5:5]", r"must select a sample, got 'train\[5:5\]'"),
        ("train[9:3]", "must select a sample"),
        ("train[:5", "must read like"),
        ("train[5]", "must read like"),
        ("train[1:2:3]", "must read like"),
        ("", "must read like"),
        ("train+", "must read like"),
        ("train[a:]", "whole number or per cent, got 'a'"),
        ("train[1.5:]", "whole number or per cent, got '1.5'"),
        ("train[:--3]", "whole number or per cent"),
    ],
)
def test_bad_expressions(expression, message):
    with pytest.raises(ValueError, match=message):
        parse_split(expression, SIZES)


def test_endless_splits_go_on():
    assert parse_split("a[5:99]", {"a": 10}, endless=True) == (Slice("a", 5, 99),)
    with pytest.raises(ValueError, match="a has 10 samples"):
        parse_split("a[-11:]", {"a": 10}, endless=True)
