"""The perceptron: its rule, its bound, and what it cannot do without a bias."""

import itertools
from dataclasses import replace

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.fundamentals.perceptron import (
    Config,
    decision,
    fit,
    mistake_bound,
    predict,
)

IN_ORDER = Config(shuffle=False)


def by_hand(x, y, epochs, bias):
    """Rosenblatt's rule in float64, one point after the other."""
    w, b, sums, mistakes = np.zeros(x.shape[1]), 0.0, 0.0, []
    steps = 0
    for _ in range(epochs):
        wrong = 0
        for point, label in zip(x, y, strict=True):
            if label * (point @ w + b) <= 0:
                w, b, wrong = w + label * point, b + label * bias, wrong + 1
            sums, steps = sums + np.append(w, b), steps + 1
        mistakes.append(wrong)
        if not wrong:
            break
    return w, b, mistakes, sums / steps


@pytest.mark.parametrize("bias", [False, True])
def test_the_rule(rng, bias):
    x = rng.integers(-8, 9, size=(40, 3)).astype(np.float32)  # exact in float32
    y = np.where(x @ [1, 2, -1] + 3 + 4 * rng.normal(size=40) > 0, 1, -1)
    config = replace(IN_ORDER, epochs=7, bias=bias)
    w, b, mistakes, mean = by_hand(x, y, 7, bias)
    model = fit(x, y, config)
    np.testing.assert_array_equal(model.weights, w)
    assert model.bias == b
    assert model.mistakes.tolist() == mistakes + [0] * (7 - len(mistakes))
    averaged = fit(x, y, replace(config, averaged=True))
    got = np.append(averaged.weights, averaged.bias)
    np.testing.assert_allclose(got, mean, rtol=1e-5)
    points = rng.normal(size=(5, 3)).astype(np.float32)
    np.testing.assert_allclose(decision(model, points), points @ w + b, rtol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_mistakes_stay_under_the_bound(rng, bias):
    """Whatever the order, over 25 problems with margins from wide to narrow."""
    config = Config(epochs=2000, bias=bias)
    learn = jax.jit(lambda x, y, key: fit(x, y, config, key))
    for seed in range(25):
        angle, offset = rng.uniform(0, 2 * np.pi), bias * float(rng.normal())
        direction = np.array([np.cos(angle), np.sin(angle)])
        x = rng.normal(size=(400, 2)).astype(np.float32)
        side = x @ direction + offset
        keep = np.flatnonzero(np.abs(side) > rng.uniform(0.1, 0.8))[:40]
        x, y = x[keep], np.sign(side[keep])
        assert len(x) == 40  # one compilation for all
        bound = mistake_bound(x, y, direction, offset)
        model = learn(x, y, jax.random.key(seed))
        assert 0 < model.mistakes.sum() <= bound
        assert (predict(model, x) == y).all()
        assert bool(model.bias == 0) >= (not bias)


def test_without_a_bias_and_is_out_of_reach():
    x = np.array(list(itertools.product([0, 1], repeat=2)), np.float32)
    y = np.array([-1, -1, -1, 1])
    learned = fit(x, y, IN_ORDER)
    assert (predict(learned, x) == y).all()
    assert learned.mistakes[-1] == 0
    without = fit(x, y, replace(IN_ORDER, bias=False))
    # At the origin f is 0 whatever the weights: every epoch has a mistake.
    assert (without.mistakes > 0).all()
    assert without.bias == 0
    # A shifted cloud, which every line through the origin cuts, needs the bias as well.
    shifted = np.array([[2, 2], [3, 3], [2.5, 2.5]], np.float32)
    between = np.array([-1, 1, -1])
    assert (fit(shifted, between, replace(IN_ORDER, bias=False)).mistakes > 0).all()
    model = fit(shifted, between, replace(IN_ORDER, epochs=1000))
    assert (predict(model, shifted) == between).all()


def test_the_bound_belongs_to_the_data():
    x, y = np.array([[3.0, 0], [-1, 0]]), np.array([1, -1])
    assert mistake_bound(x, y, np.array([2.0, 0])) == pytest.approx(9)
    assert mistake_bound(x, -y, np.array([2.0, 0])) == np.inf
    # With an offset both hold one more entry: R^2 = 10, gamma = 1.
    assert mistake_bound(x, y, np.array([1.0, 0]), -1e-9) == pytest.approx(10)


def test_a_linear_kernel_is_the_perceptron(rng):
    x = rng.integers(-8, 9, size=(30, 3)).astype(np.float32)
    y = rng.choice([-1, 1], size=30)
    config = replace(IN_ORDER, epochs=5)
    plain = fit(x, y, config)
    dual = fit(x, y, replace(config, kernel=jnp.dot))
    np.testing.assert_array_equal(dual.mistakes, plain.mistakes)
    np.testing.assert_array_equal(dual.weights @ x, plain.weights)
    np.testing.assert_allclose(decision(dual, x), decision(plain, x))


def test_a_kernel_learns_rings(rng):
    angle, radius = rng.uniform(0, 2 * np.pi, 80), np.repeat([1.0, 2.0], 40)
    ring = np.stack([np.cos(angle), np.sin(angle)], 1) * radius[:, None]
    x, y = ring.astype(np.float32), np.repeat([-1, 1], 40)
    square = lambda a, b: (a @ b + 1) ** 2
    model = fit(x, y, Config(kernel=square), jax.random.key(0))
    assert (predict(model, x) == y).all()
    assert (predict(fit(x, y, key=jax.random.key(0)), x) != y).any()


def test_averaging_forgets_the_last_accident(rng):
    """On data that nothing separates the mean is right more often than the last weights."""
    x = rng.normal(size=(400, 5)).astype(np.float32)
    clean = np.where(x[:, 0] > 0, 1, -1)
    noisy = np.where(rng.uniform(size=400) < 0.2, -clean, clean)
    rates = []
    for averaged in (False, True):
        config = Config(epochs=10, averaged=averaged)
        models = [fit(x, noisy, config, jax.random.key(i)) for i in range(5)]
        rates.append(np.mean([predict(m, x) == clean for m in models]))
    assert rates[1] > rates[0] + 0.05


def test_mapped_and_compiled(rng):
    x = rng.normal(size=(20, 2)).astype(np.float32)
    y = np.where(x.sum(1) > 0, 1, -1)
    keys = jax.random.split(jax.random.key(0), 3)
    one = lambda key: fit(jnp.asarray(x), jnp.asarray(y), Config(), key).weights
    many = jax.jit(jax.vmap(one))(keys)
    chex.assert_trees_all_close(many, jnp.stack([one(key) for key in keys]), rtol=1e-6)


def test_before_batch_norm_a_bias_is_no_use(rng):
    """Its gradient is zero; BatchNorm's own bias does its work."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(4, bias_init=nn.initializers.normal(1.0))(x)
            return nn.BatchNorm(use_running_average=False)(x)

    x = jnp.asarray(rng.normal(size=(16, 3)), jnp.float32)
    variables = Net().init(jax.random.key(0), x)

    def loss(params):
        out, _ = Net().apply(variables | {"params": params}, x, mutable="batch_stats")
        return jnp.sum(jnp.sin(out + jnp.cos(x.sum())))

    grads = jax.grad(loss)(variables["params"])
    assert np.abs(grads["Dense_0"]["bias"]).max() < 1e-5
    assert np.abs(grads["Dense_0"]["kernel"]).max() > 1e-2
    assert np.abs(grads["BatchNorm_0"]["bias"]).max() > 1e-1


def test_refuses_what_it_cannot_learn_from():
    x, y = np.ones((3, 2), np.float32), np.array([1, -1, 1])
    with pytest.raises(ValueError, match=r"labels must be -1 or 1, got \[0, 1\]"):
        fit(x, np.array([0, 1, 1]), IN_ORDER)
    with pytest.raises(ValueError, match=r"got \(3, 2\), \(2,\)"):
        fit(x, y[:2], IN_ORDER)
    with pytest.raises(ValueError, match=r"got \(0, 2\), \(0,\)"):
        fit(x[:0], y[:0], IN_ORDER)
    with pytest.raises(ValueError, match="finite"):
        fit(x * np.nan, y, IN_ORDER)
    with pytest.raises(ValueError, match="shuffle needs a key"):
        fit(x, y)
    with pytest.raises(ValueError, match="epochs must be at least 1, got 0"):
        fit(x, y, replace(IN_ORDER, epochs=0))
    with pytest.raises(ValueError, match=r"must be \[n, 2\], got \(3, 1\)"):
        predict(fit(x, y, IN_ORDER), x[:, :1])
