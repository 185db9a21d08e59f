"""The discrete autoencoder: its terms in NumPy, schedules, use of codes, devices."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.ssl import (
    ImageTokenizer,
    gumbel_softmax,
    image_tokenizer,
    logit_laplace_loss,
    uniform_kl,
)
from tests.numerical import close, gradients
from tests.ssl.trials import check_all_moved, check_bfloat16, check_devices, train


def laplace_numpy(outputs, images, margin):
    c = images.shape[-1]
    y = margin + (1 - 2 * margin) * images
    mu, b = outputs[..., :c], np.exp(outputs[..., c:])
    density = np.exp(-abs(np.log(y / (1 - y)) - mu) / b) / (2 * b * y * (1 - y))
    return -np.mean(np.log(density))


@pytest.mark.parametrize("margin", [0.1, 0.02])
def test_logit_laplace_is_a_density_and_matches_numpy(rng, margin):
    images = rng.uniform(size=(2, 3, 2, 2))
    images[0, 0, 0] = [0, 1]
    outputs = rng.normal(size=(2, 3, 2, 4))
    value, grad = jax.value_and_grad(logit_laplace_loss)(
        jnp.float32(outputs), jnp.float32(images), margin=margin
    )
    close(value, laplace_numpy(outputs, images, margin), scale=4)
    (slope,) = gradients(lambda o: laplace_numpy(o, images, margin), outputs)
    close(grad, slope, rtol=1e-4, atol=1e-5)
    # Over all of (0, 1) the density has mass 1.
    y = (np.arange(20000) + 0.5) / 20000
    x = np.float32((y - 0.1) / 0.8).reshape(-1, 1, 1, 1)
    out = np.tile(np.float32([0.3, -0.5]), (20000, 1, 1, 1))
    each = jax.vmap(lambda o, v: logit_laplace_loss(o[None], v[None]))(out, x)
    assert abs(np.mean(np.exp(-np.float64(each))) - 1) < 1e-3


def test_kl_is_that_of_the_uniform(rng):
    logits = 2 * rng.normal(size=(3, 2, 2, 5))
    q = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = (q * np.log(q * 5)).sum((1, 2, 3))
    close(uniform_kl(jnp.float32(logits)), expected, scale=10)
    close(uniform_kl(jnp.zeros((1, 2, 2, 5))), 0.0)


def test_weights_are_a_relaxed_draw(rng):
    """Of the softmax's frequencies when cold; straight through, one code with a gradient."""
    logits = jnp.asarray(rng.normal(size=(1, 1, 1, 4)), jnp.float32)
    noise = jax.random.gumbel(jax.random.key(0), (4000, 1, 1, 4))
    many = jnp.broadcast_to(logits, noise.shape)
    cold = gumbel_softmax(many, noise, 1e-3)
    p = np.exp(np.float64(logits)).ravel()
    p /= p.sum()
    assert np.abs(np.asarray(cold).mean(0).ravel() - p).max() < 5 * 0.5 / np.sqrt(4000)
    warm = gumbel_softmax(many, noise, 2.0)
    close(jnp.sum(warm, -1), np.ones((4000, 1, 1)))
    row = np.exp((np.float64(many) + np.float64(noise)) / 2)
    close(warm, row / row.sum(-1, keepdims=True))
    hard = gumbel_softmax(many, noise, 2.0, straight_through=True)
    assert set(np.unique(np.round(np.asarray(hard), 6))) == {0.0, 1.0}
    weight = jnp.asarray(rng.normal(size=(1, 1, 1, 4)), jnp.float32)
    of = lambda straight: jax.grad(
        lambda x: jnp.sum(
            weight * gumbel_softmax(x, noise[:1], 2.0, straight_through=straight)
        )
    )(logits)
    chex.assert_trees_all_close(of(True), of(False), rtol=1e-5)


def build(axis_name=None, likelihood="logit_laplace", **options):
    model = ImageTokenizer(
        6,
        downsamples=1,
        width=8,
        code_width=4,
        channels=1,
        likelihood=likelihood,
        axis_name=axis_name,
    )
    return image_tokenizer(model, **{"num_steps": 100, "kl_steps": 10, **options})


def make_batch(rng, size=8):
    """Patches of 2 x 2, each black or white."""
    patches = rng.uniform(size=(size, 3, 2, 1)) < 0.5
    image = np.float32(patches.repeat(2, axis=1).repeat(2, axis=2))
    return {"image": image, "view": image}


@pytest.fixture(scope="module")
def trained():
    rng = np.random.default_rng(4)
    return train(build(kl_weight=0.1), make_batch(rng, 16), 100)


