"""MAE: the loss in NumPy, who sees what, masks, devices; transformers in tests/oracle."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxml.nn import VisionTransformer
from jaxml.ssl import (
    MAE,
    FineTuned,
    fine_tune,
    layerwise_decay,
    mae,
    mae_loss,
    mae_pictures,
    mae_targets,
    random_masking,
    transformer_depth,
)
from tests.numerical import close, gradients
from tests.ssl.trials import check_all_moved, check_bfloat16, check_devices, train


def loss_numpy(painted, images, hidden, side, normalize):
    """Patch by patch, variance with n - 1."""
    n, height, width, _ = images.shape
    errors = []
    for b in range(n):
        for i in range(height // side):
            for j in range(width // side):
                p = i * (width // side) + j
                if not hidden[b, p]:
                    continue
                x = images[b, i * side :, j * side :][:side, :side].ravel()
                if normalize:
                    m = sum(x) / len(x)
                    v = sum((x - m) ** 2) / (len(x) - 1)
                    x = (x - m) / np.sqrt(v + 1e-6)
                errors.append(sum((painted[b, p] - x) ** 2) / len(x))
    return sum(errors) / len(errors)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("size, side, channels", [((4, 6), 2, 3), ((3, 3), 3, 1)])
def test_loss_matches_loops(rng, normalize, size, side, channels):
    patches = size[0] * size[1] // side**2
    images = rng.uniform(size=(3, *size, channels))
    painted = rng.normal(size=(3, patches, side * side * channels))
    hidden = np.arange(3 * patches).reshape(3, -1) % 3 != 1
    options = {"normalize": normalize}
    value, grad = jax.value_and_grad(mae_loss)(
        jnp.float32(painted), jnp.float32(images), jnp.asarray(hidden), side, **options
    )
    expected = loss_numpy(painted, images, hidden, side, normalize)
    close(value, expected, scale=2)
    (slope,) = gradients(
        lambda y: loss_numpy(y, images, hidden, side, normalize), painted
    )
    close(grad, slope, rtol=1e-5, atol=1e-5)


def test_a_flat_patch_has_a_finite_target():
    flat = jnp.full((1, 4, 4, 1), 0.3)
    value = mae_loss(jnp.zeros((1, 4, 4)), flat, jnp.ones((1, 4), bool), 2)
    close(value, 0.0)


@pytest.mark.parametrize("patches, ratio, kept", [(196, 0.75, 49), (7, 0.5, 3)])
def test_masks_are_exact_fair_and_of_each_sample(rng, patches, ratio, kept):
    noise = jnp.asarray(rng.uniform(size=(400, patches)), jnp.float32)
    keep, restore, hidden = (np.asarray(x) for x in random_masking(noise, ratio))
    assert keep.shape == (400, kept)
    assert (hidden.sum(1) == patches - kept).all()
    for row in range(20):
        assert set(keep[row]) == set(np.flatnonzero(~hidden[row]))
        assert sorted(restore[row]) == list(range(patches))
        assert (restore[row][keep[row]] == np.arange(kept)).all()
    share = hidden.mean(0)  # of every place, five deviations
    assert abs(share - (1 - kept / patches)).max() < 5 * 0.5 / np.sqrt(400)
    assert len(np.unique(hidden, axis=0)) > 30


def encoder(**options):
    sizes = {"image_size": (6, 8), "patch_size": 2, "width": 12, "depth": 2, "heads": 3}
    return VisionTransformer(**sizes | {"position": "sincos"} | options)


def make_model(axis_name=None, **options):
    sizes = {"decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2}
    return MAE(encoder(axis_name=axis_name, **options), **sizes, channels=1)


def build(axis_name=None):
    return mae(make_model(axis_name))


def make_batch(rng, size=8):
    """Slopes in any direction: what is hidden follows from what is seen."""
    y, x = np.linspace(-0.4, 0.4, 6)[:, None], np.linspace(-0.4, 0.4, 8)
    slope = rng.uniform(-1, 1, size=(2, size, 1, 1))
    image = np.float32(0.5 + slope[0] * y + slope[1] * x)[..., None].clip(0, 1)
    return {"image": image, "view": image}


@pytest.fixture(scope="module")
def painter():
    """A model with parameters of order one, and its compiled forward pass."""
    rng = np.random.default_rng(0)
    model, images = make_model(), make_batch(rng)["view"]
    noise = jnp.asarray(rng.uniform(size=(8, 12)), jnp.float32)
    init = jax.jit(lambda: model.init(jax.random.key(0), images, noise, train=False))
    variables = init()
    variables = jax.tree.map(
        lambda p: jnp.asarray(p + 0.3 * rng.normal(size=p.shape), jnp.float32),
        variables,
    )
    run = jax.jit(lambda x, noise: model.apply(variables, x, noise, train=False))
    return run, images, noise


def test_hidden_pixels_reach_nothing_and_visible_ones_all(painter):
    run, images, noise = painter
    painted, hidden = run(images, noise)
    assert painted.shape == (8, 12, 4)
    for patch in range(12):
        i, j = divmod(patch, 4)
        other = images.copy()
        other[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2] += 1
        changed = np.abs(run(other, noise)[0] - painted).max(axis=(1, 2))
        np.testing.assert_array_equal(changed > 1e-4, ~np.asarray(hidden[:, patch]))


def test_positions_go_with_the_patches_not_with_their_order(painter):
    """The order of the shuffle is not seen, a patch's place is."""
    run, images, noise = painter
    painted, hidden = run(images, noise)
    ranks = jnp.where(hidden, 2 - noise, 1 - noise)  # both groups turned round
    again, same = run(images, ranks)
    chex.assert_trees_all_equal(same, hidden)
    chex.assert_trees_all_close(again, painted, rtol=1e-4, atol=1e-4)
    flat = jnp.full_like(images, 0.5)  # patches alike: only their places differ
    of_places, _ = run(flat, noise)
    assert float(jnp.abs(of_places[:, 1:] - of_places[:, :1]).max()) > 1e-2


