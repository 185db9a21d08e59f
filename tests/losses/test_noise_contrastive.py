"""NCE, negative sampling and InfoNCE against loops, and what they learn."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from jaxml.losses import info_nce, info_nce_rows, nce, negative_sampling
from jaxml.parallel import data_mesh, pmean
from tests.numerical import close, gradients


def nce_numpy(data, noise, data_log_noise, noise_log_noise, log_z):
    k = noise.shape[1]
    losses = []
    for i in range(len(data)):
        model = np.exp(data[i] - log_z)
        loss = -np.log(model / (model + k * np.exp(data_log_noise[i])))
        for j in range(k):
            model, floor = np.exp(noise[i, j] - log_z), np.exp(noise_log_noise[i, j])
            loss -= np.log(1 - model / (model + k * floor))
        losses.append(loss)
    return np.mean(losses)


def info_nce_numpy(query, positive, negatives, temperature=1.0, normalize=False):
    """`negatives` holds a list of vectors for every query."""

    def score(x, y):
        if normalize:
            x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
        return np.exp(x @ y / temperature)

    losses = []
    for q, p, others in zip(query, positive, negatives, strict=True):
        losses.append(
            -np.log(score(q, p) / (score(q, p) + sum(score(q, o) for o in others)))
        )
    return np.mean(losses)


@pytest.mark.parametrize("n, k", [(1, 1), (5, 3)])
def test_nce_matches_loops(rng, n, k):
    args = (
        rng.normal(size=n),
        rng.normal(size=(n, k)),
        rng.normal(size=n),
        rng.normal(size=(n, k)),
        np.array(0.7),
    )
    value, grads = jax.value_and_grad(nce, (0, 1, 2, 3, 4))(*map(np.float32, args))
    close(value, nce_numpy(*args))
    for got, wanted in zip(grads, gradients(nce_numpy, *args), strict=True):
        close(got, wanted, rtol=1e-5, atol=1e-5)


def test_negative_sampling_drops_the_normaliser_and_the_noise(rng):
    data, noise = np.float32(rng.normal(size=4)), np.float32(rng.normal(size=(4, 3)))
    expected = np.mean(-np.log(1 / (1 + np.exp(-data)))) + np.mean(
        np.sum(-np.log(1 / (1 + np.exp(noise))), axis=1)
    )
    close(negative_sampling(data, noise), expected)
    # It is NCE where k p_n = 1 and Z = 1.
    chex.assert_trees_all_close(
        nce(data, noise, -jnp.log(3.0), -jnp.log(3.0)), negative_sampling(data, noise)
    )


def test_nce_learns_the_density_and_its_normaliser():
    """With all of data and noise at hand, the optimum is p itself, Z included."""
    p, noise, k = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6]), 4
    # Every outcome of one data and k noise samples, by its weight, is too many: the loss
    # is linear in them, so that the expectation takes each outcome once.
    counts = (1000 * p).round().astype(int)
    data = np.repeat(np.arange(3), counts)
    draws = np.tile(
        np.repeat(np.arange(3), (1000 * noise).astype(int))[:, None], (1, k)
    )

    def loss(params):
        s, log_z = params
        return nce(s[data], s[draws], np.log(noise)[data], np.log(noise)[draws], log_z)

    # s is fixed at its first entry, so that log_z has something to learn.
    params, optimizer = (jnp.zeros(3), jnp.array(1.0)), optax.adam(0.05)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
        grads = jax.grad(loss)(params)
        grads = (grads[0].at[0].set(0), grads[1])
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state

    for _ in range(400):
        params, state = step(params, state)
    learned = jnp.exp(params[0] - params[1])
    chex.assert_trees_all_close(learned, jnp.asarray(p, jnp.float32), atol=2e-3)


@pytest.mark.parametrize("kind", ["batch", "shared", "own"])
@pytest.mark.parametrize("temperature, normalize", [(1.0, False), (0.2, True)])
def test_info_nce_matches_loops(rng, kind, temperature, normalize):
    query, positive = rng.normal(size=(2, 5, 3))
    shape = {"batch": None, "shared": (7, 3), "own": (5, 4, 3)}[kind]
    negatives = [] if shape is None else [rng.normal(size=shape)]

    def expected(query, positive, *negatives):
        if kind == "batch":
            lists = [[p for j, p in enumerate(positive) if j != i] for i in range(5)]
        else:
            lists = negatives[0] if kind == "own" else [negatives[0]] * 5
        return info_nce_numpy(query, positive, lists, temperature, normalize)

    def actual(*args):
        return info_nce(*args, temperature=temperature, normalize=normalize, chunk=2)

    args = (query, positive, *negatives)
    argnums = tuple(range(len(args)))
    value, grads = jax.value_and_grad(actual, argnums)(*map(np.float32, args))
    close(value, expected(*args), scale=1 / temperature)
    for got, wanted in zip(grads, gradients(expected, *args), strict=True):
        close(got, wanted, rtol=1e-5, atol=1e-5 / temperature)


def test_the_bound_never_exceeds_log_n(rng):
    """A perfect critic costs nothing, and no critic costs less."""
    x = np.float32(100 * np.eye(8))
    assert info_nce(x, x) == 0
    for scale in (0.1, 1, 10, 100):
        x, y = np.float32(scale * rng.normal(size=(2, 16, 4)))
        assert info_nce(x, y) >= 0


def test_found_tells_nearer_from_equally_near(rng):
    x = np.float32(np.eye(4))
    for negatives in (None, np.float32(-np.eye(4)), -np.float32(np.ones((4, 2, 4)))):
        assert info_nce_rows(x, x, negatives).found.all()
    same = np.ones_like(x)
    assert not info_nce_rows(same, same, normalize=True).found.any()


@pytest.mark.parametrize("shape", [(7, 3), (5, 7, 3)])
def test_the_hardest_negative_has_its_share_of_the_softmax(rng, shape):
    x, y = np.float32(rng.normal(size=(2, 5, 3)))
    negatives = np.float32(rng.normal(size=shape))
    for temperature in (0.01, 1.0):
        rows = info_nce_rows(x, y, negatives, temperature=temperature)
        s = np.einsum("bd,...kd->bk" if len(shape) == 2 else "bd,bkd->bk", x, negatives)
        p = np.exp(np.float64(s - s.max(1, keepdims=True)) / temperature)
        np.testing.assert_allclose(rows.hardest, 1 / p.sum(1), rtol=1e-4)


def test_the_optimal_critic_is_the_density_ratio():
    """Two variables with three and four values: f - log p(x|c)/p(x) is constant in x."""
    joint = np.array([[20, 5, 5, 10], [5, 20, 10, 5], [5, 5, 5, 0]]) / 95
    ratio = np.log((joint + 1e-3) / joint.sum(0) / joint.sum(1, keepdims=True))
    pairs = np.repeat(np.arange(12), np.round(95 * joint).astype(int).reshape(-1))
    c, x = pairs // 4, pairs % 4
    one_hot = np.float32(np.eye(4))

    def loss(f):
        # Negatives in proportion to p(x): all samples but the own one.
        return info_nce(f[c], one_hot[x])

    f, optimizer = jnp.zeros((3, 4)), optax.adam(0.1)
    state = optimizer.init(f)

    @jax.jit
    def step(f, state):
        updates, state = optimizer.update(jax.grad(loss)(f), state)
        return optax.apply_updates(f, updates), state

    for _ in range(300):
        f, state = step(f, state)
    for row, wanted in zip(np.asarray(f)[:2], ratio[:2], strict=True):
        difference = row - wanted
        assert np.ptp(difference) < 0.1


@pytest.mark.parametrize("devices", [2, 8])
def test_many_devices_equal_one(rng, devices):
    query, positive = np.float32(rng.normal(size=(2, 16, 4)))

    def loss(query, positive, axis_name=None):
        value = info_nce(
            query, positive, temperature=0.5, normalize=True, axis_name=axis_name
        )
        return pmean(value, axis_name)

    sharded = jax.shard_map(
        lambda *args: loss(*args, "data"),
        mesh=data_mesh(jax.devices()[:devices]),
        in_specs=(P("data"), P("data")),
        out_specs=P(),
    )
    one = jax.value_and_grad(loss, (0, 1))(query, positive)
    many = jax.jit(jax.value_and_grad(sharded, (0, 1)))(query, positive)
    chex.assert_trees_all_close(
        jax.device_get(many), jax.device_get(one), rtol=1e-5, atol=1e-6
    )


X = np.ones((4, 2), np.float32)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: nce(X[:, 0], X[:1], 0.0, 0.0), "at least one sample for each|batch"),
        (lambda: nce(X[:, 0], X[:, :0], 0.0, 0.0), "at least one sample"),
        (lambda: nce(X[:, 0], X, X[:1, 0], 0.0), "log p_n must be|batch"),
        (lambda: negative_sampling(X[:, 0], X[:1]), "at least one sample|batch"),
        (lambda: info_nce(X, X[:1]), "one shape|batch"),
        (lambda: info_nce(X, X, temperature=0.0), "temperature must be positive"),
        (lambda: info_nce(X, X, np.ones((3, 5, 2), np.float32)), "every query must"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
