"""Sharded training against replicated training, and what each device holds."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from jaxml.method import Method
from jaxml.nn import ConvNet
from jaxml.parallel import data_mesh, data_parallel
from jaxml.parallel.fsdp import fsdp, fsdp_init, fsdp_sharding, program
from jaxml.ssl import SimCLR, simclr
from jaxml.train import gradient_step, init_state, restore, save


def contrast(axis_name=None):
    backbone = ConvNet((4, 8), axis_name=axis_name)
    return simclr(SimCLR(backbone, (16, 8), axis_name=axis_name), temperature=0.5)


def pairs(rng):
    view1, view2 = rng.uniform(size=(2, 16, 6, 6, 1)).astype(np.float32)
    return {"view1": view1, "view2": view2}


@pytest.mark.parametrize("devices", [2, 8])
@pytest.mark.parametrize(
    "optimizer",
    [
        optax.adam(1e-3),
        optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.05, 0.9)),
        optax.lars(0.05),
    ],
    ids=["adam", "clipped", "lars"],
)
def test_equals_replicated_training(rng, devices, optimizer):
    mesh, batch = data_mesh(jax.devices()[:devices]), pairs(rng)
    step = gradient_step(contrast("data"), optimizer, jax.random.key(1), "data")
    state = init_state(contrast("data"), optimizer, jax.random.key(0), batch)
    replicated, sharded = state, jax.tree.map(jnp.copy, state)
    run_replicated, run_sharded = (
        data_parallel(step, mesh),
        fsdp(step, mesh, min_size=0),
    )
    for _ in range(3):
        replicated, expected = run_replicated(replicated, batch)
        sharded, actual = run_sharded(sharded, batch)
    chex.assert_trees_all_close(
        jax.device_get((sharded, actual)),
        jax.device_get((replicated, expected)),
        rtol=1e-4,
        atol=1e-5,
    )


def test_layout_splits_the_largest_axis_that_divides():
    mesh = data_mesh()
    shapes = {"a": (16, 24), "b": (24, 24), "c": (7, 24), "d": (7, 5), "e": ()}
    tree = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()}
    specs = {k: s.spec for k, s in fsdp_sharding(tree, mesh, min_size=0).items()}
    assert specs == {
        "a": P(None, "data"),
        "b": P("data"),
        "c": P(None, "data"),
        "d": P(),
        "e": P(),
    }
    assert fsdp_sharding(tree, mesh, min_size=500)["a"].spec == P()
    assert fsdp_sharding(tree, mesh, min_size=500)["b"].spec == P("data")


class Wide(nn.Module):
    """Eight equal layers, scanned over and recomputed: one is whole at a time."""

    width: int = 256

    @nn.compact
    def __call__(self, x):
        layer = nn.remat(lambda m, x, _: (nn.relu(nn.Dense(m.width)(x)), None))
        scan = nn.scan(
            layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=8
        )
        return scan(self, x, None)[0]


def regression():
    model = Wide()

    def loss(params, model_state, batch, key):
        y = model.apply({"params": params}, batch["x"])
        value = jnp.mean(jnp.square(y - batch["x"]))
        return value, (model_state, {"loss": value})

    def init(key, batch):
        return model.init(key, batch["x"])["params"], {}

    return Method(init, loss, predict=lambda *_: None)


def test_a_device_holds_its_part_of_the_state_alone(rng):
    method, optimizer = regression(), optax.adam(1e-3)
    batch = {"x": rng.normal(size=(16, 256)).astype(np.float32)}
    init = functools.partial(init_state, method, optimizer)
    step = gradient_step(method, optimizer, jax.random.key(1), "data")
    held = {}
    for devices in (1, 2, 8):
        mesh = data_mesh(jax.devices()[:devices])
        state = fsdp_init(init, mesh)(jax.random.key(0), batch)
        leaves = jax.tree.leaves(state)
        held[devices] = sum(x.addressable_shards[0].data.nbytes for x in leaves)
        memory = program(step, mesh).lower(state, batch).compile().memory_analysis()
        assert memory.argument_size_in_bytes == pytest.approx(held[devices], rel=0.05)
    assert held[2] == pytest.approx(held[1] / 2, rel=0.05)
    assert held[8] == pytest.approx(held[1] / 8, rel=0.05)


def test_checkpoints_move_between_layouts(rng, tmp_path):
    method, optimizer = regression(), optax.adam(1e-3)
    batch = {"x": rng.normal(size=(16, 256)).astype(np.float32)}
    init = functools.partial(init_state, method, optimizer)
    eight, two = (data_mesh(jax.devices()[:n]) for n in (8, 2))
    state = fsdp_init(init, eight)(jax.random.key(0), batch)
    save(tmp_path, state)
    like = fsdp_init(init, two)(jax.random.key(3), batch)
    restored = restore(tmp_path, like)
    chex.assert_trees_all_equal(jax.device_get(restored), jax.device_get(state))
    for leaf, wanted in zip(
        jax.tree.leaves(restored), jax.tree.leaves(like), strict=True
    ):
        assert leaf.sharding == wanted.sharding
