"""Colorization: bins, soft codes, weights, annealed means, the loss, devices."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.ops import rgb_to_lab
from jaxml.ssl import (
    Colorization,
    annealed_mean,
    color_prior,
    color_weights,
    colorization,
    colorize,
    gamut_bins,
    soft_encode,
)
from tests.numerical import close, gradients
from tests.ssl.trials import check_all_moved, check_bfloat16, check_devices, train


def lab_numpy(rgb):
    """CIE Lab of sRGB, from its definition, in float64."""
    rgb = np.asarray(rgb, np.float64)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    matrix = np.array(
        [
            [0.4124564, 0.3575761, 0.1804375],
            [0.2126729, 0.7151522, 0.0721750],
            [0.0193339, 0.1191920, 0.9503041],
        ]
    )
    t = linear @ (matrix / matrix.sum(1, keepdims=True)).T
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t * 841 / 108 + 4 / 29)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def test_bins_are_those_that_hold_a_colour(rng):
    """Every colour's nearest grid point is a bin, and every bin's cell holds a colour."""
    bins = gamut_bins()
    chex.assert_shape(bins, (261, 2))
    assert len(gamut_bins(20)) == 77
    known = {tuple(b) for b in bins}
    levels = np.arange(0, 256, 5) / 255
    cube = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1)
    ab = lab_numpy(cube.reshape(-1, 3))[:, 1:]
    inside = {tuple(b) for b in 10 * np.round(ab / 10)}
    assert inside <= known
    # Cells that this coarse cube misses lie at the border, next to those it hits.
    steps = [(a, b) for a in (-10, 0, 10) for b in (-10, 0, 10)]
    assert len(known - inside) < 20
    for a, b in known - inside:
        assert any((a + i, b + j) in inside for i, j in steps)
    # The gamut is no square: an assumed one would have 22 x 23 points.
    assert bins.min(0).tolist() == [-90, -110]
    assert bins.max(0).tolist() == [100, 90]
    chex.assert_trees_all_equal(bins, bins[np.lexsort(bins.T[::-1])])


def encode_numpy(ab, bins, neighbours=5, sigma=5.0):
    square = ((bins - ab) ** 2).sum(1)
    nearest = np.argsort(square, kind="stable")[:neighbours]
    code = np.zeros(len(bins))
    code[nearest] = np.exp(-square[nearest] / (2 * sigma**2))
    return code / code.sum()


@pytest.mark.parametrize("neighbours, sigma", [(5, 5.0), (1, 5.0), (10, 8.0)])
def test_soft_codes_match_loops(rng, neighbours, sigma):
    bins = np.float64(gamut_bins())
    ab = np.float32(rng.uniform(-80, 80, size=(3, 4, 2)))
    found = soft_encode(ab, np.float32(bins), neighbours=neighbours, sigma=sigma)
    expected = [
        [encode_numpy(x, bins, neighbours, sigma) for x in row]
        for row in np.float64(ab)
    ]
    close(found, np.array(expected), rtol=1e-5)
    assert ((np.asarray(found) > 0).sum(-1) <= neighbours).all()


def test_a_colour_far_outside_still_has_a_code():
    code = soft_encode(jnp.array([[900.0, 900.0]]), gamut_bins())
    chex.assert_trees_all_close(jnp.sum(code), 1.0)


def test_the_prior_counts_nearest_bins(rng):
    images = rng.integers(0, 256, size=(3, 4, 5, 3), dtype=np.uint8)
    bins = np.float64(gamut_bins())
    ab = lab_numpy(images / 255)[..., 1:].reshape(-1, 2)
    expected = np.zeros(len(bins))
    for x in ab:
        expected[((bins - x) ** 2).sum(1).argmin()] += 1 / len(ab)
    close(color_prior(images, np.float32(bins)), expected)


@pytest.mark.parametrize("mix, sigma", [(0.5, 5.0), (0.1, 12.0), (1.0, 5.0)])
def test_weights_match_the_equation(rng, mix, sigma):
    bins = np.float64(gamut_bins(20))
    prior = rng.dirichlet(np.full(len(bins), 0.1))
    smooth = np.zeros(len(bins))
    for j, share in enumerate(prior):  # each bin's share, spread around it
        kernel = np.exp(-((bins - bins[j]) ** 2).sum(1) / (2 * sigma**2))
        smooth += share * kernel / kernel.sum()
    weights = color_weights(prior, np.float32(bins), mix=mix, sigma=sigma)
    ratio = weights * ((1 - mix) * smooth + mix / len(bins))
    close(ratio, np.full(len(bins), ratio[0]))
    close(smooth @ weights, 1.0)
    if mix == 1:
        close(weights, np.ones(len(bins)))
    else:
        order = np.argsort(smooth)
        assert (np.diff(weights[order]) <= 0).all()  # the rarer the heavier
        assert weights.max() / weights.min() > 2


def test_the_annealed_mean_lies_between_mean_and_mode(rng):
    bins = np.float64(gamut_bins(20))
    logits = 2 * rng.normal(size=(3, 2, len(bins)))
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    for t in (0.38, 1.0):
        q = np.exp(np.log(p) / t)
        expected = (q / q.sum(-1, keepdims=True)) @ bins
        found = annealed_mean(np.float32(logits), np.float32(bins), t)
        close(found, expected, scale=50, rtol=1e-5)
    default = annealed_mean(np.float32(logits), np.float32(bins))
    close(default, annealed_mean(np.float32(logits), np.float32(bins), 0.38))
    mode = bins[logits.argmax(-1)]
    close(annealed_mean(np.float32(logits), np.float32(bins), 1e-3), mode, atol=1e-2)


def test_colours_that_are_known_come_back(rng):
    """Image -> lightness and codes -> image, up to the width of a bin."""
    flat = rng.uniform(0.2, 0.8, size=(6, 1, 1, 3))
    images = np.float32(np.broadcast_to(flat, (6, 7, 5, 3)))
    bins = gamut_bins()
    ab = rgb_to_lab(images)[:, ::2, ::2, 1:]
    logits = jnp.log(soft_encode(ab, bins) + 1e-12)
    back = colorize(images, logits, bins, 1.0)
    chex.assert_shape(back, images.shape)
    lab = rgb_to_lab(images) - rgb_to_lab(back)
    assert (
        jnp.abs(lab[..., 0]).max() < 1.0
    )  # lightness is kept, save at the gamut's rim
    assert jnp.abs(lab[..., 1:]).max() < 5.0
    gray = np.float32(rng.uniform(size=(2, 4, 4, 1)))
    neutral = jnp.log(soft_encode(jnp.zeros((2, 2, 2, 2)), bins) + 1e-12)
    unchanged = colorize(gray, neutral, bins)
    chex.assert_trees_all_close(
        unchanged, np.repeat(gray, 3, axis=-1), rtol=1e-3, atol=1e-3
    )


BINS = gamut_bins(40)


def build(axis_name=None, weights=None, blocks=((4, 1, 2, 1), (6, 2, 1, 2))):
    model = Colorization(blocks, 5, len(BINS), axis_name)
    return colorization(model, BINS, weights)


def make_batch(rng, size=8, side=6):
    """Bright is red and dark is blue: colours that lightness tells."""
    light = rng.uniform(size=(size, 1, 1, 1)) * np.ones((1, side, side, 1))
    colours = light * np.array([0.9, 0.2, 0.1]) + (1 - light) * np.array(
        [0.1, 0.2, 0.8]
    )
    image = np.float32(colours + 0.02 * rng.normal(size=colours.shape)).clip(0, 1)
    return {"image": image, "view": image}


class Linear(Colorization):
    """Logits that are linear in lightness, so that an oracle is short."""

    def setup(self):
        self.kernel = self.param("kernel", jax.random.normal, (1, self.num_bins))

    def __call__(self, lightness, *, train):
        logits = lightness @ self.kernel
        return jnp.mean(logits, axis=(1, 2)), logits


def test_loss_matches_the_equation(rng):
    """Soft codes, the weight of the true bin, the mean over places."""
    weights = rng.uniform(0.5, 2, size=len(BINS))
    method = colorization(Linear(num_bins=len(BINS)), BINS, np.float32(weights))
    batch = {"view": np.float32(rng.uniform(size=(3, 4, 5, 3)))}
    batch["image"] = batch["view"]
    params = {"kernel": jnp.asarray(rng.normal(size=(1, len(BINS))), jnp.float32)}
    lab = lab_numpy(batch["view"]).reshape(-1, 3)
    codes = np.array([encode_numpy(x, np.float64(BINS)) for x in lab[:, 1:]])
    nearest = codes.argmax(1)

    def loss(kernel):
        logits = (lab[:, :1] / 50 - 1) @ kernel
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        return np.mean(-weights[nearest] * (codes * log_p).sum(1))

    (value, (_, metrics)), grads = jax.value_and_grad(method.loss, has_aux=True)(
        params, {}, batch, jax.random.key(0)
    )
    kernel = np.float64(params["kernel"])
    close(value, loss(kernel), scale=5)
    close(grads["kernel"], gradients(loss, kernel)[0], rtol=1e-5, atol=1e-5)
    logits = (lab[:, :1] / 50 - 1) @ kernel
    p = np.exp(logits / 0.38)
    guess = p / p.sum(1, keepdims=True) @ BINS
    error = np.sqrt(((guess - lab[:, 1:]) ** 2).sum(1).mean())
    close(metrics["ab_error"], error, rtol=1e-4)
    norms = [np.linalg.norm(x, axis=1).mean() for x in (guess, lab[:, 1:])]
    close(metrics["chroma"], norms[0] / norms[1], rtol=1e-4)
    close(metrics["accuracy"], np.mean(logits.argmax(1) == nearest))


def test_the_network_sees_lightness_alone(rng):
    """Its input holds no colour: gray images of one lightness give one answer."""
    method, batch = build(), make_batch(rng)
    params, state = method.init(jax.random.key(0), batch)
    light = lab_numpy(batch["image"])[..., 0]
    f = (light + 16) / 116
    y = np.where(f > 6 / 29, f**3, (f - 4 / 29) * 108 / 841)
    gray = np.where(y <= 0.0031308, 12.92 * y, 1.055 * y ** (1 / 2.4) - 0.055)
    features = method.predict(params, state, batch)
    same = method.predict(params, state, {"image": np.float32(gray[..., None])})
    chex.assert_trees_all_close(features, same, rtol=1e-3, atol=1e-4)


def test_weights_bring_colours_back(rng):
    """Where one picture in sixteen is red, weights make the network say red at all."""
    side = (12, 4, 4, 3)
    gray = np.float32(0.5 * np.ones(side) + 0.01 * rng.normal(size=side))
    red = gray[:1] + np.float32([0.3, -0.2, -0.2]).reshape(1, 1, 1, 3)
    view = np.concatenate([gray, red]).clip(0, 1)
    batch = {"view": view, "image": view}
    chroma, key = {}, jax.random.key(0)
    weights = color_weights(color_prior(view, BINS), BINS, mix=0.1)
    for name, w in (("plain", None), ("balanced", np.float32(weights))):
        method = colorization(Linear(num_bins=len(BINS)), BINS, w)
        params = {"kernel": jnp.zeros((1, len(BINS)))}
        step = jax.jit(jax.grad(lambda p, m=method: m.loss(p, {}, batch, key)[0]))
        for _ in range(100):
            params = jax.tree.map(lambda p, g: p - 5.0 * g, params, step(params))
        chroma[name] = method.loss(params, {}, batch, key)[1][1]["chroma"]
    assert chroma["balanced"] > 1.2 * chroma["plain"]


@pytest.mark.parametrize("side", [6, 9])
def test_it_learns_and_touches_every_parameter(rng, side):
    start, state, history = train(build(), make_batch(rng, 8, side), 60)
    check_all_moved(start, state)
    assert history[-1]["loss"] < 0.6 * history[0]["loss"]
    assert history[-1]["ab_error"] < 0.7 * history[0]["ab_error"]


def test_a_step_runs_in_bfloat16(rng):
    check_bfloat16(build(), make_batch(rng))


def test_many_devices_take_the_same_steps_as_one(rng):
    weights = np.float32(rng.uniform(0.5, 2, size=len(BINS)))
    check_devices(lambda axis_name: build(axis_name, weights), make_batch(rng, 16), 8)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: gamut_bins(0), "grid must be positive"),
        (lambda: soft_encode(jnp.ones((1, 2)), BINS, neighbours=0), "neighbours"),
        (lambda: soft_encode(jnp.ones((1, 2)), BINS, sigma=0.0), "sigma"),
        (lambda: color_weights(np.full(len(BINS), 1.0), BINS), "add up to 1"),
        (lambda: color_weights(np.eye(len(BINS))[0], BINS, mix=0.0), "mix"),
        (lambda: annealed_mean(jnp.ones((1, len(BINS))), BINS, 0.0), "temperature"),
        (lambda: colorization(Colorization(), BINS), "as many as the model's"),
        (
            lambda: build().loss(
                {}, {}, {"view": jnp.ones((1, 4, 4, 1))}, jax.random.key(0)
            ),
            "must be RGB, got 1",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
