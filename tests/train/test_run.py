"""The folder of a run: agreement of configurations, reports, pictures."""

import dataclasses
import enum
import json
from pathlib import Path

import pytest

from jaxml.train import ConfigMismatchError, Run


class Kind(enum.Enum):
    A = "a"


@dataclasses.dataclass(frozen=True)
class Config:
    rate: float = 0.1
    sizes: tuple[int, ...] = (1, 2)
    kind: Kind = Kind.A
    out: Path = Path("here")


def test_config_is_written_and_the_same_one_accepted(tmp_path):
    Run(tmp_path / "run", Config())
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored == {"rate": 0.1, "sizes": [1, 2], "kind": "Kind.A", "out": "here"}
    Run(tmp_path / "run", Config(out=Path("elsewhere")))  # where it lies may change


def test_another_config_is_refused_and_the_difference_named(tmp_path):
    Run(tmp_path / "run", Config())
    with pytest.raises(ConfigMismatchError, match=r"rate was 0.1, is 0.2\. Give"):
        Run(tmp_path / "run", Config(rate=0.2))
    with pytest.raises(ConfigMismatchError, match=r"new was '\(absent\)', is 1"):
        Run(tmp_path / "run", {**dataclasses.asdict(Config()), "new": 1})


def test_reports_are_rows_and_can_be_rewound(tmp_path):
    run = Run(tmp_path / "run")
    for step in (1, 2, 3):
        run.log(step, {"loss": 1 / step})
    run.rewind(2)
    assert run.rows() == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}]


def test_a_row_cut_short_is_left_out(tmp_path):
    run = Run(tmp_path / "run")
    run.log(1, {"loss": 1.0})
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "lo')
    assert run.rows() == [{"step": 1, "loss": 1.0}]
    run.rewind(5)
    run.log(3, {"loss": 0.5})
    assert [row["step"] for row in run.rows()] == [1, 3]


def test_curves_are_drawn(tmp_path):
    run = Run(tmp_path / "run")
    run.draw()  # nothing yet: no picture
    assert not (tmp_path / "run" / "curves.png").exists()
    for step in (1, 2, 3):
        run.log(step, {"loss": 1 / step, "accuracy": step / 3})
    run.draw()
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")
