"""The loss scale inside `gradient_step` and `fit`: what a skipped step leaves alone."""

from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxml.method import Method
from jaxml.parallel import data_mesh, data_parallel
from jaxml.precision import (
    DynamicLossScale,
    Policy,
    StaticLossScale,
    mixed_precision,
    policy,
)
from jaxml.train import NonFiniteError, Run, fit, gradient_step, init_state


def plain_problem(weight=1.0):
    """Least squares with a running mean, a teacher and a step counter.

    Its loss is `weight` times as large as it should be.
    """

    def init(key, batch):
        params = {"w": jnp.zeros(batch["x"].shape[1]), "b": jnp.zeros(())}
        teacher = jax.tree.map(jnp.copy, params)
        mean = jnp.zeros(batch["x"].shape[1])
        return params, {"mean": mean, "teacher": teacher, "moved": jnp.zeros(())}

    def loss(params, model_state, batch, key):
        y = batch["x"] @ params["w"] + params["b"]
        error = y.astype(jnp.float32) - batch["y"].astype(jnp.float32)
        value = jnp.mean(jnp.square(error))
        mean = 0.9 * model_state["mean"] + 0.1 * jnp.mean(batch["x"], axis=0)
        return weight * value, ({**model_state, "mean": mean}, {"loss": value})

    def predict(params, model_state, batch):
        return batch["x"] @ params["w"] + params["b"]

    def after_update(params, model_state, step):
        teacher = optax.incremental_update(params, model_state["teacher"], 0.1)
        moved = model_state["moved"] + 1
        return params, {**model_state, "teacher": teacher, "moved": moved}

    return Method(init, loss, predict, after_update)


def problem(weight=1.0):
    return mixed_precision(plain_problem(weight), policy("mixed_float16"))


class Batches:
    """An endless, seekable stream; batches of the numbers in `bad` overflow."""

    def __init__(self, bad=()):
        self.position, self.bad = 0, bad

    def __iter__(self):
        return Batches(self.bad)

    def __next__(self):
        x = np.random.default_rng(self.position).normal(size=(16, 3))
        y = x @ [1, -2, 3] + 1
        if self.position in self.bad:
            x[3, 1] = 1e6
        self.position += 1
        return {"x": x.astype(np.float32), "y": y.astype(np.float32)}

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]


def optimizer():
    """A schedule, momentum and averages: all that a skipped step must not move."""
    return optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.linear_schedule(0.1, 0.0, 100))
    )


def build(scale, method=None, key=1):
    method = method or problem()
    state = init_state(method, optimizer(), jax.random.key(0), next(Batches()), scale)
    step = gradient_step(method, optimizer(), jax.random.key(key))
    return jax.jit(step), state


@pytest.mark.parametrize(
    "scale", [DynamicLossScale.create(256.0), StaticLossScale.create(256.0)]
)
def test_a_skipped_step_changes_nothing_but_the_count_and_the_scale(scale):
    step, state = build(scale)
    stream = Batches(bad=[2])
    for _ in range(2):
        state, metrics = step(state, next(stream))
        assert metrics["skipped"] == 0
    after, metrics = step(state, next(stream))
    assert metrics["skipped"] == 1
    assert metrics["loss_scale"] == 256
    assert not jnp.isfinite(metrics["grad_norm"])
    same = replace(after, step=state.step, loss_scale=state.loss_scale)
    chex.assert_trees_all_equal(same, state)
    assert after.step == 3
    assert after.loss_scale.scale == (128 if hasattr(scale, "clean_steps") else 256)
    assert int(after.model_state["moved"]) == 2


def test_a_run_with_skips_is_the_run_without_those_batches():
    """Schedules, averages and teacher included; powers of two round nothing here."""
    bad = [0, 3, 4, 7]
    step, state = build(DynamicLossScale.create(64.0, growth_interval=3))
    stream, scales = Batches(bad), []
    for _ in range(12):
        state, metrics = step(state, next(stream))
        scales.append(float(metrics["loss_scale"]))
    assert scales == [64, 32, 32, 32, 16, 8, 8, 8, 4, 4, 4, 8]
    assert state.step == 12

    step, expected = build(StaticLossScale.create(32.0))
    stream = Batches()
    for i in range(12):
        batch = next(stream)
        if i not in bad:
            expected, _ = step(expected, batch)
    counts = [int(x) for x in jax.tree.leaves(state.opt_state) if x.dtype == jnp.int32]
    assert counts == [8, 8]
    chex.assert_trees_all_close(
        (state.params, state.model_state, state.opt_state),
        (expected.params, expected.model_state, expected.opt_state),
        rtol=2e-3,
        atol=1e-5,
    )


