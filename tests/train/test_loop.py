"""The loop: counting, reporting, continuing exactly, and leaving when told to."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

from jaxml.train import ConfigMismatchError, Run, fit, gradient_step, init_state

ROOT = Path(__file__).parents[2]


@pytest.fixture
def start(method, batches):
    optimizer = optax.adam(0.01)

    def build():
        state = init_state(method, optimizer, jax.random.key(0), next(iter(batches)))
        return jax.jit(gradient_step(method, optimizer, jax.random.key(1))), state

    return build


def test_it_learns(start, batches):
    step, state = start()
    rows = []
    fit(step, state, batches, 1500, log=lambda s, v: rows.append(v["loss"]))
    assert rows[-1] < 1e-3 < rows[0]


def test_reports_and_evaluations_come_when_due(start, batches):
    step, state = start()
    rows = []
    fit(
        step,
        state,
        batches,
        25,
        log=lambda s, v: rows.append((s, *v)),
        log_every=10,
        evaluate=lambda state: {"probe": float(state.step)},
        evaluate_every=20,
    )
    train = ("loss", "grad_norm")
    assert rows == [
        (10, *train),
        (20, *train),
        (20, "probe"),
        (25, *train),
        (25, "probe"),
    ]


def test_progress_is_shown_in_lines(start, batches, capsys):
    step, state = start()
    fit(step, state, batches, 20, log_every=10)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["step 10", "step 20"]


def test_findings_are_said_once(start, batches, capsys):
    step, state = start()

    def collapsed(state, batch):
        state, metrics = step(state, batch)
        return state, {**metrics, "feature_std": jnp.zeros(())}

    fit(collapsed, state, batches, 20, log_every=10)
    said = [s for s in capsys.readouterr().err.splitlines() if "collapse" in s]
    assert said == [
        "step 10: complete collapse: feature_std 0 is below 0.1, all features point "
        "one way"
    ]


def test_batches_that_end_too_early_are_an_error(start, batches):
    step, state = start()
    few = [next(iter(batches))] * 3
    with pytest.raises(ValueError, match="ended at step 3, before num_steps=5"):
        fit(step, state, few, 5)


def test_nothing_is_left_to_do_at_the_end(start, batches, tmp_path):
    step, state = start()
    first = fit(step, state, batches, 5, run=Run(tmp_path))
    step, state = start()
    again = fit(step, state, batches, 5, run=Run(tmp_path))
    chex.assert_trees_all_equal(first, again)


@pytest.mark.parametrize("stream", ["batches", "plain_batches"])
def test_a_continued_run_equals_an_uninterrupted_one(start, stream, tmp_path, request):
    """Seekable or not, the data goes on where it stood; reports are not doubled."""
    batches = request.getfixturevalue(stream)
    step, state = start()
    whole = Run(tmp_path / "whole")
    expected = fit(step, state, batches, 37, run=whole, log_every=5)

    class PowerCutError(Exception):
        pass

    def cut(step, values):
        if step == 25:
            raise PowerCutError

    parts = Run(tmp_path / "parts")
    step, state = start()
    with pytest.raises(PowerCutError):
        fit(step, state, batches, 37, run=parts, log=cut, log_every=5, save_every=10)
    step, state = start()
    actual = fit(step, state, batches, 37, run=Run(tmp_path / "parts"), log_every=5)
    chex.assert_trees_all_equal(actual, expected)
    assert parts.rows() == whole.rows()


def test_another_configuration_is_not_continued(start, batches, tmp_path):
    step, state = start()
    fit(step, state, batches, 5, run=Run(tmp_path, {"rate": 1}))
    with pytest.raises(ConfigMismatchError, match="rate was 1, is 2"):
        Run(tmp_path, {"rate": 2})


def test_the_step_is_compiled_once(method, batches):
    optimizer = optax.sgd(0.1)
    state = init_state(method, optimizer, jax.random.key(0), next(iter(batches)))
    step = gradient_step(method, optimizer, jax.random.key(1))
    fit(jax.jit(chex.assert_max_traces(step, n=1)), state, batches, 10)


PROGRAM = textwrap.dedent(
    """
    import sys, time, jax, optax
    sys.path[:0] = {paths!r}
    from conftest import Batches, regression
    from jaxml.train import Run, fit, gradient_step, init_state

    class Slow:
        def __init__(self, batches):
            self.stream = iter(batches)
        def __iter__(self):
            return self
        def __next__(self):
            time.sleep(0.005)
            return next(self.stream)
        def get_state(self):
            return self.stream.get_state()
        def set_state(self, state):
            self.stream.set_state(state)

    method, optimizer = regression(), optax.adam(0.01)
    batches = Batches()
    state = init_state(method, optimizer, jax.random.key(0), next(iter(batches)))
    step = jax.jit(gradient_step(method, optimizer, jax.random.key(1)))
    fit(step, state, Slow(batches), {num_steps}, run=Run({out!r}), log_every=10,
        save_every=20)
    """
)


def start_program(out, num_steps):
    paths = [str(Path(__file__).parent), str(ROOT)]
    code = PROGRAM.format(paths=paths, out=str(out), num_steps=num_steps)
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_step(process, step):
    for line in process.stdout:
        if (found := re.match(r"step (\d+)", line)) and int(found[1]) >= step:
            return
    pytest.fail(f"the run ended before step {step}")


def test_a_run_killed_again_and_again_ends_the_same(start, batches, tmp_path):
    """kill -9 at moments of no plan; the final state is bit for bit the same."""
    step, state = start()
    expected = fit(step, state, batches, 200)
    for moment, delay in [(10, 0.004), (50, 0.0), (110, 0.017)]:
        process = start_program(tmp_path / "run", 200)
        wait_for_step(process, moment)
        time.sleep(delay)
        process.kill()
        process.wait()
    process = start_program(tmp_path / "run", 200)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "continuing at step" in output
    step, state = start()
    actual = fit(step, state, batches, 200, run=Run(tmp_path / "run"))
    chex.assert_trees_all_equal(actual, expected)
    steps = [row["step"] for row in Run(tmp_path / "run").rows()]
    assert steps == list(range(10, 201, 10))


@pytest.mark.parametrize("name, code", [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_saves_and_leaves(name, code, tmp_path):
    process = start_program(tmp_path / "run", 100_000)
    wait_for_step(process, 10)
    process.send_signal(getattr(signal, name))
    output, _ = process.communicate(timeout=120)
    assert process.returncode == code, output
    left = re.search(rf"{name} at step (\d+): .* is saved", output)
    assert left, output
    assert "Traceback" not in output
    saved = [int(p.name) for p in (tmp_path / "run" / "checkpoints").glob("[0-9]*")]
    assert int(left[1]) in saved


def test_handlers_are_put_back(start, batches):
    before = signal.getsignal(signal.SIGTERM)
    step, state = start()
    fit(step, state, batches, 2)
    assert signal.getsignal(signal.SIGTERM) is before


def test_donated_states_are_fine(method, batches):
    optimizer = optax.sgd(0.1)
    state = init_state(method, optimizer, jax.random.key(0), next(iter(batches)))
    step = jax.jit(
        gradient_step(method, optimizer, jax.random.key(1)), donate_argnums=0
    )
    state = fit(step, state, batches, 5)
    assert jnp.all(jnp.isfinite(state.params["w"]))
