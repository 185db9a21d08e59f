"""Curves: what is read from a log, and what a reader then sees."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxml.draw import COLOURS, read_curves, save_curves
from jaxml.draw.curves import _moving_mean, _spread


def texts(path):
    """What stands in an SVG: matplotlib notes each text beside its outline."""
    lines = path.read_text("utf-8").splitlines()
    return [line.strip()[5:-4] for line in lines if line.strip().startswith("<!-- ")]


def columns_with(picture, colour):
    """Which pixel columns hold the colour, about."""
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    near = np.abs(np.asarray(picture).astype(int) - rgb).max(axis=2) < 40
    return near.any(axis=0)


def test_a_log_becomes_curves_and_a_picture(tmp_path):
    rows = [
        {"step": 2, "loss": 0.5, "note": "text", "done": None},
        {"step": 0, "loss": 2, "accuracy": math.nan},
        {"step": 2, "loss": 0.25},  # a resumed run says it again
        {"step": 4, "accuracy": 0.75},
    ]
    log = tmp_path / "metrics.jsonl"
    log.write_text("\n".join(map(json.dumps, rows)) + '\n{"step": 6, "lo')
    curves = read_curves(log)
    assert set(curves) == {"loss", "accuracy", "done"}
    np.testing.assert_array_equal(curves["loss"], [[0, 2], [2, 0.25]])
    np.testing.assert_array_equal(curves["accuracy"], [[0, 4], [np.nan, 0.75]])
    np.testing.assert_array_equal(curves["done"], [[2], [np.nan]])
    assert list(read_curves(log, ["loss"])) == ["loss"]
    save_curves(tmp_path / "c.svg", curves)
    shown = texts(tmp_path / "c.svg")
    assert {"loss", "accuracy", "no finite value", "step"} <= set(shown)


def test_logs_that_are_none_are_errors(tmp_path):
    log = tmp_path / "metrics.jsonl"
    for bad in ('{"loss": 1}', "[1]", "nonsense", "3"):
        log.write_text(f'{bad}\n{{"step": 1, "loss": 1}}\n')
        with pytest.raises(ValueError, match=r"line 1 of .* must be a JSON object"):
            read_curves(log)
    log.write_text('{"step": 1, "loss": 1}\n{"loss": 1}\n')
    with pytest.raises(ValueError, match=r"line 2 of .* with a step"):
        read_curves(log)
    log.write_text('{"step": 1, "loss": 1}\n')
    with pytest.raises(ValueError, match="must hold acc, got no such value"):
        read_curves(log, ["loss", "acc"])


def test_names_share_the_panel_after_the_slash(tmp_path):
    steps = np.arange(40)
    curves = {"train/loss": (steps, 1 + steps), "test/loss": (steps, 2 + steps)}
    curves["lr"] = (steps, 0.1 * np.ones(40))
    save_curves(tmp_path / "c.svg", curves, title="a run", xlabel="update")
    shown = texts(tmp_path / "c.svg")
    assert shown.count("loss") == shown.count("lr") == shown.count("a run") == 1
    assert {"train 40", "test 41", "0.1"} <= set(shown)
    assert shown.count("update") == 2  # below each of the two panels
    save_curves(tmp_path / "one.svg", curves, ylabel="all")
    shown = texts(tmp_path / "one.svg")
    assert {"all", "train/loss 40", "test/loss 41", "lr 0.1"} <= set(shown)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_leave_a_gap(bad):
    steps, values = np.arange(300), np.ones(300)
    whole = columns_with(save_curves(None, {"x": (steps, values)}), COLOURS[0])
    values[100:200] = bad
    broken = columns_with(save_curves(None, {"x": (steps, values)}), COLOURS[0])
    line = np.flatnonzero(whole)
    low, high = np.quantile(line, [0.4, 0.55]).astype(int)
    assert whole[low:high].all()
    assert not broken[low:high].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_the_name_stands_at_the_last_finite_value(tmp_path, bad):
    curves = {"a run": ([0, 1, 2], [1.0, 0.5, bad])}
    save_curves(tmp_path / "c.svg", curves, ylabel="loss")
    assert "a run 0.5" in texts(tmp_path / "c.svg")


def test_a_value_between_two_gaps_is_seen():
    values = np.full(300, np.nan)
    values[[*range(100), 200]] = 1
    values[250:] = 1
    picture = save_curves(None, {"x": (range(300), values)})
    seen = np.pad(columns_with(picture, COLOURS[0]).astype(int), 1)
    assert (np.diff(seen) == 1).sum() == 4  # line, dot, line, and the mark of its name


def test_logarithms_take_what_is_positive(tmp_path):
    curve = (np.arange(4), np.array([1e-3, 0.0, -1.0, 10.0]))
    save_curves(tmp_path / "c.svg", {"x": curve}, log_y=True)
    assert {"0.01", "1", "10"} <= set(texts(tmp_path / "c.svg"))


def moving_mean_numpy(values, window):
    n, out = len(values), []
    for i in range(n):
        reach = min(window // 2, i, n - 1 - i)
        near = values[i - reach : i + reach + 1]
        out.append(np.nan if np.isnan(values[i]) else np.nanmean(near))
    return np.array(out)


@pytest.mark.parametrize("window", [1, 2, 5, 100])
def test_the_moving_mean_matches_loops(rng, window):
    values = rng.normal(size=23)
    values[[0, 7, 8, 22]] = np.nan
    np.testing.assert_allclose(
        _moving_mean(values, window), moving_mean_numpy(values, window)
    )


def test_the_moving_mean_keeps_straight_lines():
    line = 3 - 0.5 * np.arange(50)
    np.testing.assert_allclose(_moving_mean(line, 9), line)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=11))
def test_names_keep_their_order_and_their_distance(heights):
    placed = _spread(heights, 0.085)
    order = np.argsort(heights, kind="stable")
    gaps = np.diff(np.array(placed)[order])
    assert (gaps >= 0.085 - 1e-9).all()
    assert min(placed) >= -1e-9
    assert max(placed) <= 1 + 1e-9
    if len(heights) == 1:
        assert placed == heights


def test_bad_curves_are_errors():
    with pytest.raises(ValueError, match="at least one curve, got none"):
        save_curves(None, {})
    with pytest.raises(ValueError, match=r"x must have as many .* \(3,\) and \(2,\)"):
        save_curves(None, {"x": ([0, 1, 2], [1, 2])})
    with pytest.raises(ValueError, match="x must have as many steps as values"):
        save_curves(None, {"x": ([], [])})
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        save_curves(None, {"x": ([0], [1])}, window=0)
