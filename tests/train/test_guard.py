"""A run stops at the first bad step, and the message names the culprit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxml.train import NonFiniteError, fit, gradient_step, init_state
from jaxml.train.guard import check_finite, gradient_norms


def test_norms_match_numpy(rng):
    grads = {"a": rng.normal(size=(3, 4)), "b": rng.normal(size=5)}
    grads = jax.tree.map(np.float32, grads)
    norms = gradient_norms(grads)
    expected = [np.linalg.norm(grads["a"]), np.linalg.norm(grads["b"])]
    np.testing.assert_allclose(norms["grad_norms"], expected, rtol=1e-6)
    np.testing.assert_allclose(norms["grad_norm"], np.hypot(*expected), rtol=1e-6)


def test_finite_metrics_pass():
    check_finite(1, {"loss": jnp.ones(())}, {"x": np.ones(2)}, {"w": np.ones(2)})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_batch_is_named(bad):
    batch = {"x": np.array([1.0, bad, bad]), "label": np.arange(3)}
    with pytest.raises(NonFiniteError, match=r"step 7 .*batch.* x \(2 of 3 numbers\)"):
        check_finite(7, {"loss": jnp.asarray(np.nan)}, batch, {"w": np.ones(2)})


def test_the_parameter_whose_gradient_is_bad_is_named(method, batches):
    """The square root has no slope at zero: a classic, and the loss is finite."""

    def loss(params, model_state, batch, key):
        value, rest = method.loss(params, model_state, batch, key)
        return value + jnp.sqrt(params["b"] ** 2), rest

    bad = method._replace(loss=loss)
    state = init_state(bad, optax.sgd(0.1), jax.random.key(0), next(iter(batches)))
    step = jax.jit(gradient_step(bad, optax.sgd(0.1), jax.random.key(1)))
    with pytest.raises(NonFiniteError, match=r"step 1 .*gradients .*\['b'\] \(nan\)"):
        fit(step, state, batches, 10)


def test_the_step_is_the_first_bad_one(method, batches):
    """Found one step later, named exactly."""

    def poisoned():
        for i, batch in enumerate(iter(batches), 1):
            if i == 5:
                batch["x"][0, 0] = np.nan
            yield batch

    state = init_state(method, optax.sgd(0.1), jax.random.key(0), next(iter(batches)))
    step = jax.jit(gradient_step(method, optax.sgd(0.1), jax.random.key(1)))
    with pytest.raises(NonFiniteError, match=r"step 5 .*x \(1 of 24 numbers\)"):
        fit(step, state, poisoned(), 100, log_every=50)


def test_a_bad_state_is_never_saved(method, batches, tmp_path):
    from jaxml.train import Run, latest_step

    def poisoned():
        for i, batch in enumerate(iter(batches), 1):
            batch["x"] *= np.nan if i == 6 else 1
            yield batch

    run = Run(tmp_path / "run")
    state = init_state(method, optax.sgd(0.1), jax.random.key(0), next(iter(batches)))
    step = jax.jit(gradient_step(method, optax.sgd(0.1), jax.random.key(1)))
    with pytest.raises(NonFiniteError):
        fit(step, state, poisoned(), 100, run=run, save_every=3)
    assert latest_step(run.checkpoints) == 3
