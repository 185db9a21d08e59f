"""A method in half precision: what is cast, what is not, and how near it stays."""

from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from jaxml.compose import Merge, accumulated, average
from jaxml.method import Method
from jaxml.nn import ConvNet
from jaxml.parallel import data_mesh, data_parallel, pmean
from jaxml.precision import (
    DynamicLossScale,
    Policy,
    StaticLossScale,
    assert_float32_ops,
    mixed_precision,
    policy,
)
from jaxml.ssl import SimSiam, simsiam
from jaxml.train import gradient_step, init_state

HALVES = {"mixed_float16": np.float16, "mixed_bfloat16": ml_dtypes.bfloat16}


def regression(seen=None, axis_name=None):
    """Least squares; `seen` is told the dtypes that the method is given."""

    def init(key, batch):
        shapes = batch["x"].shape[1], batch["y"].shape[1]
        params = {"w": jax.random.normal(key, shapes), "b": jnp.zeros(shapes[1])}
        zeros = jnp.zeros(shapes[0])
        state = {"mean": zeros, "count": jnp.zeros((), int), "teacher": params}
        return params, jax.tree.map(jnp.copy, state)

    def dtypes(**trees):
        if seen is not None:
            seen.append(jax.tree.map(lambda x: x.dtype.name, trees))

    def forward(params, x):
        return x @ params["w"] + params["b"][None]

    def loss(params, model_state, batch, key):
        dtypes(params=params, state=model_state, batch=dict(batch))
        error = forward(params, batch["x"]).astype(jnp.float32) - batch["y"]
        value = jnp.mean(jnp.square(error)).astype(batch["x"].dtype)
        mean = 0.9 * model_state["mean"].astype(batch["x"].dtype)
        mean += 0.1 * pmean(jnp.mean(batch["x"], axis=0), axis_name)
        count = model_state["count"] + 1
        state = {**model_state, "mean": mean, "count": count}
        return value, (state, {"loss": value})

    def predict(params, model_state, batch):
        dtypes(params=params, state=model_state, batch=dict(batch))
        return {"y": forward(params, batch["x"]), "index": jnp.arange(len(batch["x"]))}

    def after_update(params, model_state, step):
        dtypes(params=params, state=model_state)
        teacher = jax.tree.map(
            lambda t, p: (0.9 * t + 0.1 * p).astype(jnp.float32),
            model_state["teacher"],
            params,
        )
        widened = jax.tree.map(lambda p: p.astype(jnp.float32), params)
        return widened, {**model_state, "teacher": teacher}

    return Method(init, loss, predict, after_update)


def make_batch(rng, size=16):
    x = rng.normal(size=(size, 6)).astype(np.float32)
    y = (x @ rng.normal(size=(6, 3)) + 1).astype(np.float32)
    return {"x": x, "y": y, "label": np.arange(size)}


def names(params="float32", x="float32", **more):
    """The dtypes of a regression whose state is as it was made."""
    one = {"w": params, "b": params}
    state = {
        "mean": "float32",
        "count": "int32",
        "teacher": dict.fromkeys("wb", "float32"),
    }
    return {
        "params": one,
        "state": state,
        "batch": {"x": x, "y": x, "label": "int32"},
    } | more


@pytest.mark.parametrize(
    "name", ["float32", "mixed_float16", "mixed_bfloat16", "pure_bfloat16"]
)
def test_dtypes_inside_and_outside(rng, name):
    """Parameters and inputs go in as computed; state goes in and out as it was made."""
    seen, chosen, batch = [], policy(name), make_batch(rng)
    method = mixed_precision(regression(seen), chosen)
    params, state = method.init(jax.random.key(0), batch)
    assert {p.dtype for p in jax.tree.leaves(params)} == {chosen.param_dtype}
    assert state["mean"].dtype == state["teacher"]["w"].dtype == jnp.float32

    half = chosen.compute_dtype.name
    (value, (after, metrics)), grads = jax.value_and_grad(method.loss, has_aux=True)(
        params, state, jax.tree.map(jnp.asarray, batch), jax.random.key(1)
    )
    assert seen.pop() == names(half, half)
    assert value.dtype == metrics["loss"].dtype == chosen.output_dtype
    chex.assert_trees_all_equal_shapes_and_dtypes(grads, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)

    outputs = method.predict(params, state, jax.tree.map(jnp.asarray, batch))
    assert seen.pop() == names(half, half)
    assert outputs["y"].dtype == chosen.output_dtype
    assert outputs["index"].dtype == jnp.int32

    updated, after = method.after_update(params, state, jnp.int32(0))
    stored = names(chosen.param_dtype.name)
    assert seen.pop() == {"params": stored["params"], "state": stored["state"]}
    chex.assert_trees_all_equal_shapes_and_dtypes((updated, after), (params, state))


