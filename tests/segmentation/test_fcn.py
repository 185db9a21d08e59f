"""FCN: where its maps lie, bilinear paths, finer nets that start as coarser ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxml.nn import VGG, resnet18
from jaxml.segmentation import FCN, DilatedFCN, fcn, fcn_from_vgg
from tests.segmentation.trials import (
    bright_squares,
    check_bfloat16,
    check_devices,
    check_learns,
)

SIZES = (1, 1, 1, 1, 1)


def tiny(stride=8, padding="same", **options):
    first = {"same": 1, "caffe": 100}[padding]
    backbone = VGG(SIZES, width=2, first_padding=first)
    options = {"hidden": 4, **options}
    return FCN(backbone, 2, stride=stride, padding=padding, **options)


def after(position, stride, size, padding):
    """Index o of a convolution looks at position a o + b of the image."""
    a, b = position
    return a * stride, b + a * ((size - 1) / 2 - padding)


def before(position, stride, size, padding):
    """Of a transposed convolution."""
    a, b = position
    return a / stride, b + a * (padding - (size - 1) / 2) / stride


def test_offsets_put_every_map_where_it_belongs():
    """The paths of the authors' network, layer by layer, for one axis."""
    from jaxml.segmentation.fcn import OFFSETS

    x, pooled = (1.0, 0.0), {}
    for stage, convolutions in enumerate((2, 2, 3, 3, 3), 1):
        for i in range(convolutions):
            x = after(x, 1, 3, 100 if stage == 1 and i == 0 else 1)
        x = pooled[stage] = after(x, 2, 2, 0)
    score = after(x, 1, 7, 0)

    def start(position):
        a, b = position
        return -b / a  # the index that looks at the image's first pixel

    def crop(larger, smaller):
        """Index of the larger map that looks where the smaller one's first does."""
        assert larger[0] == smaller[0]
        return (smaller[1] - larger[1]) / larger[0]

    assert start(before(score, 32, 64, 0)) == OFFSETS[32]
    score = before(score, 2, 4, 0)
    assert crop(pooled[4], score) == 5
    assert start(before(score, 16, 32, 0)) == OFFSETS[16]
    score = before(score, 2, 4, 0)
    assert crop(pooled[3], score) == 9
    assert start(before(score, 8, 16, 0)) == OFFSETS[8]


@pytest.mark.parametrize("padding", ["same", "caffe"])
@pytest.mark.parametrize("stride", [32, 16, 8])
@pytest.mark.parametrize("size", [(1, 40), (33, 64)])
def test_every_pixel_gets_an_answer(padding, stride, size):
    shapes = jax.eval_shape(
        lambda x: tiny(stride, padding).init_with_output(
            jax.random.key(0), x, train=False
        )[0],
        jnp.zeros((2, *size, 3)),
    )
    assert shapes.shape == (2, *size, 2)


def test_the_paper_s_network_has_its_layers():
    """VGG-16 and 21 classes: 4096 channels, 7 x 7, and scores of three maps."""
    from jaxml.nn import vgg16

    model = FCN(vgg16(first_padding=100), 21, padding="caffe")
    shapes = jax.eval_shape(
        lambda x: model.init(jax.random.key(0), x, train=False),
        jnp.zeros((1, 64, 64, 3)),
    )["params"]
    shapes = jax.tree.map(jnp.shape, shapes)
    assert shapes["fc6"]["kernel"] == (7, 7, 512, 4096)
    assert shapes["fc7"]["kernel"] == (1, 1, 4096, 4096)
    assert shapes["score_c4"]["kernel"] == (1, 1, 512, 21)
    assert shapes["score_c3"]["kernel"] == (1, 1, 256, 21)
    assert shapes["up_c4"]["kernel"] == shapes["up_c3"]["kernel"] == (4, 4, 21, 21)


@pytest.mark.parametrize("padding", ["same", "caffe"])
def test_a_finer_net_starts_as_the_coarser_one(rng, padding):
    """With the 32s net's scores, and skips at zero, away from the rim."""
    images = np.float32(rng.normal(size=(1, 96, 96, 3)))
    coarse = tiny(32, padding)
    params = coarse.init(jax.random.key(0), images, train=False)["params"]
    params["score"]["kernel"] = jnp.float32(rng.normal(size=(1, 1, 4, 2)))
    expected = coarse.apply({"params": params}, images, train=False)
    for stride in (16, 8):
        finer = tiny(stride, padding)
        fine = finer.init(jax.random.key(1), images, train=False)["params"]
        fine = {**fine, **params}
        actual = finer.apply({"params": fine}, images, train=False)
        inner = (slice(None), slice(32, 64), slice(32, 64))
        # Two interpolations in turn are smoother than one: near, not the same.
        scale = np.abs(expected).max()
        np.testing.assert_allclose(actual[inner], expected[inner], atol=0.2 * scale)
        assert np.corrcoef(actual.ravel(), expected.ravel())[0, 1] > 0.97


