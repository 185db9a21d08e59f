"""Stochastic approximation against its theory, over thousands of chains at once."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxml.fundamentals.stochastic_approximation import (
    Conditions,
    dvoretzky_conditions,
    incremental_mean,
    kiefer_wolfowitz,
    polyak_ruppert,
    power_steps,
    robbins_monro,
    spsa,
    welford,
)

CHAINS = 4096


def chains(run, seed=0, count=CHAINS):
    """`run(key)` for many keys."""
    return np.asarray(
        jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(seed), count))
    )


def test_means_and_variances_one_at_a_time(rng):
    x = rng.normal(size=(200, 3)).astype(np.float32) + 1000
    means, variances = welford(jnp.asarray(x))
    for n in (1, 2, 7, 200):
        np.testing.assert_allclose(means[n - 1], np.float64(x[:n]).mean(0), rtol=1e-6)
        if n > 1:
            true = np.float64(x[:n]).var(0, ddof=1)
            np.testing.assert_allclose(variances[n - 1], true, rtol=5e-3)
    assert np.isnan(variances[0]).all()
    np.testing.assert_array_equal(incremental_mean(jnp.asarray(x)), means)
    with pytest.raises(ValueError, match=r"n > 0, got \(0, 3\)"):
        incremental_mean(jnp.zeros((0, 3)))


def test_the_mean_is_a_root(rng):
    """Robbins-Monro on theta - x with a_n = 1/n is the incremental mean."""
    samples = jnp.asarray(rng.normal(size=50), jnp.float32)
    key = jax.random.key(3)
    order = jnp.stack(
        [
            jax.random.randint(jax.random.fold_in(key, n), (), 0, 50)
            for n in range(1, 31)
        ]
    )
    draw = lambda key, theta: theta - samples[jax.random.randint(key, (), 0, 50)]
    path = robbins_monro(draw, jnp.float32(0), 30, key)
    np.testing.assert_allclose(path, incremental_mean(samples[order]), rtol=1e-5)


def test_gradients_of_single_samples_make_it_gradient_descent(rng):
    """The path is that of `optax.sgd`, with a_n as its schedule, on the same samples."""
    x, y = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((9, 2), 9))
    key, steps = jax.random.key(5), power_steps(0.3, 0.6)
    loss = lambda theta, i: jnp.square(x[i] @ theta - y[i]) / 2
    measure = lambda key, theta: jax.grad(loss)(
        theta, jax.random.randint(key, (), 0, 9)
    )
    path = robbins_monro(measure, jnp.zeros(2), 6, key, steps)
    optimizer = optax.sgd(lambda count: steps(count + 1.0))
    theta, state = jnp.zeros(2), optimizer.init(jnp.zeros(2))
    for n in range(1, 7):
        gradient = measure(jax.random.fold_in(key, n), theta)
        update, state = optimizer.update(gradient, state)
        theta = optax.apply_updates(theta, update)
        np.testing.assert_allclose(path[n - 1], theta, rtol=1e-5)


SLOPE = np.array([[2.0, 0.5], [0.0, 1.0]], np.float32)
ROOT = np.array([1.0, -2.0], np.float32)
NOISE = np.array([[1.0, 0.0], [0.8, 0.6]], np.float32)  # covariance NOISE NOISE^T


def noisy_line(key, theta):
    return SLOPE @ (theta - ROOT) + NOISE @ jax.random.normal(key, (2,))


def test_the_averaged_path_has_the_optimal_covariance():
    """n cov -> A^-1 S A^-T, entry by entry within five standard errors."""
    n = 2000
    steps = power_steps(0.5, 0.7)
    run = lambda key: polyak_ruppert(
        robbins_monro(noisy_line, jnp.zeros(2), n, key, steps), 200
    )[-1]
    got = chains(run)
    inverse = np.linalg.inv(SLOPE)
    expected = inverse @ NOISE @ NOISE.T @ inverse.T / (n - 200)
    covariance = np.cov(got.T)
    error = np.sqrt((expected**2 + np.outer(*2 * [np.diag(expected)])) / CHAINS)
    # The remainder of order n^-0.3 of the theorem is a tenth here.
    assert (np.abs(covariance - expected) < 5 * error + 0.15 * np.abs(expected)).all()
    assert (
        np.abs(got.mean(0) - ROOT).max() < 5 * np.sqrt(expected.max() / CHAINS) + 2e-3
    )


def test_large_steps_alone_do_not_settle():
    """The last place of the same path is far worse than its mean."""
    steps = power_steps(0.5, 0.7)
    run = lambda key: robbins_monro(noisy_line, jnp.zeros(2), 2000, key, steps)
    path = chains(lambda key: run(key)[-1:])
    mean = chains(lambda key: polyak_ruppert(run(key), 200)[-1:])
    error = lambda x: np.square(x[:, 0] - ROOT).sum(1).mean()
    assert error(path) > 2 * error(mean)


def test_one_over_n_needs_the_right_constant():
    """For theta - x the variance is a^2 / (2 a - 1) / n for a > 1/2, and worse below."""
    n = 1000
    line = lambda key, theta: theta + jax.random.normal(key)
    for scale in (0.75, 1.0, 2.0):
        run = lambda key, a=scale: robbins_monro(
            line, jnp.float32(0), n, key, power_steps(a)
        )[-1]
        expected = scale**2 / (2 * scale - 1) / n
        assert chains(run).var() == pytest.approx(expected, rel=0.12)
    slow = lambda key: robbins_monro(line, jnp.float32(1), n, key, power_steps(0.2))[-1]
    assert abs(chains(slow).mean()) > 0.1  # n^-0.2 of the start is still there


def noisy_bowl(key, theta):
    """Minimum at (1, -1); the cubic gives differences a bias."""
    gap = theta - jnp.array([1.0, -1.0])
    return jnp.sum(gap**2 + gap**3 / 3 + 0.1 * gap**4) + 0.1 * jax.random.normal(key)


def test_differences_find_the_minimum_at_their_rate():
    """The mean square error falls as n^(-2/3) for widths n^(-1/6), the best choice."""
    errors = []
    for n in (1000, 8000):
        run = lambda key, n=n: kiefer_wolfowitz(
            noisy_bowl,
            jnp.zeros(2),
            n,
            key,
            power_steps(0.5, 1, 5),
            power_steps(1, 1 / 6),
        )[-1]
        gap = chains(run, count=1024) - np.array([1, -1])
        errors.append(np.square(gap).sum(1).mean())
    rate = np.log(errors[0] / errors[1]) / np.log(8)
    assert rate == pytest.approx(2 / 3, abs=0.12)


def test_two_values_are_enough_in_any_dimension():
    calls = []

    def bowl(key, theta):
        calls.append(theta.shape)
        return jnp.sum(jnp.square(theta - 1)) + 0.1 * jax.random.normal(key)

    steps, width = power_steps(0.3, 0.602, 20), power_steps(0.3, 0.101)
    path = spsa(bowl, jnp.zeros(20), 3000, jax.random.key(0), steps, width)
    assert calls == [(20,), (20,)]  # traced once
    assert np.abs(path[-1] - 1).max() < 0.1
    # The direction is right on average: E[d d^T] = 1, and central differences are exact.
    first = lambda key: spsa(
        lambda _, theta: jnp.sum(jnp.arange(1.0, 4.0) * theta**2),
        jnp.ones(3),
        1,
        key,
        power_steps(1.0),
        width,
    )[0]
    moves = 1 - chains(first)
    np.testing.assert_allclose(moves.mean(0), [2, 4, 6], atol=5 * 8 / np.sqrt(CHAINS))


@pytest.mark.parametrize(
    ("power", "reach", "vanish"),
    [
        (0, True, False),
        (0.4, True, False),
        (0.5, True, False),
        (0.7, True, True),
        (1, True, True),
        (1.3, False, True),
    ],
)
def test_conditions_of_powers(power, reach, vanish):
    expected = Conditions(reach, vanish, vanish)
    assert dvoretzky_conditions(power_steps(3.0, power)) == expected
    assert expected.hold == (0.5 < power <= 1)


def test_conditions_of_other_sequences():
    log = np.log
    slowly = dvoretzky_conditions(lambda n: 1 / (n * log(n + 1) ** 2))
    assert slowly == Conditions(False, True, True)
    assert dvoretzky_conditions(lambda n: 1 / (n * log(n + 1))).steps_reach
    assert not dvoretzky_conditions(lambda n: 0.5 ** min(n, 5000.0)).steps_reach
    noise = dvoretzky_conditions(power_steps(1), lambda n: 1.0)
    assert noise == Conditions(True, True, False)
    with pytest.raises(ValueError, match="not negative, got -1"):
        dvoretzky_conditions(lambda n: -1.0)


def test_an_exponential_average_does_not_settle():
    """A constant step leaves the variance a / (2 - a) of the noise, for ever."""
    line = lambda key, theta: theta + jax.random.normal(key)
    steps = lambda n: 0.1
    run = lambda key: robbins_monro(line, jnp.float32(0), 400, key, steps)[-1]
    assert chains(run).var() == pytest.approx(0.1 / 1.9, rel=0.15)
    assert not dvoretzky_conditions(steps).hold


def test_refuses_what_makes_no_path():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        robbins_monro(noisy_line, jnp.zeros(2), 0, key)
    with pytest.raises(ValueError, match=r"shape \(2,\), got \(\)"):
        robbins_monro(lambda key, theta: theta.sum(), jnp.zeros(2), 3, key)
    with pytest.raises(ValueError, match=r"burn_in must be in \[0, 3\), got 3"):
        polyak_ruppert(jnp.zeros(3), 3)
