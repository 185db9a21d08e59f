"""Deep InfoMax: pairs and estimates against loops, the game with the prior, devices."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxml.ssl import (
    GlobalCritic,
    InfoMaxEncoder,
    LocalCritic,
    PriorCritic,
    deep_infomax,
    estimate_information,
    prior_optimizer,
)
from tests.numerical import close, gradients
from tests.ssl.trials import check_all_moved, check_devices, train


def estimate_numpy(scores, estimator):
    """Joint: code i with the places of map i. Product: with those of all other maps."""
    n, _, places = scores.shape
    joint = np.array([[scores[i, i, k] for k in range(places)] for i in range(n)])
    product = np.array(
        [
            [scores[i, j, k] for j in range(n) if j != i for k in range(places)]
            for i in range(n)
        ]
    )
    if estimator == "jsd":
        inside = -np.mean(np.log1p(np.exp(-joint)))
        return inside - np.mean(np.log1p(np.exp(product)))
    if estimator == "dv":
        return np.mean(joint) - np.log(np.mean(np.exp(product)))
    terms = []
    for i in range(n):
        others = np.exp(product[i]).sum()
        terms += [np.log(np.exp(t) / (np.exp(t) + others)) for t in joint[i]]
    return np.mean(terms) + np.log(product.shape[1] + 1)


@pytest.mark.parametrize("estimator", ["jsd", "dv", "info_nce"])
def test_estimates_match_loops(rng, estimator):
    scores = rng.normal(size=(4, 4, 3))
    value, grad = jax.value_and_grad(estimate_information)(
        np.float32(scores), estimator
    )
    close(value, estimate_numpy(scores, estimator), scale=5)
    (expected,) = gradients(lambda s: estimate_numpy(s, estimator), scores)
    close(grad, expected, rtol=1e-5, atol=1e-5)


def dense(params, x):
    return x @ params["kernel"] + params.get("bias", 0)


def test_critics_score_a_code_with_another_image_s_map(rng):
    """scores[i, j] is T(map j, code i): by pairs, through concatenated inputs."""
    local = np.float32(rng.normal(size=(3, 2, 2, 4)))
    y = np.float32(rng.normal(size=(3, 5)))
    critic = GlobalCritic(6)
    variables = critic.init(jax.random.key(0), local, y)
    scores = critic.apply(variables, local, y)
    p = jax.tree.map(np.float64, variables["params"])
    kernel = np.concatenate([p["Dense_0"]["kernel"], p["Dense_1"]["kernel"]])
    for i in range(3):
        for j in range(3):
            x = np.concatenate([local[j].reshape(-1), y[i]])
            x = np.maximum(x @ kernel + p["Dense_1"]["bias"], 0)
            x = np.maximum(dense(p["Dense_2"], x), 0)
            np.testing.assert_allclose(
                scores[i, j], dense(p["Dense_3"], x)[0], rtol=1e-4, atol=1e-5
            )
    for kind in ("dot", "concat"):
        critic = LocalCritic(kind, 6)
        variables = critic.init(jax.random.key(0), local, y)
        scores = critic.apply(variables, local, y)
        chex.assert_shape(scores, (3, 3, 4))
        for i, j in ((0, 0), (1, 2)):
            alone = critic.apply(variables, local[j : j + 1], y[i : i + 1])
            chex.assert_trees_all_close(scores[i, j], alone[0, 0], rtol=1e-4, atol=1e-5)


def build(axis_name=None, **options):
    options = {"alpha": 0.5, "beta": 1.0, "gamma": 0.1, "estimator": "jsd", **options}
    return deep_infomax(
        InfoMaxEncoder((4, 6), 1, hidden=8, dim=3, axis_name=axis_name),
        global_critic=GlobalCritic(8),
        local_critic=LocalCritic("dot", 8),
        prior_critic=PriorCritic((8,)),
        axis_name=axis_name,
        **options,
    )


def make_batch(rng, size=16):
    return {"image": np.float32(rng.uniform(size=(size, 8, 8, 1)))}


def test_each_side_of_the_game_learns_from_its_own_term(rng):
    """The discriminator not from the encoder's, the encoder not from the discriminator's."""
    method, batch = build(alpha=0.0, beta=1e-9, gamma=0.7), make_batch(rng)
    params, state = method.init(jax.random.key(0), batch)
    key = jax.random.key(3)
    grads = jax.grad(lambda p: method.loss(p, state, batch, key)[0])(params)
    encoder = InfoMaxEncoder((4, 6), 1, hidden=8, dim=3)
    critic = PriorCritic((8,))

    def code(p):
        out, _ = encoder.apply(
            {"params": p, **state}, batch["image"], train=True, mutable=["batch_stats"]
        )
        return out[1]

    y = code(params["encoder"])

    def fooled(p):
        logits = critic.apply({"params": params["prior_critic"]}, code(p))
        return 0.7 * jnp.mean(jax.nn.softplus(-logits))

    def told(p):  # its other half, of the prior's samples, does not depend on y
        return jnp.mean(jax.nn.softplus(critic.apply({"params": p}, y)))

    expected = jax.grad(fooled)(params["encoder"])
    chex.assert_trees_all_close(grads["encoder"], expected, rtol=1e-3, atol=1e-6)
    bias = grads["prior_critic"]["Dense_1"]["bias"]
    of_codes = jax.grad(told)(params["prior_critic"])["Dense_1"]["bias"]
    # d/db of the two halves: -mean sigma(-real) and mean sigma(codes).
    assert bias < of_codes
    assert jnp.abs(bias - of_codes) < 1


def test_terms_without_weight_have_no_parameters(rng):
    batch = make_batch(rng)
    for options, names in (
        ({"alpha": 0.0}, {"encoder", "local_critic", "prior_critic"}),
        ({"beta": 0.0, "gamma": 0.0}, {"encoder", "global_critic"}),
    ):
        params, _ = build(**options).init(jax.random.key(0), batch)
        assert set(params) == names


def test_loss_weighs_its_terms(rng):
    method, batch = build(gamma=0.0, alpha=0.5, beta=2.0), make_batch(rng)
    params, state = method.init(jax.random.key(0), batch)
    value, (_, m) = method.loss(params, state, batch, jax.random.key(0))
    expected = -0.5 * m["global_information"] - 2.0 * m["local_information"]
    chex.assert_trees_all_close(value, expected, rtol=1e-5)
    assert m["global_information"] < 0  # JSD


def test_info_nce_is_never_above_its_log_n(rng):
    method, batch = build(estimator="info_nce", gamma=0.0), make_batch(rng)
    *_, history = train(method, batch, 60)
    assert history[-1]["global_information"] > 1.0
    assert all(row["global_information"] <= math.log(16) for row in history)
    assert all(row["local_information"] <= math.log(15 * 16 + 1) for row in history)


def test_it_learns_and_touches_every_parameter(rng):
    optimizer = prior_optimizer(optax.adam(1e-2), optax.adam(3e-3))
    start, state, history = train(build(), make_batch(rng), 80, optimizer)
    check_all_moved(start, state)
    first, last = (
        np.mean([row["global_information"] for row in rows])
        for rows in (history[:10], history[-10:])
    )
    assert last > first + 0.3


def test_the_prior_has_its_own_optimizer(rng):
    optimizer = prior_optimizer(optax.sgd(0.0), optax.sgd(0.1))
    start, state, _ = train(build(), make_batch(rng), 1, optimizer)
    for name, part in start.params.items():
        same = jax.tree.map(lambda a, b: bool((a == b).all()), part, state.params[name])
        assert all(jax.tree.leaves(same)) == (name != "prior_critic"), name


@pytest.mark.parametrize("estimator", ["jsd", "dv"])
def test_many_devices_take_the_same_steps_as_one(rng, estimator):
    """Codes, maps of other devices, batch statistics and samples of the prior."""
    check_devices(
        lambda axis_name: build(axis_name, estimator=estimator), make_batch(rng), 4
    )


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: build(alpha=-1.0), "weights must not be negative"),
        (lambda: build(alpha=0.0, beta=0.0), "alpha or beta positive"),
        (lambda: estimate_information(jnp.zeros((1, 1, 2))), "another image"),
        (lambda: estimate_information(jnp.zeros((2, 2, 1)), "mine"), "estimator"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