@pytest.mark.parametrize("name", HALVES)
def test_the_gradient_is_that_of_the_rounded_problem(rng, name):
    """In float64, at the parameters and inputs that half precision really has."""
    half, batch = HALVES[name], make_batch(rng, 33)

    def loss(params, model_state, batch, key):
        error = (batch["x"] @ params["w"]).astype(jnp.float32) + params["b"][None]
        value = jnp.mean(jnp.square(error - batch["y"].astype(jnp.float32)))
        return value, ({}, {})

    method = mixed_precision(regression()._replace(loss=loss), policy(name))
    params, _ = method.init(jax.random.key(0), batch)
    grads, _ = jax.grad(method.loss, has_aux=True)(params, {}, batch, jax.random.key(1))

    x, y, w, b = (
        np.asarray(a).astype(half).astype(np.float64)
        for a in (batch["x"], batch["y"], params["w"], params["b"])
    )
    error = x @ w + b - y
    expected = {"w": 2 * x.T @ error / error.size, "b": 2 * error.sum(0) / error.size}
    # Half of a unit in the last place for each of the few roundings on the way.
    unit = float(jnp.finfo(half).eps)
    for leaf in "wb":
        scale = np.abs(expected[leaf]).max()
        np.testing.assert_allclose(
            grads[leaf] / scale, expected[leaf] / scale, atol=3 * unit
        )


def views(rng, size=16):
    images = rng.random((size, 6, 6, 3)).astype(np.float32)
    noise = 0.1 * rng.normal(size=images.shape).astype(np.float32)
    return {"view1": images, "view2": images + noise}


def run(method, batch, loss_scale=None, num_steps=3, optimizer=None):
    optimizer = optimizer or optax.chain(
        optax.clip_by_global_norm(0.1), optax.adam(optax.cosine_decay_schedule(0.01, 9))
    )
    state = init_state(method, optimizer, jax.random.key(0), batch, loss_scale)
    step = jax.jit(gradient_step(method, optimizer, jax.random.key(1)))
    for _ in range(num_steps):
        state, metrics = step(state, batch)
    return state, metrics


def small(axis_name=None):
    backbone = ConvNet((4,), axis_name=axis_name)
    return simsiam(SimSiam(backbone, 8, 4, num_projector_layers=2, axis_name=axis_name))


def test_float32_is_bit_for_bit_the_plain_step(rng):
    batch = views(rng)
    plain = run(small(), batch)
    wrapped = run(mixed_precision(small(), policy("float32")), batch)
    chex.assert_trees_all_equal(wrapped, plain)


def test_a_power_of_two_changes_nothing_in_float32(rng):
    """Clipped, scheduled and averaged alike; metrics are those of the true gradient."""
    batch = make_batch(rng)
    plain, expected = run(regression(), batch)
    for scale in (StaticLossScale.create(1024.0), DynamicLossScale.create()):
        state, metrics = run(regression(), batch, scale)
        chex.assert_trees_all_close(replace(state, loss_scale=None), plain, rtol=1e-6)
        named = {k: metrics[k] for k in expected}
        chex.assert_trees_all_close(named, expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["mixed_float16", "pure_bfloat16"])
