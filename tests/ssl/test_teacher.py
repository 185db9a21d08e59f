"""The teacher: the average against a loop, its schedule, its buffers, its precision."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.ssl import cosine_momentum, init_teacher, move_teacher


def test_moves_as_the_average(rng):
    history = np.float32(rng.normal(size=(6, 3)))
    teacher = init_teacher({"w": history[0]})
    expected = history[0].astype(np.float64)
    for step, params in enumerate(history):
        teacher = move_teacher(teacher, {"w": params}, 0.7, jnp.array(step))
        expected = 0.7 * expected + 0.3 * params
    chex.assert_trees_all_close(teacher["w"], np.float32(expected), rtol=1e-5)


def test_schedule_is_asked_for_the_step():
    schedule = cosine_momentum(0.9, 10)
    one, zero = jnp.array(1.0), jnp.array(0.0)
    for k in (0, 3, 10, 25):
        m = 1 - (1 - 0.9) * (math.cos(math.pi * min(k, 10) / 10) + 1) / 2
        actual = jax.jit(lambda k: move_teacher(one, zero, schedule, k))(k)
        chex.assert_trees_all_close(actual, jnp.float32(m), rtol=1e-6)
    assert cosine_momentum(0.5, 4, final=0.7)(jnp.array(9)) == jnp.float32(0.7)


def test_it_is_a_copy():
    """Params and teacher are donated together, which shared buffers forbid."""
    params = {"w": jnp.ones((64, 64))}
    teacher = init_teacher(params)
    move = jax.jit(
        lambda p, t: (p, move_teacher(t, p, 0.5, jnp.array(0))), donate_argnums=(0, 1)
    )
    params, teacher = move(params, teacher)
    assert params["w"].unsafe_buffer_pointer() != teacher["w"].unsafe_buffer_pointer()


def test_half_precision_does_not_stand_still():
    params = jnp.ones(3, jnp.bfloat16)
    teacher = init_teacher(jnp.zeros(3, jnp.bfloat16))
    assert teacher.dtype == jnp.float32
    for _ in range(2000):
        teacher = move_teacher(teacher, params, 0.999, jnp.array(0))
    chex.assert_trees_all_close(teacher, jnp.full(3, 1 - 0.999**2000), rtol=1e-3)


def test_equal_ones_stay_equal_to_the_bit(rng):
    params = jnp.asarray(rng.normal(size=100), jnp.float32)
    chex.assert_trees_all_equal(
        move_teacher(params, params, 0.99, jnp.array(0)), params
    )


@pytest.mark.parametrize(
    "call",
    [
        lambda: move_teacher(jnp.ones(2), jnp.ones(2), 1.1, jnp.array(0)),
        lambda: cosine_momentum(-0.1, 3),
        lambda: cosine_momentum(0.9, 3, final=2.0),
        lambda: cosine_momentum(0.9, 0),
    ],
)
def test_bad_input_is_refused(call):
    with pytest.raises(ValueError, match=r"must be in \[0, 1\]|at least 1"):
        call()
