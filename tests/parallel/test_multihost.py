"""Real processes on this machine: they train as one, and tell who was lost."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import chex
import jax
import pytest

from jaxml.parallel import initialize
from jaxml.parallel.multihost import EXIT_CODE, parse_address
from jaxml.train import restore
from tests.simclr_program import build

PROGRAM = Path(__file__).parents[1] / "simclr_program.py"
NUM_STEPS = 30


def free_address():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def start(out, count, step_seconds=0.0):
    """Starts the processes of one run; their output goes to files beside it."""
    address, processes = free_address(), []
    for i in range(count):
        where = [f"{address},{i}/{count}"] if count > 1 else []
        with open(f"{out}.{i}.log", "w") as log:
            processes.append(
                subprocess.Popen(
                    [sys.executable, str(PROGRAM), str(out), str(NUM_STEPS), *where],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={
                        **os.environ,
                        "JAX_PLATFORMS": "cpu",
                        "STEP_SECONDS": str(step_seconds),
                    },
                )
            )
    return processes


def finish(out, processes, timeout=240):
    for i, process in enumerate(processes):
        code = process.wait(timeout)
        assert code == 0, Path(f"{out}.{i}.log").read_text()[-3000:]


def final_state(out):
    """The last checkpoint, read onto the devices of this process."""
    _, template, _ = build()
    state = restore(out / "checkpoints", template)
    assert state.step == NUM_STEPS
    return jax.device_get(state)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    out = tmp_path_factory.mktemp("one") / "run"
    finish(out, start(out, 1))
    return final_state(out)


@pytest.mark.parametrize("count", [2, 4])
def test_processes_train_to_the_parameters_of_one(count, one_process, tmp_path):
    out = tmp_path / "run"
    finish(out, start(out, count))
    chex.assert_trees_all_close(final_state(out), one_process, rtol=1e-3, atol=1e-4)
    progress = [Path(f"{out}.{i}.log").read_text() for i in range(count)]
    assert "step 30" in progress[0]
    assert all("step 30" not in text for text in progress[1:])  # the first one speaks


@pytest.mark.parametrize("victim", [0, 1])
def test_a_lost_process_is_named_and_the_run_goes_on(victim, one_process, tmp_path):
    out = tmp_path / "run"
    processes = start(out, 2, step_seconds=0.5)
    log = Path(f"{out}.0.log")
    deadline = time.monotonic() + 200
    while not list((out / "checkpoints").glob("[0-9]*0")):
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.1)
    processes[victim].kill()
    survivor = 1 - victim
    code = processes[survivor].wait(60)
    text = Path(f"{out}.{survivor}.log").read_text()
    assert code == EXIT_CODE, text[-3000:]
    assert f"process {survivor}: lost process {victim} of 2" in text
    assert "continue from the last checkpoint" in text

    finish(out, start(out, 2))
    assert re.search(r"continuing at step \d+", log.read_text())
    chex.assert_trees_all_close(final_state(out), one_process, rtol=1e-3, atol=1e-4)


def test_a_preempted_run_saves_together_and_goes_on(one_process, tmp_path):
    """SIGTERM to one process: all leave after the same step, with a checkpoint of it."""
    out = tmp_path / "run"
    processes = start(out, 2, step_seconds=0.5)
    log = Path(f"{out}.0.log")
    deadline = time.monotonic() + 200
    while "step 5 " not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.1)
    processes[1].terminate()
    assert [p.wait(60) for p in processes] == [143, 143]
    left = re.search(r"SIGTERM at step (\d+): .* is saved", log.read_text())
    assert left, log.read_text()
    assert (out / "checkpoints" / left[1]).is_dir()
    finish(out, start(out, 2))
    chex.assert_trees_all_close(final_state(out), one_process, rtol=1e-3, atol=1e-4)


DIFFERENT_STARTS = """
import sys
import jax, numpy as np
from jaxml import parallel
parallel.initialize(sys.argv[1])
mine = {"a": np.arange(3.0, dtype="f"), "b": np.full(2, jax.process_index(), "f")}
mesh = parallel.data_mesh()
sent = parallel.replicate(mine, mesh, broadcast=True)
print("everybody has", float(jax.numpy.sum(sent["b"])))
print("mine was", float(jax.numpy.sum(parallel.replicate({"a": mine["a"]}, mesh)["a"])))
try:
    parallel.replicate(mine, mesh)
except ValueError as error:
    print("refused:", error)
"""


def test_processes_must_start_from_one_state():
    address = free_address()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", DIFFERENT_STARTS, f"{address},{i}/2"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            cwd=Path(__file__).parents[2],
        )
        for i in range(2)
    ]
    for text in [process.communicate(timeout=120)[0] for process in processes]:
        assert "everybody has 0.0" in text
        assert "mine was 3.0" in text
        assert "refused: ['b'] must be the same on all devices, got" in text


@pytest.mark.parametrize(
    "where, parsed",
    [
        ("10.0.0.1:1234,0/2", ("10.0.0.1:1234", 0, 2)),
        ("[::1]:99,3/4", ("[::1]:99", 3, 4)),
    ],
)
def test_addresses_are_read(where, parsed):
    assert parse_address(where) == parsed


@pytest.mark.parametrize(
    "where", ["", "host", "host:1", "host:x,0/2", "host:1,0", ":1,0/2", "h:1,a/2"]
)
def test_bad_addresses_are_refused(where):
    with pytest.raises(ValueError, match=r'must be "auto" or "HOST:PORT,ID/COUNT"'):
        initialize(where)


def test_a_process_beyond_the_count_is_refused():
    with pytest.raises(ValueError, match="numbered from 0 to 1, got 2"):
        initialize("host:1,2/2")


def test_nothing_happens_without_an_address():
    initialize(None)
    assert jax.process_count() == 1
