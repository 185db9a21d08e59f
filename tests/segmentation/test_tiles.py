"""Tiles fit together: the answer is that of the image in one piece."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.segmentation import UNet, predict_tiles, unet_sizes


@pytest.mark.parametrize(
    "size, tile, at_once", [((13, 9), 4, 1), ((8, 8), 8, 2), ((3, 17), 5, 3)]
)
def test_tiles_of_a_plain_filter(rng, size, tile, at_once):
    """A box filter of margin 2: against one pass over the mirrored image."""
    images = rng.normal(size=(2, *size, 1)).astype(np.float32)

    def box(x):
        ones = jnp.ones((5, 5, 1, 1))
        return jax.lax.conv_general_dilated(
            x, ones, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    mirrored = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), "reflect")
    tiled = jax.jit(lambda x: predict_tiles(box, x, tile, 2, at_once=at_once))(images)
    np.testing.assert_allclose(tiled, box(mirrored), rtol=1e-5, atol=1e-5)


def test_tiles_of_a_unet_are_seamless(rng):
    model = UNet(widths=(4, 4))
    size, answer = unet_sizes(8, 1)
    margin = (size - answer) // 2
    images = rng.normal(size=(1, 24, 16, 1)).astype(np.float32)
    variables = model.init(
        jax.random.key(0), jnp.zeros((1, size, size, 1)), train=False
    )

    def network(x):
        return model.apply(variables, x, train=False)

    pads = ((0, 0), (margin, margin), (margin, margin), (0, 0))
    whole = network(np.pad(images, pads, "reflect"))
    assert whole.shape == (1, 24, 16, 2)
    np.testing.assert_allclose(
        predict_tiles(network, images, answer, margin), whole, rtol=1e-4, atol=1e-5
    )


def test_larger_answers_are_cropped(rng):
    images = rng.normal(size=(2, 7, 9, 3)).astype(np.float32)
    tiled = predict_tiles(lambda x: 2 * x, images, 4, 3)
    np.testing.assert_allclose(tiled, 2 * images, rtol=1e-6)


def test_bad_input_is_refused():
    x = jnp.ones((1, 8, 8, 1))
    with pytest.raises(ValueError, match="must answer for 4 of 8 pixels, got 2"):
        predict_tiles(lambda x: x[:, 3:5, 3:5], x, 4, 2)
    for arguments in ((0, 1), (4, -1)):
        with pytest.raises(ValueError, match="must be positive"):
            predict_tiles(lambda x: x, x, *arguments)
