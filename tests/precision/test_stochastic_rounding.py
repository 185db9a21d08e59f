"""Rounding that is right on average, and an optimizer that lives by it."""

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from jaxml.method import Method
from jaxml.parallel import data_mesh, data_parallel
from jaxml.precision import (
    DynamicLossScale,
    mixed_precision,
    policy,
    round_stochastically,
    stochastic_rounding,
)
from jaxml.train import gradient_step, init_state

KEY = jax.random.key(7)


def neighbours(x):
    """The bfloat16 numbers around a float32, by NumPy."""
    near = np.float32(ml_dtypes.bfloat16(x))
    if near == x:
        return near, near
    there = np.nextafter(
        ml_dtypes.bfloat16(x), ml_dtypes.bfloat16(np.sign(x - near) * 3e38)
    )
    low, high = sorted([float(near), float(there)])
    return low, high


@pytest.mark.parametrize(
    "x",
    [1.0 + 2**-12, -(1.0 + 2**-12), 1.99609375, 3.14159, -7e-5, 5.1e30, 1e-38, -3e-40],
)
def test_the_mean_is_exact(x):
    """Only the two neighbours occur, with the mean within five standard errors.

    The first numbers lie a 32nd of the way: rounded to nearest they never move.
    """
    x, draws = np.float32(x), 200_000
    round_all = jax.jit(round_stochastically)
    rounded = np.asarray(round_all(KEY, jnp.full(draws, x)), np.float64)
    low, high = neighbours(x)
    assert low < x < high
    share = (np.float64(x) - low) / (high - low)
    assert set(np.unique(rounded)) <= {low, high}
    error = (rounded.mean() - x) / (high - low)
    assert abs(error) < 5 * np.sqrt(share * (1 - share) / draws)


def test_numbers_of_bfloat16_stay(rng):
    """All of them: finite or not, subnormal, of either sign."""
    every = np.arange(2**16, dtype=np.uint16).view(ml_dtypes.bfloat16)
    rounded = np.asarray(round_stochastically(KEY, every.astype(np.float32)))
    is_nan = np.isnan(every.astype(np.float32))
    np.testing.assert_array_equal(np.isnan(rounded), is_nan)
    np.testing.assert_array_equal(
        rounded[~is_nan].view(np.uint16), every[~is_nan].view(np.uint16)
    )


def test_the_key_decides(rng):
    x = jnp.asarray(rng.normal(size=512), jnp.float32)
    first = round_stochastically(KEY, x)
    chex.assert_trees_all_equal(first, round_stochastically(KEY, x))
    assert jnp.any(first != round_stochastically(jax.random.key(8), x))
    assert first.dtype == jnp.bfloat16


def test_only_float32_is_rounded():
    with pytest.raises(ValueError, match="must be float32, got bfloat16"):
        round_stochastically(KEY, jnp.ones(2, jnp.bfloat16))


@pytest.mark.parametrize("spread", [-20, -12, -7, 0, 7])
def test_updates_land_where_the_sum_is_rounded_to(rng, spread):
    """`optax.apply_updates` adds and rounds again, and must not move anything."""
    p = jnp.asarray(rng.normal(size=4096), jnp.bfloat16)
    grads = jnp.asarray(rng.normal(size=4096) * 2.0**spread, jnp.float32)
    optimizer = stochastic_rounding(optax.sgd(1.0), KEY)
    updates, state = optimizer.update(grads, optimizer.init(p), p)
    key = jax.random.fold_in(jax.random.fold_in(KEY, 0), 0)
    expected = round_stochastically(key, p.astype(jnp.float32) - grads)
    actual = optax.apply_updates(p, updates)
    chex.assert_trees_all_equal(actual, expected)
    assert state.updates == 1


def test_updates_that_nearest_rounding_loses_arrive():
    """A thousand updates of 2^-12 to 4096 parameters of one, whose spacing is 2^-7."""
    p = jnp.ones(4096, jnp.bfloat16)
    grads = jnp.full(4096, -(2.0**-12), jnp.bfloat16)

    def run(optimizer):
        def step(carry, _):
            p, state = carry
            updates, state = optimizer.update(grads, state, p)
            return (optax.apply_updates(p, updates), state), None

        carry = p, optimizer.init(p)
        (after, _), _ = jax.jit(lambda c: jax.lax.scan(step, c, None, 1000))(carry)
        return np.asarray(after, np.float64)

    np.testing.assert_array_equal(run(optax.sgd(1.0)), 1)
    moved = run(stochastic_rounding(optax.sgd(1.0), KEY)) - 1
    expected = 1000 * 2.0**-12
    assert abs(moved.mean() - expected) < 0.01 * expected


def test_averages_stay_in_float32_and_decay():
    """In bfloat16 the second moment would keep its first value forever."""
    p = {"w": jnp.ones(3, jnp.bfloat16), "scale": jnp.ones(2)}
    optimizer = stochastic_rounding(optax.adam(1e-3, b2=0.999), KEY)
    state = optimizer.init(p)
    chex.assert_trees_all_equal_dtypes(state.inner[0].nu, jax.tree.map(np.float32, p))
    update = jax.jit(optimizer.update)
    _, state = update(jax.tree.map(jnp.ones_like, p), state, p)
    first = state
    for _ in range(10):
        _, state = update(jax.tree.map(jnp.zeros_like, p), state, p)
    chex.assert_trees_all_equal_shapes_and_dtypes(first, state)
    expected = jax.tree.map(lambda nu: nu * 0.999**10, first.inner[0].nu)
    chex.assert_trees_all_close(state.inner[0].nu, expected, rtol=1e-5)