def test_skips_add_their_scores_in_place(rng):
    """A bright dot's own score comes out at the dot, and nowhere else far away."""
    for padding in ("same", "caffe"):
        model = tiny(8, padding)
        images = np.zeros((1, 96, 96, 3), np.float32)
        images[0, 40:44, 56:60] = 1
        params = model.init(jax.random.key(3), images, train=False)["params"]
        params = jax.tree.map(jnp.abs, params)
        params["score_c3"]["kernel"] = jnp.ones_like(params["score_c3"]["kernel"])
        logits = model.apply({"params": params}, images, train=False)[0, ..., 0]
        heat = np.asarray(logits - np.median(logits))
        rows, columns = np.mgrid[:96, :96]
        centre = (heat * rows).sum() / heat.sum(), (heat * columns).sum() / heat.sum()
        np.testing.assert_allclose(centre, (41.5, 57.5), atol=4)


def test_it_learns(rng):
    batch = bright_squares(rng, 4, 32, 3)
    model = FCN(VGG(SIZES, width=4), 2, hidden=8, dropout=0.1)
    state, metrics = check_learns(fcn(model), batch, 80, optax.adam(1e-2))
    assert metrics["accuracy"] > 0.9
    predicted = fcn(model).predict(state.params, state.model_state, batch)
    assert np.mean(predicted == batch["label"]) > 0.85


def dilated(axis_name=None):
    backbone = resnet18(
        width=4, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), axis_name=axis_name
    )
    return DilatedFCN(backbone, 2, hidden=4, axis_name=axis_name)


def test_a_dilated_network_answers_at_an_eighth():
    batch = jnp.zeros((1, 65, 40, 3))
    _, state = jax.eval_shape(
        lambda x: dilated().init_with_output(
            jax.random.key(0), x, train=False, capture_intermediates=True
        ),
        batch,
    )
    (score,) = state["intermediates"]["score"]["__call__"]
    assert score.shape == (1, 9, 5, 2)
    (logits,) = state["intermediates"]["__call__"]
    assert logits.shape == (1, 65, 40, 2)


@pytest.mark.parametrize("build", [functools.partial(tiny, dropout=0.2), dilated])
def test_eight_devices_are_one(rng, build):
    batch = bright_squares(rng, 8, 32, 3)
    batch["label"][:2] = 255
    check_devices(lambda axis_name: fcn(build(axis_name=axis_name)), batch, 8, 1)


def test_bfloat16_is_near(rng):
    check_bfloat16(fcn(tiny()), bright_squares(rng, 2, 32, 3))


def test_a_classifier_s_layers_are_taken_over(rng):
    images = jnp.zeros((1, 32, 32, 3))
    model = tiny(8)
    params = model.init(jax.random.key(0), images, train=False)["params"]
    classifier = VGG(SIZES, 9, width=2, hidden=4)
    theirs = classifier.init(jax.random.key(1), images, train=False)["params"]
    taken = fcn_from_vgg(params, theirs)
    np.testing.assert_array_equal(
        taken["fc6"]["kernel"].reshape(-1, 4), theirs["dense_0"]["kernel"]
    )
    np.testing.assert_array_equal(taken["score"]["kernel"], params["score"]["kernel"])
    np.testing.assert_array_equal(
        taken["backbone"]["convs_2_0"]["kernel"], theirs["convs_2_0"]["kernel"]
    )
    wider = VGG(SIZES, 9, width=2, hidden=6)
    theirs = wider.init(jax.random.key(1), images, train=False)["params"]
    with pytest.raises(ValueError, match="shapes must fit"):
        fcn_from_vgg(params, theirs)


@pytest.mark.parametrize(
    "model, message",
    [
        (FCN(VGG(SIZES, width=2), 2, stride=4), "stride must be 32, 16 or 8, got 4"),
        (FCN(VGG(SIZES, width=2), 2, padding="caffe"), "'caffe' and 1"),
        (FCN(VGG(SIZES, width=2, first_padding=100), 2), "'same' and 100"),
        (FCN(VGG(SIZES, width=2), 2, padding="valid"), "'valid' and 1"),
    ],
)
def test_bad_options_are_refused(model, message):
    with pytest.raises(ValueError, match=message):
        model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)


@pytest.mark.parametrize("stride", [32, 16, 8])
def test_scores_do_not_fade_at_the_rim(stride):
    """A constant score comes out constant, up to the corners."""
    images = jnp.zeros((1, 64, 96, 3))
    model = tiny(stride)
    params = model.init(jax.random.key(0), images, train=False)["params"]
    params["score"]["bias"] = jnp.array([2.0, -3.0])
    logits = model.apply({"params": params}, images, train=False)
    expected = jnp.broadcast_to(jnp.array([2.0, -3.0]), logits.shape)
    np.testing.assert_allclose(logits, expected, rtol=1e-5)