def test_simsiam_learns_in_half_precision(rng, name):
    """Every parameter moves and nothing widens."""
    batch, chosen = views(rng), policy(name)
    method = mixed_precision(small(), chosen)
    scale = DynamicLossScale.create() if chosen.needs_loss_scale else None
    optimizer = optax.sgd(0.3, 0.9)
    start = init_state(method, optimizer, jax.random.key(0), batch, scale)
    state, metrics = run(method, batch, scale, 60, optimizer)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, start)
    chex.assert_tree_all_finite(state)
    assert metrics["loss"] < -0.8
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), start.params, state.params)
    assert all(jax.tree.leaves(moved)), moved


def test_named_inputs_are_cast_and_no_others(rng):
    seen = []
    method = mixed_precision(
        regression(seen), policy("mixed_bfloat16"), inputs=["x", "label"]
    )
    batch = jax.tree.map(jnp.asarray, make_batch(rng))
    params, state = method.init(jax.random.key(0), batch)
    method.predict(params, state, batch)
    kinds = {"x": "bfloat16", "y": "float32", "label": "int32"}
    assert seen.pop() == names("bfloat16") | {"batch": kinds}


def test_named_inputs_must_be_there(rng):
    method = mixed_precision(
        regression(), policy("mixed_bfloat16"), inputs=["x", "image"]
    )
    batch = make_batch(rng)
    params, state = method.init(jax.random.key(0), batch)
    with pytest.raises(ValueError, match="fields of the batch, label, x, y, got image"):
        method.predict(params, state, batch)


def test_kept_parameters_go_in_as_they_are_stored(rng):
    seen, paths = [], []

    def keep(path):
        paths.append(path)
        return path == "b"

    method = mixed_precision(regression(seen), policy("mixed_bfloat16"), keep=keep)
    batch = jax.tree.map(jnp.asarray, make_batch(rng))
    params, state = method.init(jax.random.key(0), batch)
    method.predict(params, state, batch)
    assert seen.pop()["params"] == {"w": "bfloat16", "b": "float32"}
    assert set(paths) == {"w", "b"}
    nested = regression()._replace(init=lambda *a: ({"head": {"w": 0.0}}, {}))
    paths.clear()
    mixed_precision(
        nested._replace(predict=lambda *a: jnp.ones(1)),
        policy("mixed_bfloat16"),
        keep=keep,
    ).predict({"head": {"w": jnp.ones(1)}}, {}, batch)
    assert paths == ["head/w"]


def test_a_changed_structure_is_an_error(rng):
    batch = make_batch(rng)
    method = regression()

    def loss(params, model_state, batch, key):
        value, (state, metrics) = method.loss(params, model_state, batch, key)
        return value, ({**state, "new": value}, metrics)

    def drop(params, model_state, step):
        return {"w": params["w"]}, model_state

    bad = mixed_precision(
        method._replace(loss=loss, after_update=drop), policy("mixed_bfloat16")
    )
    params, state = bad.init(jax.random.key(0), batch)
    with pytest.raises(ValueError, match=r"model state must keep its structure.*'new'"):
        bad.loss(params, state, batch, jax.random.key(1))
    with pytest.raises(ValueError, match="the parameters must keep its structure"):
        bad.after_update(params, state, jnp.int32(0))


def test_a_policy_of_ones_own(rng):
    seen = []
    method = mixed_precision(regression(seen), Policy("float32", "float16", "bfloat16"))
    batch = jax.tree.map(jnp.asarray, make_batch(rng))
    params, state = method.init(jax.random.key(0), batch)
    value, _ = method.loss(params, state, batch, jax.random.key(1))
    assert seen.pop() == names("float16", "float16")
    assert value.dtype == jnp.bfloat16


def assert_devices_agree(build, batches, devices, tolerance):
    """Scales and skips exactly, states within `tolerance`; returns who skipped."""
    optimizer = optax.sgd(0.05, momentum=0.9)
    scale = DynamicLossScale.create(2.0**10, growth_interval=2)
    plain, shared = build(None), build("data")
    one = init_state(plain, optimizer, jax.random.key(0), batches[0], scale)
    many = jax.tree.map(jnp.copy, one)
    key = jax.random.key(1)
    step_one = jax.jit(gradient_step(plain, optimizer, key))
    step_many = data_parallel(
        gradient_step(shared, optimizer, key, "data"),
        data_mesh(jax.devices()[:devices]),
    )
    skipped = []
    for batch in batches:
        one, metrics_one = step_one(one, batch)
        many, metrics_many = step_many(many, batch)
        skipped.append(int(metrics_one["skipped"]))
        for exact in ("skipped", "loss_scale"):
            assert metrics_one[exact] == metrics_many[exact]
    parts = [(s.params, s.model_state) for s in jax.device_get((many, one))]
    chex.assert_trees_all_close(*parts, rtol=tolerance, atol=tolerance)
    return skipped


