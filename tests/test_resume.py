"""A whole run (augmentation, SimCLR, data order), killed and started again.

Beside `tests/train/test_loop.py`, which kills a tiny regression more often.
"""

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import chex
import jax
import pytest

from jaxml.train import restore
from tests.simclr_program import build

PROGRAM = Path(__file__).with_name("simclr_program.py")
NUM_STEPS = 30


def start(out, num_steps=NUM_STEPS, devices=1, step_seconds=0.0):
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), str(out), str(num_steps)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "DEVICES": str(devices),
            "STEP_SECONDS": str(step_seconds),
            "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        },
    )


def finish(process):
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output[-3000:]
    return output


def final_state(out):
    _, template, _ = build()
    state = restore(out / "checkpoints", template)
    assert state.step == NUM_STEPS
    return jax.device_get(state)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    finish(start(out))
    return final_state(out)


def test_a_killed_run_ends_with_the_same_bits(uninterrupted, tmp_path):
    """kill -9 a moment after a random step, twice; then to the end."""
    out, chance = tmp_path / "run", random.Random()
    for first in (5, 15):
        step = 5 * chance.randint(first // 5, first // 5 + 1)
        process = start(out, step_seconds=0.05)
        for line in process.stdout:
            if (found := re.match(r"step (\d+)", line)) and int(found[1]) >= step:
                break
        process.kill()
        process.wait()
    assert "continuing at step" in finish(start(out))
    chex.assert_trees_all_equal(final_state(out), uninterrupted)


def test_a_run_goes_on_with_another_number_of_devices(uninterrupted, tmp_path):
    out = tmp_path / "run"
    finish(start(out, num_steps=20))
    assert "continuing at step 20" in finish(start(out, devices=4))
    chex.assert_trees_all_close(final_state(out), uninterrupted, rtol=1e-3, atol=1e-4)
