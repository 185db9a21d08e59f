"""How a checkpoint lies on disk: parts, and arrays read one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.train import CheckpointError, Checkpoints, TrainState, storage


@pytest.fixture
def folder(tmp_path, rng):
    state = TrainState(
        jnp.int32(3),
        {"w": rng.normal(size=(40, 50)).astype(np.float32), "none": jnp.zeros((0, 2))},
        {},
        [jnp.ones(4, jnp.bfloat16)],
    )
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state, {"note": "ü"})
    return tmp_path / "3"


def test_each_part_has_a_folder(folder):
    names = {path.name for path in folder.iterdir()}
    assert {"params", "opt_state", "state", "record", "CHECKSUMS"} <= names
    assert "model_state" not in names  # nothing is in it
    assert storage.read_record(folder)["note"] == "ü"


def test_shapes_are_read_without_arrays(folder):
    for path in (folder / "params").rglob("d/*"):
        if path.stat().st_size > 1000:
            path.unlink()
    assert storage.read_shapes(folder) == {
        "params/w": jax.ShapeDtypeStruct((40, 50), jnp.float32),
        "opt_state/0": jax.ShapeDtypeStruct((4,), jnp.bfloat16),
        "step": jax.ShapeDtypeStruct((), jnp.int32),
    }
    like = {"opt_state/0": np.zeros(4, np.float32)}
    (found,) = storage.read(folder, like).values()
    np.testing.assert_array_equal(found, np.ones(4, np.float32), strict=True)
    with pytest.raises(CheckpointError, match="3/params could not be read"):
        storage.read(folder, {"params/w": np.zeros((40, 50), np.float32)})


def test_arrays_come_in_the_order_asked_for(folder):
    shapes = storage.read_shapes(folder)
    wanted = {name: shapes[name] for name in ("step", "params/w")}
    wanted["params/none"] = jax.ShapeDtypeStruct((0, 2), jnp.float32)
    found = storage.read(folder, wanted)
    assert list(found) == ["step", "params/w", "params/none"]
    assert [x.shape for x in found.values()] == [(), (40, 50), (0, 2)]


def test_a_folder_that_is_no_checkpoint_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="could not be read: FileNotFoundError"):
        storage.read_record(tmp_path)
