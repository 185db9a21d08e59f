"""InstDisc against NumPy: the full softmax, NCE with its constant Z, the bank."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxml.compose import accumulated, average
from jaxml.nn import ConvNet
from jaxml.nn.functional import apply_module
from jaxml.ops import unit
from jaxml.parallel import sample_keys
from jaxml.ssl import (
    Projected,
    changed_rows,
    instance_softmax,
    instdisc,
    noise_scores,
)
from tests.numerical import close, gradients
from tests.ssl.trials import TinyBackbone, check_all_moved, check_devices, train

NUM = 13


def make_batch(rng, size=8, shape=(4, 4, 1)):
    image = np.float32(rng.uniform(size=(size, *shape)))
    view = np.float32(image + 0.1 * rng.normal(size=image.shape))
    index = np.int32(rng.permutation(NUM)[:size])
    return {"image": image, "view": view, "index": index}


def build(axis_name=None, **options):
    model = Projected(ConvNet((4, 8), axis_name=axis_name), (4,), axis_name=axis_name)
    return instdisc(model, NUM, **{"num_noise": 5, **options})


def softmax_numpy(v, indices, bank, temperature):
    losses = []
    for x, i in zip(v, indices, strict=True):
        exps = [np.exp(x @ f / temperature) for f in bank]
        losses.append(-np.log(exps[i] / sum(exps)))
    return np.mean(losses)


def nce_numpy(v, indices, drawn, bank, temperature, z, num):
    """Equations 5 to 7 of the paper, image by image."""
    losses = []
    for x, i, noise in zip(v, indices, drawn, strict=True):
        ratio = len(noise) / num

        def h(f, x=x, ratio=ratio):
            p = np.exp(x @ f / temperature) / z
            return p / (p + ratio)

        losses.append(-np.log(h(bank[i])) - sum(np.log(1 - h(bank[j])) for j in noise))
    return np.mean(losses)


def test_softmax_matches_numpy(rng):
    v, bank = rng.normal(size=(5, 3)), rng.normal(size=(NUM, 3))
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    bank /= np.linalg.norm(bank, axis=1, keepdims=True)
    indices = np.array([3, 0, 12, 7, 3])
    value, grad = jax.value_and_grad(instance_softmax)(
        np.float32(v), indices, np.float32(bank), 0.2
    )
    close(value, softmax_numpy(v, indices, bank, 0.2), scale=5)
    (expected,) = gradients(lambda v: softmax_numpy(v, indices, bank, 0.2), v)
    close(grad, expected, rtol=1e-5, atol=1e-5)


def test_noise_is_uniform_and_never_the_image_itself():
    """One coordinate for each image: the scores tell who was drawn."""
    bank = jnp.arange(6, dtype=jnp.float32)[:, None]
    own = jnp.array([0, 3, 5])
    keys = jax.random.split(jax.random.key(0), 3)
    drawn = noise_scores(jnp.ones((3, 1)), own, bank, keys, 6000, 1.0)
    for i, row in zip(own, np.asarray(drawn).astype(int), strict=True):
        counts = np.bincount(row, minlength=6)
        assert counts[i] == 0
        others = np.delete(counts, i)
        assert abs(others - 1200).max() < 5 * np.sqrt(1200)


def test_nce_matches_numpy_and_z_is_estimated_once(rng):
    method, batch = build(temperature=0.3), make_batch(rng)
    params, state = method.init(jax.random.key(0), batch)
    key = jax.random.key(7)
    model = Projected(ConvNet((4, 8)), (4,))
    (_, v), _ = apply_module(model, params, state["encoder"], batch["view"], train=True)
    v, bank = np.float64(v), np.float64(state["bank"])
    # Who is drawn is told by scores against a bank of numbers.
    drawn = noise_scores(
        jnp.ones((8, 1)),
        batch["index"],
        jnp.arange(NUM, dtype=jnp.float32)[:, None],
        sample_keys(key, 8, None),
        5,
        1.0,
    )
    drawn = np.asarray(drawn).round().astype(int)
    scores = [
        np.exp(x @ bank[j] / 0.3)
        for x, i, noise in zip(v, batch["index"], drawn, strict=True)
        for j in (i, *noise)
    ]
    z = NUM * np.mean(scores)
    actual, (after, _) = method.loss(params, state, batch, key)
    close(actual, nce_numpy(v, batch["index"], drawn, bank, 0.3, z, NUM), scale=10)
    chex.assert_trees_all_close(after["log_z"], np.float32(np.log(z)), rtol=1e-5)
    # Another batch, another key: the constant stays, in the loss as well.
    again, (later, _) = method.loss(
        params, {**after, "bank": state["bank"]}, make_batch(rng), jax.random.key(8)
    )
    chex.assert_trees_all_equal(later["log_z"], after["log_z"])
    fresh, _ = method.loss(params, state, make_batch(rng), jax.random.key(8))
    assert again != fresh


def test_all_noise_is_the_softmax_in_the_limit(rng):
    """With the true Z and much noise, NCE's gradient is that of the softmax."""
    v = unit(jnp.asarray(rng.normal(size=(2, 4)), jnp.float32))
    bank = unit(jnp.asarray(rng.normal(size=(NUM, 4)), jnp.float32))
    indices, num_noise = jnp.array([1, 5]), 20000
    keys = jax.random.split(jax.random.key(0), 2)
    from jaxml.losses import nce

    def contrast(v, i, key):
        s = bank @ v / 0.5
        noise = noise_scores(v[None], i[None], bank, key[None], num_noise, 0.5)
        uniform = -jnp.log(float(NUM))
        log_z = jax.lax.stop_gradient(jax.nn.logsumexp(s))
        return nce(s[i][None], noise, uniform, uniform, log_z)

    for x, i, key in zip(v, indices, keys, strict=True):
        ours = jax.grad(contrast)(x, i, key)
        limit = jax.grad(lambda x, i=i: instance_softmax(x[None], i[None], bank, 0.5))(
            x
        )
        # Noise without the image itself leaves its own repulsion out.
        s = jax.nn.softmax(bank @ x / 0.5)
        limit -= s[i] * bank[i] / 0.5
        cosine = jnp.vdot(ours, limit) / jnp.linalg.norm(ours) / jnp.linalg.norm(limit)
        assert cosine > 0.99