def test_float32_parameters_are_updated_as_usual(rng):
    p = {"w": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)}
    grads = {"w": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)}
    plain, wrapped = optax.adamw(1e-2), stochastic_rounding(optax.adamw(1e-2), KEY)
    expected, _ = plain.update(grads, plain.init(p), p)
    actual, _ = wrapped.update(grads, wrapped.init(p), p)
    chex.assert_trees_all_equal(actual, expected)


def test_every_array_and_every_update_draws_its_own_noise():
    p = [jnp.ones(512, jnp.bfloat16)] * 2
    grads = [jnp.full(512, 2.0**-9, jnp.float32)] * 2
    optimizer = stochastic_rounding(optax.sgd(1.0), KEY)
    (a, b), state = optimizer.update(grads, optimizer.init(p), p)
    (c, _), _ = optimizer.update(grads, state, p)
    assert jnp.any(a != b)
    assert jnp.any(a != c)


def test_bad_arguments():
    optimizer = stochastic_rounding(optax.sgd(1.0), KEY)
    with pytest.raises(ValueError, match=r"of bfloat16, got float16 at \['w'\]"):
        optimizer.init({"w": jnp.ones(2, jnp.float16)})
    p = {"w": jnp.ones(2, jnp.bfloat16)}
    with pytest.raises(ValueError, match="needs the parameters, got none"):
        optimizer.update(p, optimizer.init(p))


def regression(axis_name=None):
    """Least squares whose updates are far below the spacing of its parameters."""

    def init(key, batch):
        return {"w": jnp.ones(batch["x"].shape[1])}, {}

    def loss(params, model_state, batch, key):
        error = (batch["x"] @ params["w"]).astype(jnp.float32) - batch["y"]
        value = jnp.mean(jnp.square(error))
        return value, ({}, {"loss": value})

    def predict(params, model_state, batch):
        return batch["x"] @ params["w"]

    method = Method(init, loss, predict)
    return mixed_precision(
        method, policy("pure_bfloat16"), inputs=["x"], axis_name=axis_name
    )


def make_batch(rng):
    x = rng.normal(size=(64, 16)).astype(np.float32)
    return {"x": x, "y": x @ np.linspace(0, 2, 16, dtype=np.float32)}


def test_pure_bfloat16_learns_with_it_and_sticks_without(rng):
    batch, method, losses = make_batch(rng), regression(), {}
    for name, optimizer in {
        "nearest": optax.sgd(2e-4),
        "stochastic": stochastic_rounding(optax.sgd(2e-4), KEY),
    }.items():
        state = init_state(method, optimizer, jax.random.key(0), batch)
        assert state.params["w"].dtype == jnp.bfloat16
        step = jax.jit(gradient_step(method, optimizer, jax.random.key(1)))
        start = None
        for _ in range(2500):
            state, metrics = step(state, batch)
            start = start or float(metrics["loss"])
        losses[name] = float(metrics["loss"]) / start
    assert losses["stochastic"] < 0.15 < 0.5 < losses["nearest"], losses


@pytest.mark.parametrize("devices", [8])
def test_all_devices_round_alike(rng, devices):
    """Parameters stay replicated, and equal those of one device but for the sum."""
    batch, optimizer = make_batch(rng), stochastic_rounding(optax.sgd(0.05), KEY)
    one = init_state(regression(), optimizer, jax.random.key(0), batch)
    many = jax.tree.map(jnp.copy, one)
    step_one = jax.jit(gradient_step(regression(), optimizer, jax.random.key(1)))
    step_many = data_parallel(
        gradient_step(regression("data"), optimizer, jax.random.key(1), "data"),
        data_mesh(jax.devices()[:devices]),
    )
    for _ in range(5):
        one, _ = step_one(one, batch)
        many, _ = step_many(many, batch)
    copies = [np.asarray(s.data) for s in many.params["w"].addressable_shards]
    for copy in copies[1:]:
        np.testing.assert_array_equal(copy, copies[0])
    np.testing.assert_allclose(
        np.float32(copies[0]), np.float32(one.params["w"]), rtol=2**-6
    )


def test_a_skipped_step_draws_nothing(rng):
    batch = make_batch(rng)
    optimizer = stochastic_rounding(optax.adam(0.01), KEY)
    scale = DynamicLossScale.create(8.0)
    method = regression()
    state = init_state(method, optimizer, jax.random.key(0), batch, scale)
    step = jax.jit(gradient_step(method, optimizer, jax.random.key(1)))
    bad = {**batch, "y": batch["y"] * np.inf}
    skipped, _ = step(state, bad)
    assert skipped.opt_state.updates == 0
    straight, _ = step(state, batch)
    after, _ = step(skipped, batch)
    chex.assert_trees_all_equal(after.params, straight.params)
    chex.assert_trees_all_equal(after.opt_state, straight.opt_state)
