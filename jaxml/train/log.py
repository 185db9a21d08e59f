"""What a run tells: a progress bar for people, plain lines for log files.

Progress goes to standard error as a tqdm bar when it is a terminal or notebook, and as one
line per report otherwise, each with rate and time left.
"""

import math
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from jaxml.export import export

Log = Callable[[int, Mapping[str, float]], None]
"""(step, {name: value}) -> None."""


@export("train.print_log", since="0.1")
def print_log(step: int, values: Mapping[str, float]) -> None:
    """One line: `step 100  loss -0.8123  accuracy 0.9410`."""
    print(format_row(step, values), flush=True)


def format_row(step: int, values: Mapping[str, float]) -> str:
    """`step 100  loss -0.8123`; four significant digits where four decimals say less."""
    words = [f"{k} {_number(v)}" for k, v in values.items()]
    return "  ".join([f"step {step}", *words])


def _number(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e9:
        return str(int(value))
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e4 else f"{value:.3e}"


class Progress:
    """Shows how far a run is; used as a `with` block.

    Args:
        start: steps already made.
        total: steps to make in all.
        enabled: False says nothing (other processes than the first).
    """

    def __init__(self, start: int, total: int, enabled: bool = True) -> None:
        self._enabled = enabled
        self._total = total
        self._bar = _bar(start, total) if enabled and interactive() else None
        self._since = (start, time.monotonic())

    def advance(self) -> None:
        """One more step was made."""
        if self._bar is not None:
            self._bar.update(1)

    def report(self, step: int, values: Mapping[str, float]) -> None:
        """Shows the newest values."""
        if self._bar is not None:
            self._bar.set_postfix({k: _number(v) for k, v in values.items()})
        elif self._enabled:
            self.say(format_row(step, values) + self._pace(step))

    def say(self, line: str) -> None:
        """A line of its own, which stays."""
        if self._bar is not None:
            self._bar.write(line)
        elif self._enabled:
            print(line, file=sys.stderr, flush=True)

    def _pace(self, step: int) -> str:
        before, then = self._since
        now = time.monotonic()
        self._since = (step, now)
        if step <= before:
            return ""
        rate = (step - before) / max(now - then, 1e-9)
        left = (self._total - step) / rate
        return f"  ({rate:.1f} steps/s, {_duration(left)} left)"

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()


def interactive() -> bool:
    """Whether a person watches: a terminal or a notebook."""
    if sys.stderr.isatty():
        return True
    shell = sys.modules.get("IPython") and sys.modules["IPython"].get_ipython()
    return hasattr(shell, "kernel")


def _bar(start: int, total: int) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tqdm's hint to install notebook widgets
        from tqdm.auto import tqdm

        return tqdm(initial=start, total=total, unit="step", dynamic_ncols=True)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{seconds:02d}s" if minutes else f"{seconds}s"
