"""CPC: its loss against loops, causality by autodiff, patches, and what it learns."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.ssl import (
    CPC,
    PatchEncoder,
    RowContext,
    SignalCPC,
    cpc,
    cpc_loss,
    patch_grid,
    patch_views,
)
from tests.numerical import close, gradients
from tests.ssl.trials import TinyBackbone, check_all_moved, check_devices, train


def cpc_numpy(predicted, target):
    """Equation 4 for one step: negatives are all other places of all images."""
    p, z = (x.reshape(-1, x.shape[-1]) for x in (predicted, target))
    losses = []
    for i, own in enumerate(p):
        scores = np.exp(z @ own)
        losses.append(-np.log(scores[i] / scores.sum()))
    return np.mean(losses)


def test_loss_matches_loops(rng):
    """The mean over steps, though later steps have fewer places."""
    steps = [rng.normal(size=(2, 3, n, 4)) for n in (5, 3)]

    def actual(*steps):
        return cpc_loss([(s[0], s[1]) for s in steps])[0]

    def expected(*steps):
        return np.mean([cpc_numpy(*s) for s in steps])

    value, grads = jax.value_and_grad(actual, (0, 1))(*map(np.float32, steps))
    close(value, expected(*steps), scale=10)
    for got, wanted in zip(grads, gradients(expected, *steps), strict=True):
        close(got, wanted, rtol=1e-5, atol=1e-5)


def test_patches_are_cut_where_they_should_be(rng):
    image = rng.normal(size=(2, 11, 9, 3)).astype(np.float32)
    patches = patch_grid(image, 4, 3)
    assert patches.shape == (2, 3, 2, 4, 4, 3)
    for i in range(3):
        for j in range(2):
            rows, columns = slice(3 * i, 3 * i + 4), slice(3 * j, 3 * j + 4)
            chex.assert_trees_all_equal(patches[:, i, j], image[:, rows, columns])


def depends(f, x, axis_out, axis_in):
    """Which entries along an axis of f(x) depend on which along one of x."""
    jacobian = np.asarray(jax.jacobian(f)(x)) != 0
    out = len(jax.eval_shape(f, x).shape)
    others = [i for i in range(jacobian.ndim) if i not in (axis_out, out + axis_in)]
    return jacobian.any(axis=tuple(others))


def test_context_knows_its_row_and_those_above(rng):
    z = jnp.asarray(rng.normal(size=(1, 5, 4, 3)), jnp.float32)
    context = RowContext(6, 4, normalize=True)
    params = context.init(jax.random.key(0), z)
    found = depends(lambda z: context.apply(params, z), z, 1, 1)
    assert (found == np.tril(np.ones((5, 5), bool))).all()


def test_signal_context_knows_no_later_sample(rng):
    """Predictions at step t are made of samples up to t; targets lie ahead of them."""
    x = jnp.asarray(rng.normal(size=(1, 24, 1)), jnp.float32)
    model = SignalCPC(4, kernels=(3, 2), strides=(2, 2), context_width=5, num_steps=2)
    params = model.init(jax.random.key(0), x, train=True)
    for k in (1, 2):
        predicted = depends(
            lambda x, k=k: model.apply(params, x, train=True)[1][k - 1][0], x, 1, 1
        )
        for t, row in enumerate(predicted):
            assert not row[4 * t + 1 :].any()
        assert predicted.any(axis=1).all()


def test_codes_of_patches_do_not_leak(rng):
    """A patch's code depends on its own pixels, not on other patches or images."""
    patches = jnp.asarray(rng.normal(size=(2, 3, 4, 4, 1)), jnp.float32)
    for normalize in (False, True):
        encoder = PatchEncoder((2, 3), normalize)
        flat = patches.reshape(6, 4, 4, 1)
        params = encoder.init(jax.random.key(0), flat, train=True)
        found = depends(
            lambda x, e=encoder, p=params: e.apply(p, x, train=True), flat, 0, 0
        )
        assert (found == np.eye(6, dtype=bool)).all()


def build(axis_name=None, directions=1):
    model = CPC(
        TinyBackbone(6),
        context_width=8,
        context_layers=2,
        num_steps=2,
        directions=directions,
        normalize=directions > 1,
        size=4,
        stride=2,
        axis_name=axis_name,
    )
    return cpc(model)


