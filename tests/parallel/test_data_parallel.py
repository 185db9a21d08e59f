"""The step on many devices: one compilation, one reduction, the choice of batch norm."""

import functools
import re
import warnings

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxml.method import Method
from jaxml.nn import BatchNorm
from jaxml.nn.functional import apply_module, init_module
from jaxml.parallel import (
    assert_replicated,
    data_mesh,
    data_parallel,
    pmap_parallel,
    replicate,
)
from jaxml.parallel.data_parallel import program
from jaxml.train import gradient_step, init_state


class Net(nn.Module):
    """Two layers, with batch norm between them if asked."""

    norm: functools.partial | None = None

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Dense(8, use_bias=self.norm is None)(x)
        if self.norm is not None:
            x = self.norm()(x, train=train)
        return nn.Dense(1)(nn.tanh(x))[:, 0]


def regression(norm=None):
    net = Net(norm)

    def init(key, batch):
        return init_module(net, key, batch["x"], train=True)

    def loss(params, model_state, batch, key):
        y, model_state = apply_module(net, params, model_state, batch["x"], train=True)
        value = jnp.mean(jnp.square(y - batch["y"]))
        return value, (model_state, {"loss": value})

    return Method(init, loss, predict=lambda *_: None)


OPTIMIZER = optax.sgd(0.05, momentum=0.9)


@pytest.fixture
def batch(rng):
    x = rng.normal(size=(32, 4)).astype(np.float32)
    return {"x": x, "y": x.sum(1)}


def start(method, batch):
    return init_state(method, OPTIMIZER, jax.random.key(0), batch)


def step_of(method, axis_name="data"):
    return gradient_step(method, OPTIMIZER, jax.random.key(1), axis_name)


@pytest.mark.parametrize("place", ["as made", "one device", "host", "mesh"])
def test_first_state_may_lie_anywhere_and_costs_no_second_compilation(batch, place):
    """Left to jit, the state of the first call has a layout, and a program, of its own."""
    mesh, method = data_mesh(), regression()
    state = start(method, batch)
    if place == "one device":
        state = jax.device_put(state, jax.devices()[3])  # committed to it
    elif place == "host":
        state = jax.device_get(state)
    elif place == "mesh":
        state = replicate(state, mesh)
    traces = []

    def counted(state, batch):
        traces.append(state)
        return step_of(method)(state, batch)

    step = data_parallel(counted, mesh)
    compilations = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compilations.append("backend_compile" in event)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a donated buffer that could not be used
        state, _ = step(state, batch)
        num_compilations = sum(compilations)
        for _ in range(2):
            state, metrics = step(state, batch)
    assert sum(compilations) == num_compilations > 0
    assert len(traces) == 1
    assert int(state.step) == 3
    assert_replicated((state, metrics), mesh)


def test_state_is_donated_and_the_batch_is_not(batch):
    mesh, method = data_mesh(), regression()
    step = data_parallel(step_of(method), mesh)
    state, _ = step(start(method, batch), batch)
    kernel = state.params["Dense_0"]["kernel"]
    step(state, batch)
    assert kernel.is_deleted()
    assert batch["x"].shape == (32, 4)


def test_pmap_form_takes_the_same_steps(batch):
    method, devices = regression(), 4
    mesh = data_mesh(jax.devices()[:devices])
    expected = start(method, batch)
    stacked = jax.tree.map(lambda x: jnp.stack([x] * devices), expected)
    split = jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), batch)
    step, pmapped = (f(step_of(method), mesh) for f in (data_parallel, pmap_parallel))
    for _ in range(3):
        expected, metrics = step(expected, batch)
        stacked, stacked_metrics = pmapped(stacked, split)
    for device in range(devices):
        own = jax.tree.map(lambda x, d=device: x[d], (stacked, stacked_metrics))
        chex.assert_trees_all_close(
            *jax.device_get((own, (expected, metrics))), rtol=1e-6, atol=1e-7
        )


def test_pmap_itself_would_go_wrong(batch):
    """The reason for the form: its devices drift apart."""
    method, devices = regression(), 4
    stacked = jax.tree.map(lambda x: jnp.stack([x] * devices), start(method, batch))
    split = jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), batch)
    after, _ = jax.pmap(step_of(method), axis_name="data")(stacked, split)
    kernel = np.asarray(after.params["Dense_0"]["kernel"])
    assert not np.allclose(kernel[0], kernel[1])