def test_it_learns_codes_and_touches_every_parameter(rng, trained):
    start, state, history = trained
    check_all_moved(start, state)
    assert history[-1]["reconstruction"] < history[0]["reconstruction"] - 0.5
    batch = make_batch(rng)
    tokens = build().predict(state.params, state.model_state, batch)
    black = batch["image"][:, ::2, ::2].reshape(8, 6) == 0
    assert tokens.shape == (8, 6)
    counts = [
        np.bincount(np.asarray(tokens)[of], minlength=6) for of in (black, ~black)
    ]
    assert np.max(counts, axis=0).sum() >= 0.9 * black.size
    model = ImageTokenizer(6, 1, 8, 4, 1)
    painted = model.apply({"params": state.params}, batch["image"], method="pictures")
    assert np.abs(painted - batch["image"]).mean() < 0.15


def test_schedules_fall_and_rise(trained):
    start, state, _ = trained
    close(start.model_state["temperature"], 1.0)
    close(start.model_state["kl_weight"], 0.0)
    close(state.model_state["temperature"], 1 / 16)
    close(state.model_state["kl_weight"], 0.1)
    half = build().after_update({}, {}, jnp.int32(49))[1]
    close(half["temperature"], (1 + 1 / 16) / 2)


def test_loss_is_its_terms_and_usage_that_of_its_codes(rng):
    """With squared errors, in the middle of the schedules."""
    method, batch = build(likelihood="mse"), make_batch(rng)
    params, _ = jax.jit(method.init)(jax.random.key(0), batch)
    state = {"temperature": jnp.float32(0.5), "kl_weight": jnp.float32(3)}
    key = jax.random.key(1)
    value, (_, m) = jax.jit(method.loss)(params, state, batch, key)
    model = ImageTokenizer(6, 1, 8, 4, 1, "mse")
    run = lambda x, name: model.apply({"params": params}, x, method=name)
    logits = run(batch["view"], "encode")
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(8))
    noise = jax.vmap(lambda k: jax.random.gumbel(k, logits.shape[1:]))(keys)
    w = np.exp((np.float64(logits) + np.float64(noise)) / 0.5)
    w /= w.sum(-1, keepdims=True)
    out = np.float64(run(jnp.float32(w), "decode"))
    rebuilt = ((out - batch["view"]) ** 2).mean()
    close(m["reconstruction"], rebuilt, rtol=1e-5)
    q = np.exp(np.float64(logits))
    q /= q.sum(-1, keepdims=True)
    kl = (q * np.log(6 * q)).sum(-1).mean()
    close(m["kl"], kl, rtol=1e-5)
    close(value, rebuilt + 3 * kl * 6 / 24, rtol=1e-5)
    share = np.bincount(np.asarray(logits).argmax(-1).ravel(), minlength=6) / 48
    close(m["usage"], (share > 0).mean())
    real = share[share > 0]
    close(m["perplexity"], np.exp(-(real * np.log(real)).sum()), rtol=1e-5)


def test_a_step_runs_in_bfloat16(rng):
    check_bfloat16(build(), make_batch(rng))


def test_eight_devices_take_the_same_steps_as_one(rng):
    check_devices(build, make_batch(rng, 16), 8, num_steps=2)


def test_init_needs_no_mesh(rng):
    jax.eval_shape(build("data").init, jax.random.key(0), make_batch(rng))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: build(temperatures=(0.1, 1.0)), "temperatures must fall"),
        (lambda: build(kl_weight=-1.0), "weight not be negative"),
        (lambda: build(num_steps=0), "in 0 and 10 steps"),
        (
            lambda: build(likelihood="l1").init(
                jax.random.key(0), {"view": jnp.ones((1, 4, 4, 1))}
            ),
            "likelihood must be",
        ),
        (
            lambda: build().init(jax.random.key(0), {"view": jnp.ones((1, 3, 4, 1))}),
            "whole patches of 2 x 2",
        ),
        (
            lambda: logit_laplace_loss(jnp.ones((1, 2, 2, 3)), jnp.ones((1, 2, 2, 1))),
            "two parameters",
        ),
        (
            lambda: logit_laplace_loss(
                jnp.ones((1, 2, 2, 2)), jnp.ones((1, 2, 2, 1)), margin=0.5
            ),
            "margin must be",
        ),
        (
            lambda: gumbel_softmax(jnp.ones((1, 2, 2, 3)), jnp.ones((1, 1, 1, 3)), 1.0),
            "one shape|rows",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
