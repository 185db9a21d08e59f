"""Bounds against loops, against Gaussians whose information is known, and log N."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxml.parallel import data_mesh, pmean
from jaxml.ssl import (
    discrete_mutual_information,
    donsker_varadhan,
    gaussian_mutual_information,
    info_nce_bound,
    jensen_shannon,
    nwj,
    split_scores,
)
from tests.numerical import close, gradients


def dv_numpy(joint, product):
    return np.mean(joint) - np.log(np.mean(np.exp(product)))


def nwj_numpy(joint, product):
    return np.mean(joint) - np.mean(np.exp(product)) / math.e


def jsd_numpy(joint, product):
    inside = np.mean(np.log(1 / (1 + np.exp(-joint))))
    return inside + np.mean(np.log(1 - 1 / (1 + np.exp(-product))))


def info_nce_numpy(joint, product):
    terms = []
    for own, others in zip(joint, product, strict=True):
        terms.append(np.log(np.exp(own) / (np.exp(own) + np.exp(others).sum())))
    return np.log(product.shape[1] + 1) + np.mean(terms)


BOUNDS = [
    (donsker_varadhan, dv_numpy),
    (nwj, nwj_numpy),
    (jensen_shannon, jsd_numpy),
    (info_nce_bound, info_nce_numpy),
]


@pytest.mark.parametrize("bound, reference", BOUNDS, ids=lambda f: f.__name__)
def test_bounds_match_loops(rng, bound, reference):
    joint, product = rng.normal(size=5), 2 * rng.normal(size=(5, 3))
    value, grads = jax.value_and_grad(bound, (0, 1))(
        np.float32(joint), np.float32(product)
    )
    close(value, reference(joint, product), scale=3)
    for got, wanted in zip(grads, gradients(reference, joint, product), strict=True):
        close(got, wanted, rtol=1e-5, atol=1e-5)


def test_discrete_matches_loops(rng):
    counts = rng.integers(0, 5, size=(4, 6))
    counts[2] = 0
    p = counts / counts.sum()
    expected = 0.0
    for i in range(4):
        for j in range(6):
            if p[i, j] > 0:
                expected += p[i, j] * np.log(p[i, j] / p[i].sum() / p[:, j].sum())
    close(discrete_mutual_information(np.float32(counts)), expected)
    close(discrete_mutual_information(counts), expected)
    independent = np.outer([1, 2, 3], [4, 5]).astype(np.float32)
    close(discrete_mutual_information(independent), 0.0)
    assert discrete_mutual_information(jnp.zeros((2, 2))) == 0


def gaussians(rho, dim, n, seed=0):
    """x, y [n, dim], and the log density ratio as a critic on all pairs."""
    x, noise = np.random.default_rng(seed).normal(size=(2, n, dim))
    y = rho * x + np.sqrt(1 - rho**2) * noise

    def critic(x, y):
        """log p(y | x) / p(y), summed over coordinates: [len(x), len(y)]."""
        cross = x @ y.T
        squares = (x**2).sum(1)[:, None] + (y**2).sum(1)[None]
        quadratic = (2 * rho * cross - rho**2 * squares) / (2 * (1 - rho**2))
        return quadratic - dim / 2 * np.log(1 - rho**2)

    return x, y, critic


@pytest.mark.parametrize("rho, dim", [(0.5, 1), (0.6, 3)])
def test_the_best_critic_reaches_the_information(rho, dim):
    """DV and NWJ do; InfoNCE does while I is small beside log N."""
    x, y, critic = gaussians(rho, dim, 2000)
    joint, product = split_scores(jnp.asarray(critic(x, y), jnp.float32))
    truth = gaussian_mutual_information(rho, dim)
    close(truth, -dim / 2 * math.log(1 - rho**2))
    for estimate in (
        donsker_varadhan(joint, product),
        nwj(joint + 1, product + 1),
        info_nce_bound(joint, product),
    ):
        assert abs(estimate - truth) < 0.06
    # 2 JS - log 4, by quadrature in one dimension.
    if dim == 1:
        grid = np.linspace(-6, 6, 401)
        ratio = np.exp(critic(grid[:, None], grid[:, None]))
        normal = np.exp(-(grid**2) / 2) / np.sqrt(2 * np.pi)
        apart = np.outer(normal, normal) * (grid[1] - grid[0]) ** 2
        best = np.sum(apart * ratio * np.log(ratio / (1 + ratio)))
        best -= np.sum(apart * np.log(1 + ratio))
        assert abs(jensen_shannon(joint, product) - best) < 0.03


def test_other_critics_bound_from_below():
    """NWJ and InfoNCE, for worse and worse critics."""
    x, y, critic = gaussians(0.8, 2, 1000)
    truth = float(gaussian_mutual_information(0.8, 2))
    scores = jnp.asarray(critic(x, y), jnp.float32)
    for factor in (0.0, 0.5, 1.5):
        joint, product = split_scores(factor * scores)
        assert nwj(joint + 1, product + 1) < truth
        assert info_nce_bound(joint, product) < truth
    assert info_nce_bound(*split_scores(0 * scores)) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("n", [8, 64])
def test_info_nce_saturates_at_log_n(n):
    """Eighteen nats are there; log N is shown, and never more."""
    x, y, critic = gaussians(0.99, 9, n)
    assert gaussian_mutual_information(0.99, 9) > 17
    bound = info_nce_bound(*split_scores(jnp.asarray(critic(x, y), jnp.float32)))
    assert bound <= math.log(n)
    assert bound > 0.99 * math.log(n)
    assert info_nce_bound(jnp.full(3, 1e4), jnp.zeros((3, n - 1))) == np.float32(
        math.log(n)
    )


def test_dv_of_small_batches_is_biased_upwards():
    """The mean over many batches of 4 exceeds the truth; NWJ's does not."""
    truth = float(gaussian_mutual_information(0.9, 2))
    dv, unbiased = [], []
    for seed in range(400):
        x, y, critic = gaussians(0.9, 2, 4, seed)
        joint, product = split_scores(jnp.asarray(critic(x, y), jnp.float32))
        dv.append(float(dv_numpy(np.asarray(joint), np.asarray(product))))
        unbiased.append(
            float(nwj_numpy(np.asarray(joint) + 1, np.asarray(product) + 1))
        )
    assert np.mean(dv) > truth + 0.3
    assert np.mean(unbiased) < truth + 0.3