def test_clipping_sees_the_true_gradient():
    """Norm 1/2 passes a limit of 1; scaled by 2^10 it would be cut to length 1 / 2^10."""
    batch = next(Batches())
    method = problem(weight=2.0**-5)
    clipped = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0))
    moves = {}
    for name, scale in {
        "plain": None,
        "scaled": StaticLossScale.create(1024.0),
    }.items():
        state = init_state(method, clipped, jax.random.key(0), batch, scale)
        step = jax.jit(gradient_step(method, clipped, jax.random.key(1)))
        after, metrics = step(state, batch)
        assert 0.1 < metrics["grad_norm"] < 1
        moves[name] = after.params
        norm = optax.tree.norm(after.params)
        np.testing.assert_allclose(norm, metrics["grad_norm"], rtol=1e-5)
    chex.assert_trees_all_close(moves["scaled"], moves["plain"], rtol=1e-2)


def test_float16_learns_only_with_a_scale():
    """The same problem, its loss weighed 2^-30: every gradient is below float16."""
    method, losses = problem(weight=2.0**-30), {}
    for name, scale in {
        "none": None,
        "static": StaticLossScale.create(2.0**24),
        "dynamic": DynamicLossScale.create(2.0**16, growth_interval=5),
    }.items():
        descent = optax.sgd(0.1 * 2.0**30)
        state = init_state(method, descent, jax.random.key(0), next(Batches()), scale)
        step, stream = (
            jax.jit(gradient_step(method, descent, jax.random.key(1))),
            Batches(),
        )
        for _ in range(120):
            state, metrics = step(state, next(stream))
        losses[name] = float(metrics["loss"])
        if name == "none":
            chex.assert_trees_all_equal(
                state.params, jax.tree.map(jnp.zeros_like, state.params)
            )
    assert losses["none"] > 5
    assert losses["static"] < 0.01
    assert losses["dynamic"] < 0.01, losses


def test_half_parameters_keep_the_dtypes_of_their_state():
    """Their gradients are float32 once unscaled, and optax would widen its averages."""
    method = mixed_precision(
        plain_problem(), Policy("float16", "float16", "float32"), inputs=["x"]
    )
    step, state = build(DynamicLossScale.create(256.0), method)
    assert state.params["w"].dtype == jnp.float16
    stream, first = Batches(bad=[1]), None
    for _ in range(60):
        after, metrics = step(state, next(stream))
        chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
        state, first = after, first or float(metrics["loss"])
    assert metrics["loss"] < 0.1 * first


def test_many_scales_in_one_program():
    """The step vmaps over the scale: those too large skip, the others agree."""
    batch = next(Batches())
    step, state = build(DynamicLossScale.create())
    scales = jnp.array([1.0, 256.0, 2.0**40])
    rows = replace(state.loss_scale, scale=scales)
    axes = replace(
        jax.tree.map(lambda _: None, state),
        loss_scale=replace(rows, scale=0, clean_steps=None),
    )
    state = replace(state, loss_scale=rows)
    after, metrics = jax.vmap(step, in_axes=(axes, None))(state, batch)
    np.testing.assert_array_equal(metrics["skipped"], [0, 0, 1])
    np.testing.assert_array_equal(after.loss_scale.scale, [1, 256, 2.0**39])
    w = np.asarray(after.params["w"])
    np.testing.assert_allclose(w[0], w[1], rtol=1e-2)
    np.testing.assert_array_equal(w[2], 0)


def test_the_step_is_compiled_once_and_takes_its_state_over():
    scale = DynamicLossScale.create()
    method = problem()
    step = gradient_step(method, optimizer(), jax.random.key(1))
    step = jax.jit(chex.assert_max_traces(step, n=1), donate_argnums=0)
    for _ in range(2):  # the caller's scale survives the donation of a state
        state = init_state(
            method, optimizer(), jax.random.key(0), next(Batches()), scale
        )
        for _ in range(3):
            state, _ = step(state, next(Batches()))
        assert float(scale.scale) == 65536


def test_a_state_without_a_scale_is_as_before():
    step, state = build(None)
    assert state.loss_scale is None
    after, metrics = step(state, next(Batches()))
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert set(metrics) == {"loss", "grad_norm", "grad_norms"}


