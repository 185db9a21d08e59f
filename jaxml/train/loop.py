"""The training loop: a function, not a class to subclass."""

import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import FrameType, TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils

from jaxml.export import export
from jaxml.method import Batch, Metrics
from jaxml.metrics.diagnose import diagnose
from jaxml.parallel.multihost import ends_on_peer_loss
from jaxml.train.checkpoint import Checkpoints, KeepBest
from jaxml.train.guard import check_finite, scalars
from jaxml.train.log import Log, Progress
from jaxml.train.run import Run
from jaxml.train.state import TrainState
from jaxml.train.step import Step

Evaluate = Callable[[TrainState], Mapping[str, float]]
"""state -> {name: value}."""


@export("train.fit", since="0.1")
def fit(
    step: Step,
    state: TrainState,
    batches: Iterable[Batch],
    num_steps: int,
    *,
    run: Run | None = None,
    log: Log | None = None,
    log_every: int = 100,
    evaluate: Evaluate | None = None,
    evaluate_every: int | None = None,
    save_every: int = 1000,
    keep_last: int | None = 2,
    keep_best: KeepBest | None = None,
) -> TrainState:
    """Calls `step` until `state.step` reaches `num_steps`.

    With a `run`, reports and checkpoints go to its folder, and a run found there is
    continued: state and data iterator are restored, and what follows is bit for bit what
    an uninterrupted run would have made (on the same devices). SIGTERM and Ctrl-C save a
    checkpoint before the process ends.

    What `jaxml.metrics.diagnose` finds in a report is said when it is first found.

    Write your own loop when this one is not enough: `step` is an ordinary function.

    Args:
        step: from `data_parallel(gradient_step(...), mesh)`, `jax.jit(gradient_step(...))`
            or your own.
        state: the state to begin with; a checkpoint of the run takes its place.
        batches: yields one batch per step. An iterator with `get_state` and `set_state`
            (as `jaxml.data.load` gives) continues at once; any other is read up to the
            step where the run stood.
        num_steps: updates in all, those of earlier sessions included.
        run: the folder to write to; None writes nothing.
        log: called with every report, besides the progress shown and the run's own log.
        log_every: steps between reports.
        evaluate: called every `evaluate_every` steps and at the end; its values are
            reported as well.
        evaluate_every: None evaluates at the end only.
        save_every: steps between checkpoints; the last step is always saved.
        keep_last: how many checkpoints stay; None keeps all.
        keep_best: `("accuracy", "max")` also keeps the best by a value that was reported
            at the very step of the checkpoint; see `Checkpoints`.

    Raises:
        CheckpointError: if the newest checkpoint of the run is damaged or of another
            model (the message says what to do), or one could not be written.
        NonFiniteError: at the first step with a metric that is NaN or infinite, before
            anything of it is saved.
        ValueError: if `batches` ends too early, or no step that is saved reports the
            metric of `keep_best`.
    """
    iterator = iter(batches)
    with (
        _checkpoints(run, keep_last, keep_best) as checkpoints,
        _Interruption() as interruption,
    ):
        if run is not None and checkpoints.latest_step() is not None:
            state, record = checkpoints.restore(state)
            _forward(iterator, record["batches"], int(state.step))
        done = int(state.step)
        if run is not None:
            run.rewind(done)
        logs = ([run.log] if run else []) + ([log] if log else [])

        first = jax.process_index() == 0
        with (
            Progress(done, num_steps, enabled=first) as progress,
            ends_on_peer_loss(),
        ):
            if run is not None and done:
                progress.say(f"{run.path}: continuing at step {done} of {num_steps}")

            known: set[str] = set()

            def report(values: Mapping[str, float]) -> None:
                progress.report(done, values)
                for write in logs:
                    write(done, values)
                for finding in diagnose(values):
                    if finding.name not in known:
                        progress.say(f"step {done}: {finding}")
                        known.add(finding.name)

            unchecked: tuple[int, Metrics, Batch] | None = None
            while done < num_steps:
                batch = next(iterator, None)
                if batch is None:
                    raise ValueError(
                        f"batches ended at step {done}, before num_steps={num_steps}"
                    )
                state, metrics = step(state, batch)
                done += 1
                progress.advance()
                stop = interruption.at(done)
                reports = _is_due(done, log_every, num_steps)
                saves = _is_due(done, save_every, num_steps) or stop is not None
                # One step late, so that the device need not wait for the check.
                if unchecked is not None:
                    check_finite(*unchecked, state.params)
                unchecked = done, metrics, batch
                if reports or saves:
                    check_finite(*unchecked, state.params)
                values = scalars(metrics) if reports or saves else {}
                if reports:
                    report(values)
                    checkpoints.check()
                if evaluate and _is_due(done, evaluate_every, num_steps):
                    evaluated = {k: float(v) for k, v in evaluate(state).items()}
                    report(evaluated)
                    values |= evaluated
                if run is not None and saves:
                    record = {
                        "metrics": values,
                        "batches": _position(iterator),
                        "config": run.config,
                    }
                    checkpoints.save(done, state, record)
                    run.draw()
                    if stop is None:
                        _check_has_best(keep_best, values, done)
                if stop is not None:
                    checkpoints.close()
                    _leave(stop, done, run)
    return state


def _is_due(done: int, every: int | None, num_steps: int) -> bool:
    return done == num_steps or (every is not None and done % every == 0)


def _checkpoints(
    run: Run | None, keep_last: int | None, keep_best: KeepBest | None
) -> Checkpoints:
    directory = run.checkpoints if run is not None else "."
    return Checkpoints(directory, keep_last=keep_last, keep_best=keep_best)


def _check_has_best(
    keep_best: KeepBest | None, values: Mapping[str, float], step: int
) -> None:
    if keep_best is not None and keep_best[0] not in values:
        raise ValueError(
            f"keep_best needs {keep_best[0]!r} at every step that is saved, got "
            f"{', '.join(values) or 'nothing'} at step {step}: let save_every be a "
            "multiple of evaluate_every"
        )


def _position(iterator: Iterator[Batch]) -> Any:
    """Where the iterator stands, as JSON; None if it cannot say."""
    return iterator.get_state() if hasattr(iterator, "get_state") else None


def _forward(iterator: Iterator[Batch], position: Any, num_steps: int) -> None:
    """Moves a fresh iterator to where the run stood."""
    if position is not None and hasattr(iterator, "set_state"):
        iterator.set_state(position)
    else:
        for _ in range(num_steps):
            next(iterator, None)


class _Interruption:
    """Notes SIGTERM and Ctrl-C, so that the loop can leave at a step's end."""

    def __init__(self) -> None:
        self.came: int | None = None  # it may come at any moment
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_Interruption":
        # Only the main thread may set handlers; elsewhere signals stay as they are. Of
        # several processes the runtime watches for SIGTERM: see `at`.
        alone = jax.process_count() == 1
        if alone and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def at(self, step: int) -> int | None:
        """The signal to leave on after this step; all processes get the same answer."""
        if jax.process_count() == 1:
            return self.came
        came = multihost_utils.reached_preemption_sync_point(step)
        return signal.SIGTERM if came else None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.came is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # asked twice: no more waiting
        self.came = number

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _leave(signal_number: int, step: int, run: Run | None) -> None:
    """Ends the process with the code that shells expect after this signal."""
    name = signal.Signals(signal_number).name
    saved = f"{run.path} is saved, the same command continues it" if run else ""
    print(f"{name} at step {step}: {saved or 'nothing was saved'}", flush=True)
    raise SystemExit(128 + signal_number)