def make_batch(rng, size=8):
    """Images of stripes: a row of patches tells the next one."""
    phase = rng.uniform(0, 6, size=(size, 1, 1, 1))
    x = np.arange(10)[None, None, :, None] + np.zeros((size, 10, 1, 1))
    return {"image": np.float32(np.sin(x * rng.uniform(0.3, 2, phase.shape) + phase))}


@pytest.mark.parametrize("directions", [1, 4])
def test_predictions_look_ahead_in_every_direction(rng, directions):
    """Targets of step k are the codes k rows ahead of the grid as it is turned."""
    method, batch = build(directions=directions), make_batch(rng, 2)
    params, state = method.init(jax.random.key(0), batch)
    model = CPC(TinyBackbone(6), 8, 2, 2, directions, directions > 1, 4, 2)
    patches = patch_grid(batch["image"], 4, 2)
    features, pairs = model.apply({"params": params}, patches, train=True)
    z = (
        TinyBackbone(6)
        .apply({"params": params["encoder"]}, patches.reshape(-1, 4, 4, 1), train=True)
        .reshape(2, 4, 4, 6)
    )
    chex.assert_trees_all_close(features, z.mean((1, 2)), rtol=1e-5, atol=1e-6)
    assert len(pairs) == 2 * directions
    for i, (predicted, target) in enumerate(pairs):
        turn, k = i // 2, i % 2 + 1
        expected = np.rot90(z, turn, axes=(1, 2))[:, k:].reshape(2, -1, 6)
        chex.assert_trees_all_close(target, expected, rtol=1e-6)
        assert predicted.shape == target.shape
    value, _ = method.loss(params, state, batch, jax.random.key(0))
    steps = [cpc_numpy(*(np.float64(x) for x in pair)) for pair in pairs]
    close(value, np.mean(steps), scale=10)


def test_it_learns_and_touches_every_parameter(rng):
    start, state, history = train(build(directions=4), make_batch(rng), 60)
    check_all_moved(start, state)
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]


def test_it_learns_signals(rng):
    """Sines of several frequencies, whose next code follows from the last ones."""
    t = np.arange(64)[None, :, None]
    rate, phase = rng.uniform(0.05, 0.5, (8, 1, 1)), rng.uniform(0, 6, (8, 1, 1))
    batch = {"signal": np.float32(np.sin(rate * t + phase))}
    model = SignalCPC(8, kernels=(4, 4), strides=(4, 2), context_width=8, num_steps=2)
    method = cpc(model)
    start, state, history = train(method, batch, 60)
    check_all_moved(start, state)
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]
    features = method.predict(state.params, state.model_state, batch)
    chex.assert_shape(features, (8, 8))


def test_many_devices_take_the_same_steps_as_one(rng):
    check_devices(build, make_batch(rng), 4)


def test_patches_are_augmented_each_on_its_own():
    def shade(key, patch):
        return patch + jax.random.uniform(key)

    image = jnp.zeros((6, 6, 1))
    patches = patch_views(2, 2, shade)(jax.random.key(0), image)["patches"]
    shades = np.asarray(patches).reshape(9, 4)
    assert (shades == shades[:, :1]).all()
    assert len(np.unique(shades[:, 0])) == 9
    plain = patch_views(2, 2)(jax.random.key(0), image)["patches"]
    chex.assert_trees_all_equal(plain, patch_grid(image, 2, 2))


def test_the_paper_s_speech_encoder_has_a_code_for_160_samples():
    model = SignalCPC()
    shape = jax.ShapeDtypeStruct((1, 160 * 20, 1), jnp.float32)
    _, pairs = jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x, train=True)[0], shape
    )
    assert [p.shape for p, _ in pairs] == [(1, 20 - k, 512) for k in range(1, 13)]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: patch_grid(jnp.zeros((4, 4, 1)), 5, 1), "patches must fit"),
        (lambda: patch_grid(jnp.zeros((4, 4, 1)), 2, 0), "patches must fit"),
        (lambda: cpc_loss([]), "there must be a prediction"),
        (
            lambda: build().init(jax.random.key(0), {"image": jnp.zeros((1, 6, 6, 1))}),
            "more than 2 rows",
        ),
        (
            lambda: cpc(SignalCPC()).init(
                jax.random.key(0), {"signal": jnp.zeros((1, 800, 1))}
            ),
            "more than 12 codes",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