def poisoned(batches, field, which):
    """One number of one sample, and so of one device, is beyond float16."""
    batches = [dict(batch) for batch in batches]
    for i in which:
        batches[i][field] = batches[i][field].copy()
        batches[i][field][5].flat[0] = 1e5
    return batches


@pytest.mark.parametrize("name", HALVES)
@pytest.mark.parametrize("devices", [2, 8])
def test_many_devices_take_the_same_step_as_one(rng, name, devices):
    def build(axis_name):
        method = regression(axis_name=axis_name)
        return mixed_precision(method, policy(name), axis_name=axis_name)

    batches = poisoned([make_batch(rng) for _ in range(9)], "x", [2, 3, 6])
    tolerance = 4 * float(jnp.finfo(policy(name).compute_dtype).eps)
    if name == "mixed_bfloat16":  # 1e5 is in its range
        batches = [make_batch(rng) for _ in range(9)]
    skipped = assert_devices_agree(build, batches, devices, tolerance)
    assert skipped == (
        [0, 0, 1, 1, 0, 0, 1, 0, 0] if name == "mixed_float16" else [0] * 9
    )


def test_micro_batches_compose(rng):
    """Accumulation around mixed precision: on eight devices as on one, skips included."""

    def build(axis_name):
        method = regression(axis_name=axis_name)
        method = mixed_precision(method, policy("mixed_float16"), axis_name=axis_name)
        rules = {"mean": average, "count": count}
        return accumulated(method, 2, axis_name, merge=rules)

    count = Merge(lambda old, new, samples: new - old, lambda old, parts: old + 1)
    batches = poisoned([make_batch(rng, 32) for _ in range(4)], "x", [1])
    assert assert_devices_agree(build, batches, 8, 2**-8) == [0, 1, 0, 0]


def test_many_devices_share_batch_statistics(rng):
    """Batch norm gathers over the devices; no statistic keeps the infinity."""

    def build(axis_name):
        method = small(axis_name)
        return mixed_precision(method, policy("mixed_float16"), axis_name=axis_name)

    batches = poisoned([views(rng) for _ in range(5)], "view1", [1, 2])
    skipped = assert_devices_agree(build, batches, 8, 2**-7)
    assert skipped == [0, 1, 1, 0, 0]


@pytest.mark.parametrize("name", HALVES)
def test_gradients_are_summed_over_devices_in_float32(rng, name):
    """Given the axis; without it the sum is in half precision, and the checker says so."""
    batch = make_batch(rng)
    plain = regression(axis_name="data")

    def sharded(axis_name):
        method = mixed_precision(plain, policy(name), axis_name=axis_name)
        optimizer = optax.sgd(0.1)
        step = gradient_step(method, optimizer, jax.random.key(1), "data")
        state = jax.eval_shape(
            lambda: init_state(method, optimizer, jax.random.key(0), batch)
        )
        step = jax.shard_map(
            step, mesh=data_mesh(), in_specs=(P(), P("data")), out_specs=(P(), P())
        )
        return step, state

    # The regression's own mean of its inputs is in half precision, and not ours to judge.
    step, state = sharded("data")
    text = str(jax.make_jaxpr(step)(state, batch))
    wide = {"float16": "f16", "bfloat16": "bf16"}[policy(name).compute_dtype.name]
    assert f"{wide}[6,3] = psum" not in text
    step, state = sharded(None)
    with pytest.raises(AssertionError, match=rf"psum.* \[{policy(name).compute_dtype}"):
        assert_float32_ops(step, state, batch)
