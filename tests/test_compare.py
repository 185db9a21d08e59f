"""Runs side by side: what is read, ordered, written and refused."""

import json

import pytest

from experiments.compare import Config, main


@pytest.fixture
def runs(tmp_path):
    """Two runs that have ended, one of them with two seeds, and one that has not."""
    for name, value in (("one", 0.25), ("two", 0.75)):
        folder = tmp_path / name / ("seed0" if name == "two" else "")
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"num_steps": 7, "rate": 0.5}))
        results = {"pixels/knn": 0.1, "trained/knn": value, "note": "text"}
        (tmp_path / name / "results.json").write_text(json.dumps({"mean": results}))
    (tmp_path / "unfinished").mkdir()
    return tmp_path


def test_the_best_run_comes_first(runs, capsys):
    rows = main(Config((runs / "one", runs / "two", runs / "unfinished")))
    assert list(rows) == ["two", "one"]
    assert rows["one"] == {"pixels/knn": 0.1, "trained/knn": 0.25}
    out, err = capsys.readouterr()
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in out.split("\n")
    ]
    assert lines[0] == ["run", "num_steps", "batch_size", "pixels/knn", "trained/knn"]
    assert lines[2] == ["two", "7", "", "0.1", "0.75"]
    assert err == f"{runs / 'unfinished'}: no results yet\n"


def test_columns_unit_and_order_can_be_chosen(runs, capsys):
    paths = (runs / "two", runs / "one")
    config = Config(paths, fields=("rate",), only=("trained",), percent=True)
    assert main(config) == {"two": {"trained/knn": 75}, "one": {"trained/knn": 25}}
    assert "pixels" not in capsys.readouterr().out
    assert list(main(Config(paths, sort="pixels/knn"))) == ["two", "one"]


def test_nested_results_are_flattened(runs):
    (runs / "one" / "results.json").write_text('{"a": {"x": 1}, "b": {"x": 2}}')
    assert main(Config((runs / "one",))) == {"one": {"a/x": 1, "b/x": 2}}


def test_a_picture_is_drawn(runs):
    main(Config((runs / "one", runs / "two"), out=runs / "bars.png"))
    assert (runs / "bars.png").read_bytes().startswith(b"\x89PNG")


def test_refuses_what_it_cannot_compare(runs):
    with pytest.raises(ValueError, match="must hold results"):
        main(Config((runs / "unfinished",)))
    with pytest.raises(
        ValueError, match=r"sort must be one of .*trained/knn, got loss"
    ):
        main(Config((runs / "one",), sort="loss"))
    (runs / "one" / "results.json").write_text("{")
    with pytest.raises(ValueError, match=r"results\.json is damaged"):
        main(Config((runs / "one",)))