def test_fit_goes_on_after_a_skipped_step_and_reports_finite_numbers(tmp_path):
    step, state = build(DynamicLossScale.create(2.0**10))
    run = Run(tmp_path)
    state = fit(step, state, Batches(bad=[1, 4]), 6, run=run, log_every=1)
    rows = {row["step"]: row for row in run.rows()}
    assert [rows[i]["skipped"] for i in range(1, 7)] == [0, 1, 0, 0, 1, 0]
    assert [rows[i]["loss_scale"] for i in range(1, 7)] == [
        1024,
        1024,
        512,
        512,
        512,
        256,
    ]
    assert all(np.isfinite(v) for row in rows.values() for v in row.values())
    assert "grad_norm" in rows[1]
    assert "grad_norm" not in rows[2]


def test_fit_stops_where_the_scale_can_fall_no_further():
    """Ten batches in a row overflow: from 2^6 to 2^0, and then it is not the range."""
    step, state = build(DynamicLossScale.create(2.0**6))
    endless = Batches(bad=range(5, 1000))
    message = r"step 12 is not finite.*cannot fall below 1, .*diverges.*every parameter"
    with pytest.raises(NonFiniteError, match=message):
        fit(step, state, endless, 50)


def test_fit_stops_at_the_first_overflow_of_a_static_scale():
    step, state = build(StaticLossScale.create(512.0))
    with pytest.raises(NonFiniteError, match=r"step 4 .*cannot fall below 512"):
        fit(step, state, Batches(bad=[3]), 50)


def test_a_loss_that_is_not_finite_without_an_overflow_still_stops():
    """A metric that is NaN while all gradients are finite is nobody's overflow."""
    method = problem()

    def loss(*arguments):
        value, (state, metrics) = method.loss(*arguments)
        return value, (state, {**metrics, "ratio": jnp.log(0 * value)})

    step, state = build(DynamicLossScale.create(64.0), method._replace(loss=loss))
    with pytest.raises(NonFiniteError, match=r"step 1 is not finite: ratio \(-inf\)$"):
        fit(step, state, Batches(), 5)


def test_a_continued_run_equals_an_uninterrupted_one(tmp_path):
    """Scale and clean steps are part of the checkpoint."""

    def start(initial=2.0**8):
        return build(DynamicLossScale.create(initial, growth_interval=4))

    class PowerCutError(Exception):
        pass

    def cut(step, values):
        if step == 13:
            raise PowerCutError

    step, state = start()
    expected = fit(step, state, Batches(bad=[2, 9, 14]), 20)
    step, state = start()
    with pytest.raises(PowerCutError):
        fit(
            step,
            state,
            Batches(bad=[2, 9, 14]),
            20,
            run=Run(tmp_path),
            log=cut,
            log_every=1,
            save_every=11,
        )
    step, state = start(
        initial=2.0**3
    )  # what is restored counts, not what is asked for
    actual = fit(step, state, Batches(bad=[2, 9, 14]), 20, run=Run(tmp_path))
    chex.assert_trees_all_equal(actual, expected)


@pytest.mark.parametrize("devices", [2, 8])
def test_the_infinity_of_one_device_makes_all_skip(devices):
    """Also the devices whose own samples are clean: their parameters stay equal."""
    method = problem()
    step, one = build(DynamicLossScale.create(256.0))
    shared = method._replace(loss=lambda *a: mean_of_state(method, *a))
    many = jax.tree.map(jnp.copy, one)
    step_many = data_parallel(
        gradient_step(shared, optimizer(), jax.random.key(1), "data"),
        data_mesh(jax.devices()[:devices]),
    )
    stream = Batches(bad=[1])
    for i in range(3):
        batch = next(stream)
        one, _ = step(one, batch)
        many, metrics = step_many(many, batch)
        assert metrics["skipped"] == (i == 1)
    for leaf in jax.tree.leaves(many):
        copies = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(copies) == devices
        for copy in copies[1:]:
            np.testing.assert_array_equal(copy, copies[0])
    chex.assert_trees_all_close(
        jax.device_get(many), jax.device_get(one), rtol=1e-2, atol=1e-3
    )


def mean_of_state(method, *arguments):
    value, (model_state, metrics) = method.loss(*arguments)
    mean = jax.lax.pmean(model_state["mean"], "data")
    return value, ({**model_state, "mean": mean}, metrics)