def test_the_bank_is_read_before_it_is_written(rng):
    """Loss and proximal term see what the bank held; then it holds the average."""
    batch = make_batch(rng)
    plain, near = (
        build(num_noise=None, proximal=p, temperature=0.3) for p in (0.0, 2.0)
    )
    params, state = plain.init(jax.random.key(0), batch)
    model = Projected(ConvNet((4, 8)), (4,))
    (_, z), _ = apply_module(model, params, state["encoder"], batch["view"], train=True)
    old = state["bank"][batch["index"]]
    values = [
        method.loss(params, state, batch, jax.random.key(1)) for method in (plain, near)
    ]
    expected = instance_softmax(z, batch["index"], state["bank"], 0.3)
    chex.assert_trees_all_close(values[0][0], expected, rtol=1e-6)
    apart = jnp.mean(jnp.sum(jnp.square(z - old), axis=1))
    chex.assert_trees_all_close(values[1][0], expected + 2 * apart, rtol=1e-5)
    bank = values[0][1][0]["bank"]
    chex.assert_trees_all_close(
        bank[batch["index"]], unit((old + z) / 2), rtol=1e-5, atol=1e-6
    )
    others = np.setdiff1d(np.arange(NUM), batch["index"])
    chex.assert_trees_all_equal(bank[others], state["bank"][others])


def test_accumulation_writes_the_bank_once(rng):
    batch = make_batch(rng)
    model = Projected(TinyBackbone(), (4,))
    method = instdisc(model, NUM, num_noise=None)
    rules = {"bank": changed_rows, "log_z": average, "has_z": average}
    parts = accumulated(method, 2, merge=rules)
    _, whole, _ = train(method, batch, 2, optax.sgd(0.1))
    _, halves, _ = train(parts, batch, 2, optax.sgd(0.1))
    chex.assert_trees_all_close(halves, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_noise", [20, None])
def test_it_learns_and_touches_every_parameter(rng, num_noise):
    method, batch = build(num_noise=num_noise, temperature=0.2), make_batch(rng)
    start, state, history = train(method, batch, 40)
    check_all_moved(start, state)
    assert history[-1]["loss"] < 0.6 * history[0]["loss"]


@pytest.mark.parametrize("devices", [2, 8])
def test_many_devices_take_the_same_steps_as_one(rng, devices):
    """Noise, Z and the order of writes included; two rows are of one image."""
    batch = make_batch(rng, 16)
    batch["index"] = np.int32(rng.integers(0, NUM, 16))
    check_devices(build, batch, devices)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_images": 1}, "num_images must be at least 2"),
        ({"num_noise": 0}, "num_noise must be at least 1"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"proximal": -1.0}, "proximal must not be negative"),
    ],
)
def test_bad_input_is_refused(options, message):
    options = {"num_images": 5, **options}
    with pytest.raises(ValueError, match=message):
        instdisc(Projected(TinyBackbone()), **options)
