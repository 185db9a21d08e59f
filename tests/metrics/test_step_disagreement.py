"""The distance of two steps against its definition, and what it must not notice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.metrics import step_disagreement


def state(rng):
    w, queue = np.float32(rng.normal(size=(2, 3, 4)))
    return {"params": {"w": w, "b": np.zeros(4, np.float32)}, "queue": queue, "step": 3}


def steps(rng):
    """Moves that differ in the parameters."""
    move, other = rng.normal(size=(2, 3, 4))

    def by(move):
        def step(state, batch):
            params = {**state["params"], "w": state["params"]["w"] + move}
            return {**state, "params": params, "step": state["step"] + 1}, {}

        return step

    return by(other), by(move), other, move


def test_distance_is_measured_in_steps(rng):
    step, reference, other, move = steps(rng)
    found = step_disagreement(step, reference, state(rng), {})
    expected = np.linalg.norm(other - move) / np.linalg.norm(move)
    assert found.keys() == {
        f"disagreement/{part}" for part in ("params/w", "params/b", "queue", "step")
    }
    assert found["disagreement/params/w"] == pytest.approx(expected, rel=1e-4)
    assert found["disagreement/params/b"] == 0
    assert found["disagreement/step"] == 0


def test_arrays_below_the_second_name_are_one_part(rng):
    deep = {"params": {"head": {"w": jnp.ones(2), "b": jnp.ones(2)}}}

    def moved(by):
        def step(state, batch):
            w = state["params"]["head"]["w"] + by
            return {"params": {"head": {"w": w, "b": jnp.ones(2) + 3.0}}}, {}

        return step

    found = step_disagreement(moved(5.0), moved(4.0), deep, {})
    assert found == {"disagreement/params/head": pytest.approx(1 / 5)}


def test_rounding_in_what_hardly_moves_is_no_disagreement():
    def step(scale):
        return lambda state, batch: ({"x": state["x"] + scale}, {})

    found = step_disagreement(step(1e-7), step(0.0), {"x": np.ones(3)}, {})
    assert found["disagreement/x"] < 0.01


def test_donated_states_are_copied(rng):
    start = jax.tree.map(jnp.asarray, state(rng))
    step, reference, *_ = steps(rng)
    donating = jax.jit(step, donate_argnums=0)
    first = step_disagreement(donating, jax.jit(reference), start, {})
    assert step_disagreement(donating, jax.jit(reference), start, {}) == first


def test_states_of_another_structure_are_refused(rng):
    _, reference, *_ = steps(rng)

    def smaller(state, batch):
        return {**state, "queue": state["queue"][:1]}, {}

    with pytest.raises(ValueError, match="like the given one, got another at queue"):
        step_disagreement(smaller, reference, state(rng), {})
