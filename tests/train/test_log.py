"""What people and log files see."""

import pytest

from jaxml.train.log import Progress, format_row, print_log


@pytest.mark.parametrize(
    "value, text",
    [
        (0.5, "0.5000"),
        (0.0, "0"),
        (12.0, "12"),
        (1e-5, "1.000e-05"),
        (123456.7, "1.235e+05"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
    ],
)
def test_numbers_stay_readable(value, text):
    assert format_row(3, {"loss": value}) == f"step 3  loss {text}"


def test_print_log_prints_one_line(capsys):
    print_log(7, {"loss": 0.25, "accuracy": 1.0})
    assert capsys.readouterr().out == "step 7  loss 0.2500  accuracy 1\n"


def test_lines_hold_rate_and_time_left(capsys):
    with Progress(0, 100) as progress:
        progress.report(50, {"loss": 1.5})
    line = capsys.readouterr().err
    assert line.startswith("step 50  loss 1.5000  (")
    assert "steps/s" in line
    assert "left)" in line


def test_a_person_gets_a_bar(capsys, monkeypatch):
    monkeypatch.setattr("jaxml.train.log.interactive", lambda: True)
    with Progress(10, 20) as progress:
        for _ in range(10):
            progress.advance()
        progress.report(20, {"loss": 1.5})
        progress.say("a line of its own")
    shown = capsys.readouterr()
    assert "20/20" in shown.err
    assert "loss=1.5" in shown.err
    assert "a line of its own" in shown.out + shown.err


def test_other_processes_say_nothing(capsys):
    with Progress(0, 10, enabled=False) as progress:
        progress.advance()
        progress.report(1, {"loss": 1.0})
        progress.say("hello")
    shown = capsys.readouterr()
    assert shown.out + shown.err == ""
