"""Methods beside a peer's: pairs, their errors, verdicts, and the lines of a table."""

import numpy as np
import pytest

from experiments.trees.beside import Found, Pair, beside, lines, score
from experiments.trees.tables import judge, parts


class Settings:
    tables, methods, folds, seeds, data_dir = ("diabetes",), ("mean",), 3, (4, 5), None


def found(losses, accuracies):
    each = [{"loss": a, "accuracy": b} for a, b in zip(losses, accuracies, strict=True)]
    return Found({0: each[:2], 1: each[2:]}, each)


def test_the_error_is_that_of_the_differences():
    ours = found([0.2, 0.3, 0.4, 0.9], [0.9, 0.8, 0.7, 0.5])
    theirs = found([0.3, 0.3, 0.6, 1.0], [0.9, 0.9, 0.9, 0.9])
    pairs = beside(ours, theirs)
    loss, accuracy = pairs["loss"], pairs["accuracy"]
    assert (loss.ours, loss.theirs) == pytest.approx((0.45, 0.55))
    assert (loss.first, loss.their_first) == pytest.approx((0.25, 0.3))
    assert loss.ahead == pytest.approx(0.1)  # a lower loss is a better one
    spread = np.std([0.1, 0.0, 0.2, 0.1], ddof=1) / 2
    assert loss.error == pytest.approx(spread)
    assert accuracy.ahead == pytest.approx(-0.175)
    assert (loss.verdict, accuracy.verdict) == ("ahead", "worse")
    table = lines("a_forest", pairs).splitlines()
    assert table[0].split()[:5] == ["a", "forest", "loss", "0.4500", "0.5500"]
    assert table[1].split()[3:8] == ["72.50", "90.00", "-17.50", "+-", "8.54"]


@pytest.mark.parametrize(
    ("ahead", "error", "verdict"),
    [
        (-0.01, 0.011, "met"),
        (0.01, 0.011, "met"),
        (-0.01, 0.009, "worse"),
        (0.01, 0.009, "ahead"),
        (-1e-5, 0.0, "met"),  # less than what is printed
    ],
)
def test_verdicts(ahead, error, verdict):
    assert Pair(0, 0, ahead, error, 0, 0).verdict == verdict


def test_every_split_of_every_seed_is_scored():
    seen = []

    def mean(table, method, split, seed):
        seen.append((table, method, seed))
        return np.full(len(split[2]), split[1].mean())

    result = score("diabetes", "mean", mean, Settings)
    assert {seed: len(each) for seed, each in result.whole.items()} == {4: 3, 5: 3}
    assert len(result.parts) == 6
    assert len({seed for *_, seed in seen}) == 6
    assert all(70 < each["rmse"] < 85 for each in result.parts)


def test_parts_have_the_same_mix_and_all_rows():
    y = np.repeat([0, 1], [40, 10])
    found = parts(y, 5)
    assert sorted(np.concatenate(found)) == list(range(50))
    assert [int(y[part].sum()) for part in found] == [2] * 5


def test_shares_are_judged_as_shares():
    told = np.array([[2.0, 2.0], [1.0, 3.0]])
    scores = judge(told, np.array([0, 1]))
    expected = -(np.log(0.5) + np.log(0.75)) / 2
    assert scores["loss"] == pytest.approx(expected)
    assert (scores["accuracy"], scores["auc"]) == (1.0, 1.0)
    assert judge(np.array([1.0, 4.0]), np.array([1.0, 1.0])) == {
        "rmse": pytest.approx(np.sqrt(4.5))
    }