def one_step(norm, norm_of_one, batch):
    state = start(regression(norm_of_one), batch)
    expected = jax.jit(step_of(regression(norm_of_one), None))(state, batch)
    actual = data_parallel(step_of(regression(norm)), data_mesh())(state, batch)
    return jax.device_get(actual), jax.device_get(expected)


def test_shared_batch_norm_is_that_of_the_whole_batch(batch):
    shared = functools.partial(BatchNorm, axis_name="data")
    actual, expected = one_step(shared, functools.partial(BatchNorm), batch)
    chex.assert_trees_all_close(actual, expected, rtol=2e-5, atol=1e-6)


def test_local_batch_norm_is_that_of_each_device(batch):
    """As many groups as devices: each normalises by its own four samples."""
    local = functools.partial(BatchNorm, axis_name="data", num_groups=8)
    actual, expected = one_step(
        local, functools.partial(BatchNorm, num_groups=8), batch
    )
    chex.assert_trees_all_close(actual, expected, rtol=2e-5, atol=1e-6)

    # Told once more by a loop over the devices' parts.
    plain = regression(functools.partial(BatchNorm))
    params, model_state = plain.init(jax.random.key(0), batch)
    parts = [jax.tree.map(lambda x, i=i: x[4 * i : 4 * i + 4], batch) for i in range(8)]
    losses = [plain.loss(params, model_state, p, jax.random.key(0))[0] for p in parts]
    np.testing.assert_allclose(actual[1]["loss"], np.mean(losses), rtol=1e-5)
    shared = plain.loss(params, model_state, batch, jax.random.key(0))[0]
    assert abs(actual[1]["loss"] - shared) > 1e-3


def test_batch_norm_that_forgets_the_axis_is_refused(batch):
    """Its running averages would differ from device to device."""
    forgetful = regression(functools.partial(BatchNorm))
    with pytest.raises(ValueError, match="replication"):
        data_parallel(step_of(forgetful), data_mesh())(start(forgetful, batch), batch)


def all_reduces(text):
    """The numbers in every all-reduce of a compiled program."""
    sizes = {"f32": 4, "s32": 4, "pred": 1}
    for result in re.findall(r"= (.*?) all-reduce(?:-start)?\(", text):
        shapes = re.findall(r"(\w+)\[([\d,]*)\]", result)
        yield sum(
            sizes[kind] * int(np.prod([int(n) for n in dims.split(",") if n]))
            for kind, dims in shapes
        )


def test_gradients_travel_together(batch):
    """XLA's combiner makes the buckets: one reduction for all arrays, and no byte twice."""
    method, mesh = regression(), data_mesh()
    compiled = (
        program(step_of(method), mesh).lower(start(method, batch), batch).compile()
    )
    params = start(method, batch).params
    reductions = list(all_reduces(compiled.as_text()))
    arrays = jax.tree.leaves(params)
    assert len(reductions) == 1 < len(arrays)
    of_metrics = 2 * 4  # the loss twice: what is minimised, and what is reported
    assert 0 <= sum(reductions) - sum(x.nbytes for x in arrays) <= of_metrics


def test_sums_hide_behind_products_on_a_tpu():
    """Compiled for one that is not there: the next layer is multiplied meanwhile."""
    pytest.importorskip("libtpu")
    from jax.experimental import topologies

    from experiments.bench.data_parallel import (
        HIDING,
        Config,
        collectives,
        hidden,
        steps,
    )

    mesh = data_mesh(topologies.get_topology_desc("v5e:2x4", "tpu").devices)
    case = steps(Config(width=4096, layers=4, batch_size=4096), mesh)["data_parallel"]
    options = dict.fromkeys(HIDING, "true")
    text = case.program.lower(*case.shapes).compile(options).as_text()
    assert hidden(text) >= 2
    kinds = [kind for kind, _ in collectives(text)]
    assert set(kinds) == {"all-reduce"}
    assert len(kinds) < 2 * 4 + 2
