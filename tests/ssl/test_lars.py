"""LARS against a loop, with what it leaves alone and schedules of both rates."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxml.ssl import is_weight, lars


def lars_numpy(p, grads, rates, decays, momentum=0.9, trust=0.001, adapted=True):
    v = np.zeros_like(p)
    for g, rate, decay in zip(grads, rates, decays, strict=True):
        u = g + decay * p if adapted else g
        ratio = trust * np.linalg.norm(p) / np.linalg.norm(u) if adapted else 1.0
        v = momentum * v - rate * ratio * u
        p = p + v
    return p


def test_matches_a_loop(rng):
    weights, bias = rng.normal(size=(3, 4)), rng.normal(size=4)
    grads = [(rng.normal(size=(3, 4)), rng.normal(size=4)) for _ in range(3)]
    rates, decays = [2.0, 1.0, 0.5], [0.1, 0.2, 0.3]
    optimizer = lars(
        lambda step: jnp.asarray(rates)[step], lambda step: jnp.asarray(decays)[step]
    )
    params = {"kernel": np.float32(weights), "bias": np.float32(bias)}
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for kernel, b in grads:
        given = {"kernel": np.float32(kernel), "bias": np.float32(b)}
        updates, state = update(given, state, params)
        params = optax.apply_updates(params, updates)
    expected = lars_numpy(weights, [g for g, _ in grads], rates, decays)
    np.testing.assert_allclose(params["kernel"], expected, rtol=1e-5, atol=1e-6)
    plain = lars_numpy(bias, [g for _, g in grads], rates, decays, adapted=False)
    np.testing.assert_allclose(params["bias"], plain, rtol=1e-5, atol=1e-6)


def test_weights_are_told_by_their_axes():
    params = {"conv": jnp.ones((3, 3, 1, 2)), "norm": {"scale": jnp.ones(2)}}
    assert is_weight(params) == {"conv": True, "norm": {"scale": False}}
