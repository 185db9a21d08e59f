"""Upsampling and pooling beside PyTorch's own."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml import ops

torch = pytest.importorskip("torch")
functional = torch.nn.functional
pytestmark = pytest.mark.oracle

SIZES = [(9, 14), (6, 10), (7, 3), (1, 5)]


def first(a):
    return torch.from_numpy(np.moveaxis(np.asarray(a), -1, 1).copy())


def last(t):
    return np.moveaxis(t.detach().numpy(), 1, -1)


@pytest.fixture
def images(rng):
    return rng.normal(size=(2, 3, 5, 4)).astype(np.float32)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("mode", "upsample", "ours", "theirs"),
    [
        ("nearest", ops.upsample_nearest, {}, {}),
        ("nearest-exact", ops.upsample_nearest, {"exact": True}, {}),
        *[
            (mode, upsample, {"align_corners": corners}, {"align_corners": corners})
            for mode, upsample in (
                ("bilinear", ops.upsample_bilinear),
                ("bicubic", ops.upsample_bicubic),
            )
            for corners in (False, True)
        ],
    ],
)
def test_interpolation(images, size, mode, upsample, ours, theirs):
    expected = functional.interpolate(first(images), size, mode=mode, **theirs)
    actual = upsample(images, size, **ours)
    chex.assert_trees_all_close(actual, last(expected), atol=2e-6)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    ("stride", "padding", "extra", "dilation"),
    [(1, 0, 0, 1), (2, 1, 1, 1), ((3, 2), (0, 2), (2, 0), (1, 2))],
)
def test_transposed_convolution(rng, images, groups, stride, padding, extra, dilation):
    kernel = rng.normal(size=(4, 3 * 2 // groups, 3, 4)).astype(np.float32)[:, :2]
    expected = functional.conv_transpose2d(
        first(images), torch.from_numpy(kernel), None, stride, padding, extra, groups, dilation
    )  # fmt: skip
    actual = ops.conv_transpose(
        images,
        kernel.transpose(2, 3, 0, 1),
        stride=stride,
        padding=padding,
        output_padding=extra,
        dilation=dilation,
        groups=groups,
    )
    chex.assert_trees_all_close(actual, last(expected), atol=1e-5)


def test_transposed_convolution_of_flax(images):
    module = nn.ConvTranspose(3, (4, 3), strides=(2, 2), padding="VALID")
    params = module.init(jax.random.key(0), images)
    kernel = params["params"]["kernel"]
    actual = ops.conv_transpose(images, kernel, stride=2, flip=True)
    chex.assert_trees_all_close(actual, module.apply(params, images), atol=1e-5)


def test_shuffles(rng):
    x = rng.normal(size=(2, 4, 6, 18)).astype(np.float32)
    expected = last(functional.pixel_shuffle(first(x), 3))
    chex.assert_trees_all_equal(ops.pixel_shuffle(x, 3), expected)
    expected = last(functional.pixel_unshuffle(first(x), 2))
    chex.assert_trees_all_equal(ops.pixel_unshuffle(x, 2), expected)


@pytest.mark.parametrize("bins", [1, 2, 3, (2, 5), 7])
def test_adaptive_pooling(images, bins):
    expected = last(functional.adaptive_max_pool2d(first(images), bins))
    chex.assert_trees_all_equal(ops.adaptive_max_pool(images, bins), expected)


@pytest.mark.parametrize(
    ("window", "stride", "padding"), [(2, None, 0), (3, 2, 1), (2, 1, 1), (3, 1, 0)]
)
def test_pooling_and_back(rng, window, stride, padding):
    x = rng.normal(size=(2, 5, 7, 3)).astype(np.float32)
    out, index = functional.max_pool2d(
        first(x), window, stride, padding, return_indices=True
    )
    pooled, where = ops.max_pool_with_indices(x, window, stride=stride, padding=padding)
    chex.assert_trees_all_equal(pooled, last(out))
    chex.assert_trees_all_equal(where, last(index).astype(np.int32))
    if stride is None:
        expected = functional.max_unpool2d(out, index, window, output_size=(5, 7))
        chex.assert_trees_all_equal(
            ops.max_unpool(pooled, where, (5, 7)), last(expected)
        )


def test_the_first_of_equal_pixels_counts():
    x = jnp.zeros((1, 4, 4, 1))
    _, index = functional.max_pool2d(first(x), 2, return_indices=True)
    _, where = ops.max_pool_with_indices(x, 2)
    chex.assert_trees_all_equal(where, last(index).astype(np.int32))
