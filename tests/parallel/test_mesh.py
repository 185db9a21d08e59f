"""Meshes, and arrays laid on them."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxml.parallel import data_mesh, replicate, shard_batch


def test_mesh_holds_all_devices_or_those_given():
    assert data_mesh().shape == {"data": 8}
    assert data_mesh(jax.devices()[2:5]).shape == {"data": 3}
    with pytest.raises(ValueError, match="at least one device"):
        data_mesh([])


def test_batch_is_split_in_order(rng):
    mesh = data_mesh(jax.devices()[:4])
    batch = {"image": rng.normal(size=(8, 2)), "nested": {"label": np.arange(8)}}
    placed = shard_batch(batch, mesh)
    assert placed["image"].sharding == NamedSharding(mesh, P("data"))
    for device, shard in enumerate(placed["nested"]["label"].addressable_shards):
        assert shard.data.tolist() == [2 * device, 2 * device + 1]
    assert shard_batch(placed, mesh)["image"] is placed["image"]


@pytest.mark.parametrize("bad", [np.zeros(6), np.float32(1)])
def test_batch_that_does_not_divide_is_refused(bad):
    with pytest.raises(ValueError, match="must divide by the number of devices"):
        shard_batch({"x": bad}, data_mesh(jax.devices()[:4]))


def test_replicate_puts_everything_everywhere(rng):
    tree = {"a": rng.normal(size=(3,)).astype(np.float32)}
    placed = replicate(tree, data_mesh())
    assert len(placed["a"].addressable_shards) == 8
    for shard in placed["a"].addressable_shards:
        np.testing.assert_array_equal(shard.data, tree["a"])