def test_loss_is_of_the_hidden_patches_and_noise_can_be_given(rng):
    method, batch = build(), make_batch(rng)
    model = make_model()
    noise = jnp.asarray(rng.uniform(size=(8, 12)), jnp.float32)
    params, state = jax.jit(method.init)(jax.random.key(0), batch)
    value, (_, metrics) = jax.jit(method.loss)(
        params, state, {**batch, "noise": noise}, jax.random.key(1)
    )
    painted, hidden = model.apply({"params": params}, batch["view"], noise, train=False)
    assert int(hidden.sum()) == 8 * 9
    expected = loss_numpy(
        np.float64(painted), np.float64(batch["view"]), np.asarray(hidden), 2, True
    )
    close(value, expected, rtol=1e-5)
    chex.assert_trees_all_equal(metrics["loss"], value)
    assert 0.5 < float(value) < 3


def test_it_learns_and_touches_every_parameter(rng):
    start, state, history = train(build(), make_batch(rng, 16), 80)
    check_all_moved(start, state)
    first, last = history[0]["loss"], np.mean([h["loss"] for h in history[-10:]])
    assert last < 0.6 * first
    assert state.params["mask_token"].shape == (8,)


def test_the_encoder_goes_on_to_classify(rng):
    """By the class token, by the mean, and with its norm behind the pool."""
    batch = {**make_batch(rng), "label": jnp.arange(8) % 3}
    params, _ = jax.jit(build().init)(jax.random.key(0), batch)
    given = ({"backbone": params["encoder"]}, {})
    for options in ({}, {"pool": "mean", "pool_norm": True}):
        tuned = fine_tune(FineTuned(encoder(**options), 3), given)
        fresh, _ = jax.jit(tuned.init)(jax.random.key(3), batch)
        chex.assert_trees_all_equal(fresh["backbone"], params["encoder"])
        assert jax.jit(tuned.predict)(fresh, {}, batch).shape == (8, 3)


def test_pictures_fill_in_what_is_hidden(rng):
    images = jnp.asarray(rng.uniform(size=(2, 4, 4, 1)), jnp.float32)
    hidden = jnp.asarray([[True, False, False, False], [False, True, True, False]])
    perfect = mae_targets(images, 2)
    seen, filled = mae_pictures(perfect, images, hidden, 2)
    chex.assert_trees_all_close(filled, images, atol=1e-5)
    assert (seen[0, :2, :2] == 0.5).all()
    chex.assert_trees_all_equal(seen[0, 2:], images[0, 2:])
    _, raw = mae_pictures(2 * perfect, images, hidden, 2, normalize=False)
    assert 0 <= raw.min() <= raw.max() <= 1


def test_a_step_runs_in_bfloat16(rng):
    check_bfloat16(build(), make_batch(rng))


def test_eight_devices_take_the_same_steps_as_one(rng):
    check_devices(build, make_batch(rng, 16), 8, num_steps=2)


def test_init_needs_no_mesh(rng):
    jax.eval_shape(build("data").init, jax.random.key(0), make_batch(rng))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: random_masking(jnp.ones((2, 4)), 0.9), "leave some, got 0.9 of 4"),
        (lambda: random_masking(jnp.ones((2, 4)), 0.0), "must hide some"),
        (
            lambda: mae_loss(
                jnp.ones((1, 4, 3)), jnp.ones((1, 4, 4, 1)), jnp.ones((1, 4), bool), 2
            ),
            "painted patches must be",
        ),
        (
            lambda: mae(MAE(encoder(num_classes=3))).init(
                jax.random.key(0), {"view": jnp.ones((1, 6, 8, 3))}
            ),
            "must not classify",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_layers_of_a_tuned_encoder_have_a_depth():
    """Layer-wise decay finds every array of a fine-tuned encoder."""
    model = FineTuned(encoder(), 3)
    images = jnp.ones((1, 6, 8, 1))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    params = jax.tree.map(lambda x: jnp.zeros(x.shape), shapes["params"])
    optimizer = layerwise_decay(optax.sgd(1.0), 0.5, transformer_depth(2))
    ones = jax.tree.map(jnp.ones_like, params)
    updates, _ = optimizer.update(ones, optimizer.init(params), params)
    backbone = updates["backbone"]
    assert float(backbone["patch_embed"]["bias"][0]) == -(0.5**3)
    assert float(backbone["blocks_1"]["norm1"]["bias"][0]) == -0.5
    assert float(updates["classifier"]["bias"][0]) == -1
