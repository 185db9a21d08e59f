"""Inpainting: the weighted loss, the channel-wise layer, the game, devices."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxml.ssl import (
    ChannelwiseDense,
    ContextEncoder,
    PaintingCritic,
    central_hole,
    inpainting,
    painter_optimizer,
    painting_loss,
)
from tests.numerical import close, gradients
from tests.ssl.trials import check_all_moved, check_bfloat16, check_devices, train


def loss_numpy(painted, images, hole, overlap, weight):
    """Pixel by pixel."""
    n, height, width, channels = images.shape
    total = 0.0
    for i in range(n):
        part, count = 0.0, 0
        for r in range(height):
            for c in range(width):
                near = hole[
                    i,
                    max(r - overlap, 0) : r + overlap + 1,
                    max(c - overlap, 0) : c + overlap + 1,
                ]
                if not near.any():
                    continue
                w = 1.0 if hole[i, r, c, 0] else weight
                part += w * ((painted[i, r, c] - images[i, r, c]) ** 2).sum()
                count += channels
        total += part / max(count, 1)
    return total / n


@pytest.mark.parametrize("overlap, weight", [(0, 10.0), (1, 10.0), (2, 3.0)])
def test_loss_matches_loops(rng, overlap, weight):
    images, painted = rng.uniform(size=(2, 3, 6, 5, 2))
    hole = np.stack([rng.uniform(size=(6, 5, 1)) < p for p in (0.1, 0.4, 0.0)])
    assert not hole[2].any()
    value, grad = jax.value_and_grad(painting_loss)(
        np.float32(painted),
        np.float32(images),
        hole,
        overlap=overlap,
        overlap_weight=weight,
    )
    close(value, loss_numpy(painted, images, hole, overlap, weight), scale=3)
    (expected,) = gradients(
        lambda x: loss_numpy(x, images, hole, overlap, weight), painted
    )
    close(grad, expected, rtol=1e-5, atol=1e-5)


def test_channels_are_joined_over_space_and_apart(rng):
    x = np.float32(rng.normal(size=(2, 3, 2, 4)))
    layer = ChannelwiseDense()
    variables = layer.init(jax.random.key(0), x)
    p = jax.tree.map(np.float64, variables["params"])
    chex.assert_shape(p["kernel"], (4, 6, 6))
    p["bias"] = rng.normal(size=p["bias"].shape)
    y = layer.apply({"params": jax.tree.map(np.float32, p)}, x)
    for i in range(2):
        for c in range(4):
            flat = np.float64(x[i, :, :, c]).reshape(-1)
            expected = flat @ p["kernel"][c] + p["bias"][:, c]
            close(y[i, :, :, c].reshape(-1), expected, scale=5)
    variance = p["kernel"].var()
    assert 0.5 / 6 < variance < 2 / 6  # of six inputs, not of 24


def make_batch(rng, size=8, side=8):
    """Slopes in any direction: what is hidden follows from what is seen."""
    ramp = np.linspace(-0.4, 0.4, side)
    slope = rng.uniform(-1, 1, size=(size, 2))
    image = 0.5 + slope[:, :1, None] * ramp[:, None] + slope[:, 1:, None] * ramp
    image = np.float32(image[..., None].clip(0, 1))
    hole = np.broadcast_to(np.asarray(central_hole(side, side)), (size, side, side, 1))
    return {"image": image, "view": image, "hole": hole}


def build(axis_name=None, widths=(4, 6), **options):
    options = {"adversarial": 0.01, "overlap": 1, **options}
    painter = ContextEncoder(widths, 1, axis_name)
    critic = PaintingCritic((4, 5), axis_name)
    return inpainting(painter, critic, axis_name=axis_name, **options)


@pytest.mark.parametrize("size", [(8, 8), (9, 7), (5, 10)])
def test_paintings_have_the_size_of_the_image(rng, size):
    x = np.float32(rng.uniform(size=(2, *size, 3)))
    model = ContextEncoder((3, 4, 5), 3)
    h, painted = model.init_with_output(jax.random.key(0), x, train=False)[0]
    chex.assert_shape((h, painted), [(2, 5), x.shape])
    assert 0 <= painted.min() < painted.max() <= 1


def test_hidden_pixels_reach_no_encoder(rng):
    method, batch = build(adversarial=0.0), make_batch(rng)
    params, state = method.init(jax.random.key(0), batch)
    noise = np.float32(rng.uniform(size=batch["view"].shape))
    other = {**batch, "view": np.where(batch["hole"], noise, batch["view"])}
    outs = [method.loss(params, state, b, jax.random.key(0)) for b in (batch, other)]
    (first, (state1, m1)), (second, (state2, m2)) = outs
    chex.assert_trees_all_equal(state1, state2)  # statistics of all layers
    chex.assert_trees_all_equal(m1["feature_std"], m2["feature_std"])
    assert abs(first - second) > 1e-3


@pytest.mark.parametrize("window", [None, 4])
def test_each_side_of_the_game_learns_from_its_own_term(rng, window):
    """The critic not from the painter's, the painter not from the critic's."""
    method, batch = build(adversarial=0.3, window=window), make_batch(rng)
    params, state = method.init(jax.random.key(0), batch)
    key = jax.random.key(3)
    (value, (_, m)), grads = jax.value_and_grad(method.loss, has_aux=True)(
        params, state, batch, key
    )
    painter, critic = ContextEncoder((4, 6), 1), PaintingCritic((4, 5))
    start, stop = (2, 6) if window else (0, 8)
    view = jnp.asarray(batch["view"])

    def painted(p):
        covered = jnp.where(batch["hole"], 0.5, view)
        (_, x), _ = painter.apply(
            {"params": p, **state["painter"]},
            covered,
            train=True,
            mutable=["batch_stats"],
        )
        return x

    def judged(p, x):
        logits, _ = critic.apply(
            {"params": p, **state["critic"]},
            x[:, start:stop, start:stop],
            train=True,
            mutable=["batch_stats"],
        )
        return logits

    def painters(p):
        x = painted(p)
        adversarial = -jnp.mean(jnp.log(jax.nn.sigmoid(judged(params["critic"], x))))
        rec = painting_loss(x, view, jnp.asarray(batch["hole"]), overlap=1)
        return 0.7 * rec + 0.3 * adversarial

    def critics(p):
        real = jnp.log(jax.nn.sigmoid(judged(p, view)))
        fake = jnp.log(1 - jax.nn.sigmoid(judged(p, painted(params["painter"]))))
        return -jnp.mean(real) - jnp.mean(fake)

    expected = {
        "painter": jax.grad(painters)(params["painter"]),
        "critic": jax.grad(critics)(params["critic"]),
    }
    chex.assert_trees_all_close(grads, expected, rtol=1e-3, atol=1e-5)
    both = painters(params["painter"]) + critics(params["critic"])
    chex.assert_trees_all_close(value, both, rtol=1e-5)
    chex.assert_trees_all_equal(m["loss"], value)


def test_without_its_weight_there_is_no_critic(rng):
    method, batch = build(adversarial=0.0), make_batch(rng)
    params, state = method.init(jax.random.key(0), batch)
    assert set(params) == set(state) == {"painter"}
    value, (_, metrics) = method.loss(params, state, batch, jax.random.key(0))
    chex.assert_trees_all_equal(value, metrics["reconstruction"])


def test_it_learns_and_touches_every_parameter(rng):
    optimizer = painter_optimizer(optax.adam(1e-2), optax.adam(1e-3))
    start, state, history = train(build(), make_batch(rng, 16), 60, optimizer)
    check_all_moved(start, state)
    assert history[-1]["reconstruction"] < 0.2 * history[0]["reconstruction"]


def test_the_critic_has_its_own_optimizer(rng):
    optimizer = painter_optimizer(optax.sgd(0.0), optax.sgd(0.1))
    start, state, _ = train(build(), make_batch(rng), 1, optimizer)
    for name, part in start.params.items():
        same = jax.tree.map(lambda a, b: bool((a == b).all()), part, state.params[name])
        assert all(jax.tree.leaves(same)) == (name == "painter"), name


def test_a_step_runs_in_bfloat16(rng):
    check_bfloat16(build(), make_batch(rng))


def test_many_devices_take_the_same_steps_as_one(rng):
    check_devices(build, make_batch(rng, 16), 4)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: build(adversarial=1.5), "adversarial weight"),
        (
            lambda: painting_loss(
                jnp.ones((1, 2, 2, 1)),
                jnp.ones((1, 2, 2, 1)),
                jnp.ones((1, 2, 1, 1), bool),
            ),
            "one shape|width",
        ),
        (
            lambda: painting_loss(
                jnp.ones((1, 2, 2, 1)),
                jnp.ones((1, 2, 2, 1)),
                jnp.ones((1, 2, 2, 1), bool),
                overlap=-1,
            ),
            "overlap must not be negative",
        ),
        (
            lambda: build(window=9).init(
                jax.random.key(0), {"view": jnp.ones((2, 8, 8, 1))}
            ),
            "window must fit into 8 x 8",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
