"""The state in pieces: the same steps as with copies, in 1/N of the memory."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxml.compose import accumulated, augmented
from jaxml.method import Method
from jaxml.nn import ConvNet
from jaxml.parallel import (
    data_mesh,
    data_parallel,
    fsdp,
    fsdp_init,
    fsdp_sharding,
    replicate,
)
from jaxml.parallel.data_parallel import program as data_parallel_program
from jaxml.parallel.fsdp import program
from jaxml.ssl import SimCLR, simclr
from jaxml.train import gradient_step, init_state, restore, save


@pytest.mark.parametrize(
    "devices, shape, spec",
    [
        (8, (), P()),
        (8, (7,), P()),
        (8, (8,), P("data")),
        (8, (0, 8), P()),
        (8, (16, 24), P(None, "data")),  # the largest
        (8, (24, 15), P("data")),  # the largest that divides
        (8, (9, 25, 16, 15), P(None, None, "data")),
        (8, (16, 16), P("data")),  # the first of equals
        (3, (16, 24), P(None, "data")),
        (3, (16, 25), P()),
        (1, (5, 3), P("data")),
    ],
)
def test_layout_of_an_array(devices, shape, spec):
    mesh = data_mesh(jax.devices()[:devices])
    tree = {"x": jax.ShapeDtypeStruct(shape, jnp.float32)}
    (sharding,) = jax.tree.leaves(fsdp_sharding(tree, mesh, min_size=0))
    assert sharding == NamedSharding(mesh, spec)


def test_small_arrays_are_on_every_device():
    mesh = data_mesh()
    layout = fsdp_sharding([np.zeros((8, 8)), np.zeros((8, 9))], mesh, min_size=72)
    assert [sharding.spec for sharding in layout] == [P(), P("data")]
    default = fsdp_sharding([np.zeros((8, 8191)), np.zeros((8, 8192))], mesh)
    assert [sharding.spec for sharding in default] == [P(), P(None, "data")]


def mlp():
    net = nn.Sequential([nn.Dense(32), nn.tanh, nn.Dense(16), nn.tanh, nn.Dense(1)])

    def loss(params, model_state, batch, key):
        value = jnp.mean(jnp.square(net.apply(params, batch["x"])[:, 0] - batch["y"]))
        return value, (model_state, {"loss": value})

    return Method(lambda key, b: (net.init(key, b["x"]), {}), loss, lambda *_: None)


@pytest.fixture
def batch(rng):
    x = rng.normal(size=(32, 8)).astype(np.float32)
    return {"x": x, "y": x.sum(1)}


def both(build, optimizer, batch, num_steps=3):
    """State and metrics after some steps with copies, and with pieces."""
    mesh, method = data_mesh(), build("data")
    step = gradient_step(method, optimizer, jax.random.key(1), "data")
    init = functools.partial(init_state, method, optimizer)
    copies = init(jax.random.key(0), batch)
    pieces = fsdp_init(init, mesh, min_size=16)(jax.random.key(0), batch)
    with_copies, with_pieces = data_parallel(step, mesh), fsdp(step, mesh, min_size=16)
    for _ in range(num_steps):
        copies, expected = with_copies(copies, batch)
        pieces, metrics = with_pieces(pieces, batch)
    return (pieces, metrics), (copies, expected)


def assert_same(actual, expected):
    chex.assert_trees_all_close(
        *jax.device_get((actual, expected)), rtol=1e-5, atol=1e-5
    )


def assert_in_pieces(state, mesh, min_size):
    layout = fsdp_sharding(state, mesh, min_size=min_size)
    for x, sharding in zip(*map(jax.tree.leaves, (state, layout)), strict=True):
        assert x.sharding.is_equivalent_to(sharding, x.ndim)
    largest = max(jax.tree.leaves(state), key=np.size)
    assert largest.addressable_shards[0].data.size * mesh.size == largest.size


OPTIMIZERS = {
    "adam": optax.adam(0.01),
    "lamb": optax.chain(optax.clip_by_global_norm(0.1), optax.lamb(0.01)),
    "lars": optax.lars(0.1, weight_decay=1e-3, momentum=0.9),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_are_those_of_data_parallel(batch, name):
    """Norms over all arrays, and over each, are those of the whole arrays."""
    pieces, copies = both(lambda axis: mlp(), OPTIMIZERS[name], batch)
    assert_same(pieces, copies)
    assert_in_pieces(pieces[0], data_mesh(), 16)


def two_views(key, image):
    noise1, noise2 = 0.1 * jax.random.normal(key, (2, *image.shape))
    return {"view1": image + noise1, "view2": image + noise2}


@pytest.mark.parametrize("k", [1, 2])
def test_simclr_with_batch_norm_contrast_and_random_views(rng, k):
    """All that looks across devices, in one method; and in micro-batches."""
    batch = {"image": rng.uniform(size=(32, 4, 4, 1)).astype(np.float32)}

    def build(axis):
        model = SimCLR(ConvNet([8], axis_name=axis), widths=(16, 8), axis_name=axis)
        return accumulated(augmented(simclr(model), two_views, axis), k, axis)

    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.05, 0.9))
    pieces, copies = both(build, optimizer, batch, num_steps=2)
    assert_same(pieces, copies)
    assert_in_pieces(pieces[0], data_mesh(), 16)


LAYERS, WIDTH = 16, 64


def deep():
    """A model that is large, and scans over its layers."""

    def init(key, batch):
        return {"layers": jax.random.normal(key, (LAYERS, WIDTH, WIDTH)) / 8}, {}

    def loss(params, model_state, batch, key):
        @functools.partial(jax.checkpoint, prevent_cse=False)
        def layer(x, kernel):
            return jnp.tanh(x @ kernel), None

        y, _ = jax.lax.scan(layer, batch["x"], params["layers"])
        value = jnp.mean(jnp.square(y))
        return value, (model_state, {"loss": value})

    return Method(init, loss, lambda *_: None)


def abstract(build, optimizer, batch):
    init = functools.partial(init_state, build(), optimizer)
    return jax.eval_shape(init, jax.random.key(0), batch)


def laid_out(tree, layout):
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, layout
    )


def memory(compiled):
    analysis = compiled.memory_analysis()
    return analysis.argument_size_in_bytes, analysis.temp_size_in_bytes


def test_memory_of_a_step_falls_with_the_number_of_devices():
    """From the compiled step: what a device keeps, and what it needs besides."""
    batch, optimizer = {"x": np.zeros((8, WIDTH), np.float32)}, optax.adam(0.01)
    state = abstract(deep, optimizer, batch)
    num_bytes = sum(x.size * 4 for x in jax.tree.leaves(state))
    step = gradient_step(deep(), optimizer, jax.random.key(1), "data")
    kept, needed = {}, {}
    for devices in (1, 2, 8):
        mesh = data_mesh(jax.devices()[:devices])
        spread = laid_out(state, fsdp_sharding(state, mesh, min_size=4096))
        compiled = program(step, mesh, min_size=4096).lower(
            spread, laid_out(batch, {"x": NamedSharding(mesh, P("data"))})
        )
        kept[devices], needed[devices] = memory(compiled.compile())
        assert kept[devices] < 1.02 * num_bytes / devices + 4096
    whole = needed[1]
    one_layer = 4 * WIDTH * WIDTH
    assert needed[2] < 0.6 * whole
    assert needed[8] < whole / 8 + 4 * one_layer

    copies = data_parallel_program(step, data_mesh()).lower(state, batch).compile()
    assert memory(copies)[0] > num_bytes
    assert needed[8] + kept[8] < sum(memory(copies)) / 4


def test_initial_state_is_never_whole_on_a_device():
    mesh, optimizer = data_mesh(), optax.adam(0.01)
    batch, key = {"x": np.zeros((8, WIDTH), np.float32)}, jax.random.key(0)
    init = functools.partial(init_state, deep(), optimizer)
    state = fsdp_init(init, mesh, min_size=4096)(key, batch)
    assert_in_pieces(state, mesh, 4096)
    chex.assert_trees_all_close(
        jax.device_get(state), jax.device_get(init(key, batch)), rtol=1e-6
    )
    layout = fsdp_sharding(jax.eval_shape(init, key, batch), mesh, min_size=4096)
    compiled = jax.jit(init, out_shardings=layout).lower(key, batch).compile()
    analysis = compiled.memory_analysis()
    params = 4 * LAYERS * WIDTH * WIDTH
    assert analysis.output_size_in_bytes < 1.02 * 3 * params / 8
    assert analysis.temp_size_in_bytes < params / 2


def test_checkpoint_goes_from_any_layout_to_any_other(tmp_path, batch):
    """Eight devices in pieces to four, to one copy each, and back; then the same step."""
    optimizer, method = OPTIMIZERS["adam"], mlp()
    init = functools.partial(init_state, method, optimizer)
    step = gradient_step(method, optimizer, jax.random.key(1), "data")
    eight, four = data_mesh(), data_mesh(jax.devices()[:4])
    state = fsdp_init(init, eight, min_size=16)(jax.random.key(0), batch)
    state, _ = fsdp(step, eight, min_size=16)(state, batch)
    expected = jax.device_get(state)
    save(tmp_path / "pieces", state)

    on_four = fsdp_init(init, four, min_size=16)(jax.random.key(7), batch)
    copies = replicate(init(jax.random.key(8), batch), eight)
    for like in (on_four, copies):
        restored = restore(tmp_path / "pieces", like)
        chex.assert_trees_all_equal(jax.device_get(restored), expected)
        for x, wanted in zip(*map(jax.tree.leaves, (restored, like)), strict=True):
            assert x.sharding.is_equivalent_to(wanted.sharding, x.ndim)
    save(tmp_path / "copies", restore(tmp_path / "pieces", copies))
    back = restore(tmp_path / "copies", state)
    assert_in_pieces(back, eight, 16)
    after = fsdp(step, four, min_size=16)(restore(tmp_path / "pieces", on_four), batch)
    assert_same(after, fsdp(step, eight, min_size=16)(back, batch))


@pytest.mark.parametrize("place", ["one device", "copies", "host"])
def test_state_that_lies_elsewhere_is_laid_out(batch, place):
    mesh, method, optimizer = data_mesh(), mlp(), OPTIMIZERS["adam"]
    state = init_state(method, optimizer, jax.random.key(0), batch)
    if place == "copies":
        state = replicate(state, mesh)
    elif place == "host":
        state = jax.device_get(state)
    else:
        state = jax.device_put(state, jax.devices()[2])
    traces = []

    def counted(state, batch):
        traces.append(state)
        return gradient_step(method, optimizer, jax.random.key(1), "data")(state, batch)

    step = fsdp(counted, mesh, min_size=16)
    for _ in range(2):
        state, _ = step(state, batch)
    assert_in_pieces(state, mesh, 16)
    assert len(traces) == 1


def test_step_without_an_axis_runs_as_well(batch):
    optimizer = OPTIMIZERS["adam"]
    step = gradient_step(mlp(), optimizer, jax.random.key(1))
    state = init_state(mlp(), optimizer, jax.random.key(0), batch)
    expected = jax.jit(step)(state, batch)
    assert_same(fsdp(step, data_mesh(), min_size=16)(state, batch), expected)


def test_batch_that_does_not_divide_is_refused(batch):
    odd = jax.tree.map(lambda x: x[:30], batch)
    step = fsdp(gradient_step(mlp(), optax.sgd(0.1), jax.random.key(1)), data_mesh())
    state = init_state(mlp(), optax.sgd(0.1), jax.random.key(0), odd)
    with pytest.raises(ValueError, match="divide by the number of devices"):
        step(state, odd)
