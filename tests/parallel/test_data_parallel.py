"""One step on many devices: split batches, checked replication, one compilation."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.parallel import data_mesh, data_parallel, pmean
from jaxml.parallel.data_parallel import pmap_parallel


def step(state, batch):
    """Moves `w` by the mean of the batch: a sum would be off by the devices."""
    mean = pmean(jnp.mean(batch["x"], axis=0), "data")
    return {"w": state["w"] + mean}, {"size": jnp.asarray(len(batch["x"]))}


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_the_step_sees_its_part_and_the_state_is_shared(rng, devices):
    x = rng.normal(size=(16, 3)).astype(np.float32)
    run = data_parallel(step, data_mesh(jax.devices()[:devices]))
    state, metrics = run({"w": jnp.ones(3)}, {"x": x})
    chex.assert_trees_all_close(state["w"], 1 + x.mean(0), rtol=1e-5)
    assert metrics["size"] == 16 // devices


def test_it_is_compiled_once_wherever_the_state_began(rng):
    run = data_parallel(chex.assert_max_traces(step, n=1), data_mesh())
    state = {"w": jnp.ones(3)}
    for _ in range(3):
        state, _ = run(state, {"x": rng.normal(size=(16, 3)).astype(np.float32)})


def test_a_state_that_differs_between_devices_is_refused(rng):
    def forgets_to_average(state, batch):
        return {"w": state["w"] + jnp.mean(batch["x"], axis=0)}, {}

    run = data_parallel(forgets_to_average, data_mesh())
    with pytest.raises(ValueError, match=r"replicat|varying|out_specs"):
        run({"w": jnp.ones(3)}, {"x": np.ones((16, 3), np.float32)})


def test_the_form_for_pmap_does_the_same(rng):
    x = rng.normal(size=(16, 3)).astype(np.float32)
    run = pmap_parallel(step, data_mesh())
    state = {"w": jnp.ones((8, 3))}
    state, _ = run(state, {"x": x.reshape(8, 2, 3)})
    expected = np.broadcast_to(1 + x.mean(0), (8, 3))
    chex.assert_trees_all_close(state["w"], expected, rtol=1e-5)