def test_scores_are_split_along_the_diagonal():
    scores = jnp.arange(12.0).reshape(3, 4)[:, :3]
    joint, product = split_scores(scores)
    assert joint.tolist() == [0, 5, 10]
    assert product.tolist() == [[1, 2], [4, 6], [8, 9]]


@pytest.mark.parametrize("bound", [f for f, _ in BOUNDS], ids=lambda f: f.__name__)
def test_many_devices_equal_one(rng, bound):
    x, y = np.float32(rng.normal(size=(2, 16, 3)))

    def value(x, y, axis_name=None):
        everyone = jax.lax.all_gather(y, axis_name, tiled=True) if axis_name else y
        joint, product = split_scores(x @ everyone.T, axis_name)
        options = {"axis_name": axis_name} if bound is donsker_varadhan else {}
        return pmean(bound(joint, product, **options), axis_name)

    sharded = jax.shard_map(
        lambda *args: value(*args, "data"),
        mesh=data_mesh(jax.devices()[:4]),
        in_specs=(P("data"), P("data")),
        out_specs=P(),
    )
    one = jax.value_and_grad(value, (0, 1))(x, y)
    many = jax.jit(jax.value_and_grad(sharded, (0, 1)))(x, y)
    chex.assert_trees_all_close(
        jax.device_get(many), jax.device_get(one), rtol=1e-5, atol=1e-6
    )


def test_large_scores_stay_finite():
    joint, product = jnp.full(3, 1e4), jnp.full((3, 5), 1e4)
    for bound in (donsker_varadhan, info_nce_bound, jensen_shannon):
        chex.assert_tree_all_finite(jax.value_and_grad(bound, (0, 1))(joint, product))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: split_scores(jnp.zeros((3, 4))), "must have 3 columns"),
        (lambda: info_nce_bound(jnp.zeros(3), jnp.zeros((2, 4))), "must have others|p"),
        (lambda: info_nce_bound(jnp.zeros(3), jnp.zeros((3, 0))), "must have others"),
        (lambda: discrete_mutual_information(jnp.zeros(3)), "must be a table|rank|x y"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
