"""BEiT: blocks, the loss in NumPy, who sees what, devices; transformers in tests/oracle."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.nn import VisionTransformer
from jaxml.ssl import (
    BEiT,
    FineTuned,
    ImageTokenizer,
    beit,
    beit_loss,
    blockwise_masking,
    fine_tune,
    hidden_places,
    image_tokenizer,
)
from tests.numerical import close, gradients
from tests.ssl.trials import check_all_moved, check_bfloat16, check_devices, train


def draw_masks(number, grid, count, **options):
    keys = jax.random.split(jax.random.key(0), number)
    draw = jax.jit(jax.vmap(lambda k: blockwise_masking(k, grid, count, **options)))
    return np.asarray(draw(keys)).reshape(number, *grid)


@pytest.mark.parametrize(
    "grid, count, min_block", [((14, 14), 75, 16), ((8, 8), 26, 6), ((3, 5), 7, 2)]
)
def test_masks_are_exact_and_of_each_sample(grid, count, min_block):
    masks = draw_masks(200, grid, count, min_block=min_block)
    assert (masks.sum((1, 2)) == count).all()
    assert len(np.unique(masks.reshape(200, -1), axis=0)) > 100
    assert masks.any(0).all()  # also corners, where fewer blocks fit


def test_masks_are_made_of_blocks():
    """Nearly every hidden patch lies in a hidden rectangle of at least 16."""
    masks = draw_masks(100, (14, 14), 75)
    in_block = np.zeros_like(masks)
    for high in range(2, 15):
        wide = max(-(-14 // high), 2)
        for i in range(15 - high):
            for j in range(15 - wide):
                window = (slice(None), slice(i, i + high), slice(j, j + wide))
                whole = masks[window].all((1, 2))
                in_block[window] |= whole[:, None, None]
    blocks = in_block.sum((1, 2)) / 75
    assert blocks.mean() > 0.9
    noise = np.random.default_rng(0).permuted(masks.reshape(100, -1), axis=1)
    pairs = lambda m: (m[:, 1:] & m[:, :-1]).sum()  # neighbours, against chance
    assert pairs(masks) > 1.8 * pairs(noise.reshape(masks.shape))


def test_single_blocks_have_the_papers_sides():
    """One try: at least 16 patches, sides rounded, ratio in [0.3, 1 / 0.3]."""
    keys = jax.random.split(jax.random.key(1), 300)
    one = lambda k: blockwise_masking(k, (14, 14), 75, tries=1)
    masks = np.asarray(jax.jit(jax.vmap(one))(keys)).reshape(-1, 14, 14)
    sizes, ratios = [], []
    for mask in masks:
        # The rest is noise: find the largest rectangle, by the integral image.
        total = np.pad(mask.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        best = max(
            (h * w, h / w)
            for h in range(1, 15)
            for w in range(1, 15)
            if (total[h:, w:] - total[:-h, w:] - total[h:, :-w] + total[:-h, :-w]).max()
            == h * w
        )
        sizes.append(best[0])
        ratios.append(best[1])
    assert np.median(sizes) > 30
    assert np.mean(np.array(sizes) >= 15) > 0.75  # the others did not fit
    assert 0.25 < np.quantile(ratios, 0.1) < np.quantile(ratios, 0.9) < 4


def loss_numpy(logits, codes):
    top = logits.max(-1, keepdims=True)
    log_p = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
    n, p = codes.shape
    return -np.mean([log_p[b, i, codes[b, i]] for b in range(n) for i in range(p)])


def test_loss_matches_loops(rng):
    logits, codes = 3 * rng.normal(size=(3, 4, 6)), rng.integers(0, 6, size=(3, 4))
    value, grad = jax.value_and_grad(beit_loss)(jnp.float32(logits), jnp.asarray(codes))
    close(value, loss_numpy(logits, codes), scale=3)
    (slope,) = gradients(lambda x: loss_numpy(x, codes), logits)
    close(grad, slope, rtol=1e-5, atol=1e-5)


TOKENIZER = ImageTokenizer(5, downsamples=1, width=4, code_width=3, channels=1)


def make_model(axis_name=None, **options):
    sizes = {"image_size": 8, "patch_size": 2, "width": 12, "depth": 1, "heads": 3}
    kind = {"position": "none", "relative_position": "shared", "layer_scale": 0.1}
    vit = VisionTransformer(axis_name=axis_name, **{**sizes, **kind, **options})
    return BEiT(vit, 5)


def build(axis_name=None, tokenizer=None, pretrained=None):
    options = {"mask_ratio": 0.4, "min_block": 3}
    return beit(make_model(axis_name), tokenizer, pretrained, **options)


def make_batch(rng, size=16):
    """Slopes: the code is the brightness of a patch."""
    slope = rng.uniform(-1, 1, size=(2, size, 1, 1))
    y, x = np.linspace(-0.5, 0.5, 8)[:, None], np.linspace(-0.5, 0.5, 8)
    image = np.float32(0.5 + slope[0] * y + slope[1] * x)[..., None].clip(0, 1)
    bright = image.reshape(size, 4, 2, 4, 2).mean((2, 4)).reshape(size, 16)
    code = np.int32(np.minimum(bright * 5, 4))
    return {"image": image, "view": image, "code": code}


def test_loss_is_of_the_hidden_and_hidden_pixels_are_not_seen(rng):
    method, batch, model = build(), make_batch(rng), make_model()
    params, state = jax.jit(method.init)(jax.random.key(0), batch)
    hidden = np.stack([rng.permutation(16) < 6 for _ in range(16)])
    batch["hidden"] = jnp.asarray(hidden)
    loss = jax.jit(method.loss)
    value, (_, metrics) = loss(params, state, batch, jax.random.key(1))
    logits = jax.jit(
        lambda x: model.apply({"params": params}, x, batch["hidden"], train=False)
    )(batch["view"])
    places = np.asarray(hidden_places(batch["hidden"], 6))
    np.testing.assert_array_equal(places, [np.flatnonzero(row) for row in hidden])
    at = np.take_along_axis(np.float64(logits), places[..., None], 1)
    codes = np.take_along_axis(batch["code"], places, 1)
    close(value, loss_numpy(at, codes), rtol=1e-5)
    close(metrics["accuracy"], (at.argmax(2) == codes).mean())
    close(metrics["loss_at_chance"], np.log(5))
    pixels = hidden.reshape(16, 4, 4).repeat(2, 1).repeat(2, 2)[..., None]
    other = {**batch, "view": np.where(pixels, 0.7, batch["view"]).astype(np.float32)}
    chex.assert_trees_all_equal(loss(params, state, other, jax.random.key(1))[0], value)
    other["view"] = np.where(pixels, batch["view"], 0.7).astype(np.float32)
    other["code"] = np.where(hidden, batch["code"], 4 - batch["code"])
    assert abs(loss(params, state, other, jax.random.key(1))[0] - value) > 1e-4


def test_the_tokenizer_tells_the_codes_and_gets_no_gradient(rng):
    """At its own size: patches of 2 there, of 4 in the encoder."""
    batch = make_batch(rng)
    pretrained, state = image_tokenizer(TOKENIZER).init(jax.random.key(2), batch)
    pretrained = jax.tree.map(lambda p: p * 3, pretrained)
    code = image_tokenizer(TOKENIZER).predict(pretrained, state, batch)
    large = np.asarray(jax.image.resize(batch["view"], (16, 16, 16, 1), "nearest"))
    model = make_model(image_size=16, patch_size=4)
    options = {"mask_ratio": 0.4, "min_block": 3}
    given = beit(model, **options)
    method = beit(model, TOKENIZER, pretrained, **options)
    view = {"view": large, "image": large}
    params, state = jax.jit(method.init)(jax.random.key(0), view)
    chex.assert_trees_all_equal(state["tokenizer"], pretrained)
    value, _ = jax.jit(method.loss)(params, state, view, jax.random.key(1))
    small = jax.vmap(lambda x: jax.image.resize(x, (8, 8, 1), "linear"))(large)
    code = image_tokenizer(TOKENIZER).predict(pretrained, {}, {"image": small})
    assert len(np.unique(code)) > 1
    expected, _ = jax.jit(given.loss)(
        params, {"tokenizer": {}}, {**view, "code": code}, jax.random.key(1)
    )
    close(value, expected, rtol=1e-5)


def test_it_learns_and_touches_every_parameter(rng):
    start, state, history = train(build(), make_batch(rng, 32), 100)
    check_all_moved(start, state)
    first, last = (
        np.mean([h["loss"] for h in part]) for part in (history[:5], history[-5:])
    )
    assert last < 0.6 * first


def test_the_encoder_goes_on_to_classify(rng):
    batch = {**make_batch(rng), "label": jnp.arange(16) % 3}
    params, _ = jax.jit(build().init)(jax.random.key(0), batch)
    encoder = make_model(pool="mean", pool_norm=False).encoder.clone(pool_norm=True)
    given = ({"backbone": params["encoder"]}, {})
    tuned = fine_tune(FineTuned(encoder, 3), given)
    fresh, _ = jax.jit(tuned.init)(jax.random.key(3), batch)
    chex.assert_trees_all_equal(fresh["backbone"], params["encoder"])


def test_a_step_runs_in_bfloat16(rng):
    check_bfloat16(build(), make_batch(rng))


def test_eight_devices_take_the_same_steps_as_one(rng):
    batch = make_batch(rng)
    pretrained, _ = image_tokenizer(TOKENIZER).init(jax.random.key(2), batch)
    check_devices(
        lambda name: build(name, TOKENIZER, pretrained), batch, 8, num_steps=2
    )


def test_init_needs_no_mesh(rng):
    jax.eval_shape(build("data").init, jax.random.key(0), make_batch(rng))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda k: blockwise_masking(k, (2, 2), 4), "count must hide some of 4"),
        (lambda k: blockwise_masking(k, (2, 2), 1, aspect=(2.0, 1.0)), "must ascend"),
        (lambda k: blockwise_masking(k, (2, 2), 1, min_block=0), "be positive"),
        (
            lambda k: beit_loss(jnp.ones((2, 3, 4)), jnp.ones((2, 4), int)),
            "codes|places",
        ),
        (lambda k: build(tokenizer=TOKENIZER), "must be given together"),
        (
            lambda k: beit(BEiT(make_model().encoder, 4), TOKENIZER, {}),
            "at most 4 codes, got 5",
        ),
        (
            lambda k: beit(BEiT(make_model(pool="mean", pool_norm=True).encoder)).init(
                k, {"view": jnp.ones((1, 8, 8, 1)), "hidden": jnp.ones((1, 16), bool)}
            ),
            "nor have its norm behind the pool",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(jax.random.key(0))
