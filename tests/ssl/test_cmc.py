"""CMC: which view meets which bank, both graphs, Lab views, devices."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.losses import info_nce
from jaxml.ops import rgb_to_lab
from jaxml.ssl import CMC, cmc, instance_nce, split_lab
from tests.numerical import close
from tests.ssl.trials import TinyBackbone, check_all_moved, check_devices, train

NUM = 13


def thirds(images):
    """Three views: the upper, the middle and the lower part."""
    return images[:, :2], images[:, 2:4], images[:, 4:]


def model(count=3, axis_name=None):
    split = thirds if count == 3 else lambda x: (x[:, :3], x[:, 3:])
    return CMC([TinyBackbone() for _ in range(count)], 4, split, axis_name)


def make_batch(rng, size=8):
    """Rows that repeat, so that each part tells the others."""
    row = rng.uniform(size=(size, 1, 6, 1)) + 0.1 * rng.uniform(size=(size, 6, 6, 1))
    index = np.int32(rng.permutation(NUM)[:size])
    return {"image": np.float32(row), "view": np.float32(row), "index": index}


@pytest.mark.parametrize("graph, count, terms", [("full", 3, 6), ("core", 3, 4)])
def test_in_batch_loss_sums_over_the_graph(rng, graph, count, terms):
    net, batch = model(count), make_batch(rng)
    method = cmc(net, graph=graph, temperature=0.3)
    params, state = method.init(jax.random.key(0), batch)
    _, z = net.apply({"params": params}, batch["view"], train=True)
    pairs = [(a, b) for a in range(count) for b in range(count) if a != b]
    if graph == "core":
        pairs = [(a, b) for a, b in pairs if a == 0 or b == 0]
    assert len(pairs) == terms
    z = np.float64(z)
    expected = 0.0
    for a, b in pairs:
        s = np.exp(z[a] @ z[b].T / 0.3)
        expected -= np.mean(np.log(np.diag(s) / s.sum(1)))
    value, _ = method.loss(params, state, batch, jax.random.key(0))
    close(value, expected, scale=20)


def test_an_anchor_meets_the_other_view_s_bank(rng):
    """Two views: the loss is NCE of each with the bank of the other, then both are written."""
    net, batch = model(2), make_batch(rng)
    method = cmc(net, NUM, temperature=0.3, num_noise=5)
    params, state = method.init(jax.random.key(0), batch)
    assert jnp.any(state["bank1"] != state["bank2"])
    _, z = net.apply({"params": params}, batch["view"], train=True)
    key, zero = jax.random.key(7), jnp.zeros(())
    options = {"num_noise": 5, "temperature": 0.3}
    total = 0.0
    for i, (own, bank) in enumerate(((z[0], "bank2"), (z[1], "bank1"))):
        value, _ = instance_nce(
            own,
            batch["index"],
            state[bank],
            jax.random.fold_in(key, i),
            zero,
            zero,
            **options,
        )
        total += value
    actual, (after, _) = method.loss(params, state, batch, key)
    chex.assert_trees_all_close(actual, total, rtol=1e-6)
    for v, bank in enumerate(("bank1", "bank2")):
        mixed = state[bank][batch["index"]] + z[v]
        mixed /= jnp.linalg.norm(mixed, axis=1, keepdims=True)
        chex.assert_trees_all_close(
            after[bank][batch["index"]], mixed, rtol=1e-5, atol=1e-6
        )
    again, (later, _) = method.loss(params, after, batch, jax.random.key(8))
    chex.assert_trees_all_equal(later["log_z"], after["log_z"])
    assert jnp.isfinite(again)


def test_lab_views_have_one_scale(rng):
    images = np.float32(rng.uniform(size=(2, 5, 4, 3)))
    lightness, colours = split_lab(images)
    lab = rgb_to_lab(images)
    chex.assert_trees_all_close(50 * (lightness + 1), lab[..., :1], rtol=1e-5)
    chex.assert_trees_all_close(110 * colours, lab[..., 1:], rtol=1e-5)
    assert jnp.abs(lightness).max() <= 1
    assert jnp.abs(colours).max() <= 1


def test_predict_puts_the_features_of_all_views_side_by_side(rng):
    net, batch = model(3), make_batch(rng)
    method = cmc(net)
    params, state = method.init(jax.random.key(0), batch)
    h = method.predict(params, state, batch)
    chex.assert_shape(h, (8, 24))


@pytest.mark.parametrize("num_images", [None, NUM])
def test_it_learns_and_touches_every_parameter(rng, num_images):
    method = cmc(model(2), num_images, temperature=0.2, num_noise=20)
    start, state, history = train(method, make_batch(rng), 40)
    check_all_moved(start, state)
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]


@pytest.mark.parametrize("num_images", [None, NUM])
def test_many_devices_take_the_same_steps_as_one(rng, num_images):
    batch = make_batch(rng)
    check_devices(
        lambda axis_name: cmc(model(2, axis_name), num_images, num_noise=5),
        batch,
        4,
    )


def test_views_that_share_nothing_stay_at_chance(rng):
    """The loss of unrelated embeddings is at least that of a guess."""
    x, y = np.float32(rng.normal(size=(2, 64, 8)))
    assert info_nce(x, y, normalize=True) > 0.9 * np.log(64)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: cmc(model(2), 1), "num_images must be at least 2"),
        (lambda: cmc(model(2), temperature=0.0), "temperature must be positive"),
        (lambda: cmc(model(2), graph="ring"), "graph"),
        (
            lambda: cmc(CMC([TinyBackbone()], 4, thirds)).init(
                jax.random.key(0), {"view": jnp.ones((2, 6, 6, 1))}
            ),
            "a backbone for each of at least two views",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
