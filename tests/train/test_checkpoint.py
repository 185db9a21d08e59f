"""Checkpoints: what is saved comes back, and what does not fit is refused."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxml.parallel import data_mesh, replicate
from jaxml.train import (
    CheckpointError,
    Checkpoints,
    init_state,
    latest_step,
    restore,
    save,
)


@pytest.fixture
def state(method, batches):
    state = init_state(method, optax.adam(0.1), jax.random.key(0), next(iter(batches)))
    return jax.tree.map(lambda x: x + jnp.asarray(3, x.dtype), state)


def test_a_state_comes_back_exactly(state, tmp_path):
    save(tmp_path, state)
    assert latest_step(tmp_path) == 3
    restored = restore(tmp_path, jax.tree.map(jnp.zeros_like, state))
    chex.assert_trees_all_equal(restored, state)
    chex.assert_trees_all_equal_dtypes(restored, state)


def test_every_dtype_comes_back(tmp_path):
    values = np.arange(5)
    state = {
        str(d): jnp.asarray(values, d)
        for d in ("float32", "bfloat16", "float16", "int8", "uint32", "bool")
    }
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        restored, _ = checkpoints.restore(state)
    chex.assert_trees_all_equal(restored, state)
    chex.assert_trees_all_equal_dtypes(restored, state)


def test_record_and_versions_come_back(state, tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {"batches": {"position": 12}})
        _, record = checkpoints.restore(state)
    assert record["batches"] == {"position": 12}
    assert record["versions"]["jax"] == jax.__version__


def test_the_newest_stay(state, tmp_path):
    with Checkpoints(tmp_path, keep_last=2) as checkpoints:
        for step in (1, 2, 3, 4):
            checkpoints.save(step, state)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [3, 4]
        with pytest.raises(CheckpointError, match=r"step 1 .*only steps \[3, 4\]"):
            checkpoints.restore(state, 1)


def test_saves_in_quick_succession_are_all_kept(state, tmp_path):
    with Checkpoints(tmp_path, keep_last=None) as checkpoints:
        for step in range(5):
            checkpoints.save(step, state)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [0, 1, 2, 3, 4]


def test_it_lands_on_the_devices_of_the_template(state, tmp_path):
    save(tmp_path, replicate(state, data_mesh(jax.devices()[:4])))
    template = replicate(state, data_mesh(jax.devices()[:2]))
    restored = restore(tmp_path, template)
    chex.assert_trees_all_equal(jax.device_get(restored), jax.device_get(state))
    for leaf, like in zip(
        jax.tree.leaves(restored), jax.tree.leaves(template), strict=True
    ):
        assert leaf.sharding == like.sharding


def test_nothing_saved_is_an_error(state, tmp_path):
    assert latest_step(tmp_path / "absent") is None
    assert not (tmp_path / "absent").exists()
    with pytest.raises(CheckpointError, match=r"no checkpoint .*found none"):
        restore(tmp_path / "absent", state)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda p: {**p, "w": jnp.zeros(4)}, r"'w'\] has shape \(3,\), not \(4,\)"),
        (lambda p: {**p, "extra": jnp.zeros(2)}, r"'extra'\] is missing"),
        (lambda p: {"w": p["w"]}, r"'b'\] is left over"),
    ],
)
def test_another_model_is_refused_by_name(state, tmp_path, change, message):
    save(tmp_path, state)
    other = type(state)(
        state.step, change(state.params), state.model_state, state.opt_state
    )
    with pytest.raises(CheckpointError, match=message):
        restore(tmp_path, other)


def test_an_unfinished_checkpoint_is_never_read(state, tmp_path):
    save(tmp_path, state)
    unfinished = tmp_path / "9.orbax-checkpoint-tmp"
    unfinished.mkdir()
    (unfinished / "state").mkdir()
    assert latest_step(tmp_path) == 3
    restore(tmp_path, state)
