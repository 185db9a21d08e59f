"""The inspector shows what is there, and sees what is wrong."""

import runpy
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import inspect
from experiments.inspect import Config, main
from jaxml.train import Checkpoints


def state(shift=0.0):
    return {
        "params": {
            "encoder": {"w": jnp.arange(12.0).reshape(3, 4) + shift, "b": jnp.ones(4)},
            "head": jnp.array([1.0, jnp.nan, jnp.inf, 3.0], jnp.bfloat16),
        },
        "step": jnp.int32(5),
    }


@pytest.fixture
def run(tmp_path):
    """A run's folder with checkpoints of steps 4 and 5, of which 5 differs a little."""
    record = {
        "metrics": {"loss": 0.123456, "knn": 0.9},
        "config": {"rate": 1e-4, "widths": [1, 2], "deep": {"er": None}},
        "batches": "x" * 200,
    }
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        checkpoints.save(4, state())
        checkpoints.save(5, state(shift=0.5), record)
    return tmp_path / "run"


def shown(capsys):
    """Every line as words."""
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def test_the_record_and_every_array_are_shown(run, capsys):
    assert main(Config(run))
    lines = shown(capsys)
    assert lines[0][0] == f"{run}/checkpoints/5:"
    assert lines[0][-1] == "sound"
    for expected in (
        ["loss", "0.1235"],
        ["rate", "0.0001"],
        ["widths", "[1,", "2]"],
        ["er", "None"],
        ["batches", "x" * 80 + "..."],
        ["numbers", "size", "norm", "mean", "std", "min", "max", "not", "finite"],
        ["params/", "20", "72", "B"],
        ["encoder/", "16", "64", "B"],
        ["b", "float32[4]", "16", "B", "2", "1", "0", "1", "1"],
        ["w", "float32[3,4]", "48", "B", "23.98", "6", "3.452", "0.5", "11.5"],
        ["head", "bfloat16[4]", "8", "B", "3.162", "2", "1", "1", "3", "2"],
        ["step", "int32[]", "4", "B", "5", "5", "0", "5", "5"],
        ["all", "21", "76", "B"],
    ):
        assert expected in lines


def test_columns_are_aligned(run, capsys):
    main(Config(run, only="params"))
    table = capsys.readouterr().out.split("\n\n")[1].splitlines()
    assert len(table) == 7
    column = table[0].index("numbers")
    assert all(line[column - 1] == " " != line[column] for line in table)
    ends = [len(line) for line in table if "float32" in line]
    assert len(set(ends)) == 1


def test_step_and_branch_can_be_chosen(run, capsys):
    assert main(Config(run, step=4, only="params/encoder/w"))
    lines = shown(capsys)
    assert lines[0][0] == f"{run}/checkpoints/4:"
    rows = [line for line in lines if "float32[3,4]" in line]
    assert rows == [
        ["w", "float32[3,4]", "48", "B", "22.49", "5.5", "3.452", "0", "11"]
    ]


@pytest.mark.parametrize("verify", [True, False])
def test_damage_is_shown_beside_the_arrays(run, verify, capsys):
    path = run / "checkpoints" / "5" / "params" / "commit_success.txt"
    path.write_text("shorter")
    assert main(Config(run / "checkpoints" / "5", verify=verify)) is not verify
    lines = shown(capsys)
    assert lines[0][-1] == ("DAMAGED" if verify else "checked")
    told = [line for line in lines if line[:1] == ["params/commit_success.txt"]]
    assert [line[1:4] for line in told] == [["has", "7", "bytes,"]] * verify
    assert ["all", "21", "76", "B"] in lines


def test_differences_are_shown(run, capsys):
    assert not main(Config(run, compare=run / "checkpoints" / "4"))
    lines = shown(capsys)
    norm = np.linalg.norm(np.arange(12) + 0.5)
    for expected in (
        ["w", "float32[3,4]", "0.5", f"{np.sqrt(3) / norm:.4g}"],
        ["b", "float32[4]", "none"],
        ["head", "bfloat16[4]", "none"],  # NaN equals itself here
        ["1", "of", "4", "arrays", "differ"],
    ):
        assert expected in lines
    assert main(Config(run, compare=run))
    assert ["0", "of", "4", "arrays", "differ"] in shown(capsys)


def test_other_shapes_and_names_are_differences(run, tmp_path, capsys):
    other = {
        "params": {"encoder": {"w": jnp.zeros((3, 5)), "new": jnp.ones(2)}},
        "step": jnp.int32(5),
    }
    with Checkpoints(tmp_path / "other") as checkpoints:
        checkpoints.save(1, other)
    assert not main(Config(run, compare=tmp_path / "other"))
    lines = shown(capsys)
    for expected in (
        ["w", "float32[3,4]", "float32[3,5]", "there"],
        ["new", "float32[2]", "only", "there"],
        ["b", "float32[4]", "only", "here"],
        ["step", "int32[]", "none"],
    ):
        assert expected in lines


def test_large_checkpoints_are_read_in_groups(run, capsys, monkeypatch):
    main(Config(run))
    whole = capsys.readouterr().out
    read = []
    original = inspect.storage.read

    def counted(folder, like):
        read.append(list(like))
        return original(folder, like)

    monkeypatch.setattr(inspect.storage, "read", counted)
    monkeypatch.setattr(inspect, "AT_ONCE", 20)
    monkeypatch.setattr(inspect, "PIECE", 5)
    main(Config(run))
    assert capsys.readouterr().out == whole
    assert sorted(map(len, read)) == [1, 1, 2]


def test_it_is_a_command_with_a_status(run, capsys, monkeypatch):
    def status(*arguments):
        monkeypatch.setattr(sys, "argv", ["inspect", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            runpy.run_path(inspect.__file__, run_name="__main__")
        return exit.value.code

    assert status(run) == 0
    assert "float32[3,4]" in capsys.readouterr().out
    assert status(run, "--compare", run / "checkpoints" / "4") == 1
    assert status(run, "--step", 7).startswith("no checkpoint of step 7")


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (999, "999"), (1000, "1 k"), (1234567, "1.235 M"), (5e15, "5000 T")],
)
def test_amounts(count, text):
    assert inspect.amount(int(count)) == text
