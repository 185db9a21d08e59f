"""U-Net: the paper's sizes and numbers, what a pixel sees, and that it learns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxml.losses import soft_dice
from jaxml.nn import BatchNorm
from jaxml.segmentation import UNet, unet, unet_sizes
from tests.segmentation.trials import (
    bright_squares,
    check_bfloat16,
    check_devices,
    check_learns,
)

TINY = functools.partial(UNet, widths=(4, 8))


def shapes(model, *size):
    images = jax.ShapeDtypeStruct(size, jnp.float32)
    return jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x, train=False), images
    )


def test_the_paper_s_network():
    """572 to 388 pixels, 23 convolutions, and the parameters counted by hand."""
    logits, variables = shapes(UNet(), 1, 572, 572, 1)
    assert logits.shape == (1, 388, 388, 2)
    kernels = [x for x in jax.tree.leaves(variables["params"]) if x.ndim == 4]
    assert len(kernels) == 23
    widths, count, before = (64, 128, 256, 512, 1024), 0, 1
    for width in widths:
        count += 9 * before * width + width + 9 * width * width + width
        before = width
    for width in widths[-2::-1]:
        count += 4 * 2 * width * width + width
        count += 9 * 2 * width * width + width + 9 * width * width + width
    count += 64 * 2 + 2
    assert sum(x.size for x in jax.tree.leaves(variables)) == count


@pytest.mark.parametrize("depth", [0, 1, 2, 4])
@pytest.mark.parametrize("at_least", [1, 2, 388])
def test_sizes_are_those_of_the_layers(at_least, depth):
    size, answer = unet_sizes(at_least, depth)
    assert at_least <= answer < at_least + 2**depth
    x = size
    for _ in range(depth):
        x -= 4
        assert x > 0
        assert x % 2 == 0
        x //= 2
    x -= 4
    for _ in range(depth):
        x = 2 * x - 4
    assert x == answer > 0


def test_a_size_that_does_not_fit_is_refused():
    with pytest.raises(
        ValueError, match=r"a side such as 20 .*answers for 4.*, got 19"
    ):
        shapes(TINY(), 1, 20, 19, 1)
    with pytest.raises(ValueError, match="a side such as 18"):
        shapes(TINY(), 1, 3, 20, 1)
    with pytest.raises(ValueError, match="valid or same, got 'full'"):
        shapes(TINY(padding="full"), 1, 20, 20, 1)
    with pytest.raises(ValueError, match="at_least must be positive"):
        unet_sizes(0)


@pytest.mark.parametrize("size", [(16, 16), (13, 22), (1, 5)])
def test_same_padding_takes_any_size(size):
    logits, _ = shapes(UNet(3, (4, 4, 4), padding="same"), 2, *size, 1)
    assert logits.shape == (2, *size, 3)


def test_mirrored_rims_are_cut_off_again(rng):
    """An odd image answers as the even one does that is its mirror image beyond."""
    model, image = TINY(padding="same"), np.float32(rng.normal(size=(1, 9, 11, 1)))
    even = np.pad(image, ((0, 0), (0, 1), (0, 1), (0, 0)), "reflect")
    variables = model.init(jax.random.key(0), image, train=False)
    whole = model.apply(variables, even, train=False)
    part = model.apply(variables, image, train=False)
    np.testing.assert_allclose(part, whole[:, :9, :11], rtol=1e-5, atol=1e-6)


def test_valid_answers_see_nothing_invented(rng):
    """Moved by the stride, the image's answer moves with it, up to the very rim."""
    model, image = TINY(), np.float32(rng.normal(size=(1, 24, 22, 1)))
    variables = model.init(jax.random.key(0), image[:, :22], train=False)
    whole = model.apply(variables, image, train=False)
    assert whole.shape == (1, 8, 6, 2)
    moved = model.apply(variables, image[:, 2:], train=False)
    np.testing.assert_allclose(moved, whole[:, 2:], rtol=1e-5, atol=1e-6)
    # The corner of the answer sees the corner of the image: it is 8 pixels away.
    sees = jax.grad(lambda x: model.apply(variables, x, train=False)[0, 0, 0, 0])(image)
    assert np.abs(sees[0, :, :, 0]).sum() > 0
    rows, columns = np.nonzero(sees[0, :, :, 0])
    assert max(rows.max(), columns.max()) <= 17


def test_features_of_a_level_are_put_beside(rng):
    """Cut the way down off at the top: what is left of the answer comes from below."""
    model = TINY(dropout=0.0)
    image = np.float32(rng.normal(size=(1, 20, 20, 1)))
    params = model.init(jax.random.key(0), image, train=False)["params"]
    assert params["join0_conv1"]["kernel"].shape == (3, 3, 8, 4)
    full = model.apply({"params": params}, image, train=False)
    kernel = params["join0_conv1"]["kernel"]
    for half in (slice(0, 4), slice(4, 8)):  # skip, up
        cut = jax.tree.map(lambda x: x, params)
        cut["join0_conv1"]["kernel"] = kernel.at[:, :, half].set(0)
        assert not np.allclose(model.apply({"params": cut}, image, train=False), full)


def test_drop_out_is_at_the_bottom_and_in_training_only(rng):
    model, image = TINY(), np.float32(rng.normal(size=(2, 20, 20, 1)))
    variables = model.init(jax.random.key(0), image, train=True)

    def run(key):
        rngs = {"dropout": jax.random.key(key)}
        return model.apply(variables, image, train=True, rngs=rngs)

    assert not np.allclose(run(0), run(1))
    still = model.apply(variables, image, train=False)
    same = TINY(dropout=0.0).apply(variables, image, train=True)
    np.testing.assert_array_equal(still, same)


@pytest.mark.parametrize("padding, norm", [("valid", None), ("same", BatchNorm)])
def test_it_learns(rng, padding, norm):
    batch = bright_squares(rng, 8, 20)
    method = unet(TINY(padding=padding, norm=norm))
    state, metrics = check_learns(method, batch, 60, optax.adam(1e-2))
    assert metrics["accuracy"] > 0.9
    predicted = method.predict(state.params, state.model_state, batch)
    side = predicted.shape[1]
    middle = slice((20 - side) // 2, (20 + side) // 2)
    assert np.mean(predicted == batch["label"][:, middle, middle]) > 0.9


def test_weights_move_the_answer(rng):
    """Where only one class has a weight, it is the answer everywhere."""
    batch = bright_squares(rng, 8, 20)
    for c in (0, 1):
        weight = np.float32(batch["label"] == c)
        weighted = {**batch, "weight": weight}
        state, _ = check_learns(unet(TINY()), weighted, 40, optax.adam(1e-2))
        predicted = unet(TINY()).predict(state.params, state.model_state, batch)
        assert np.mean(predicted == c) > 0.99


def test_eight_devices_are_one(rng):
    batch = bright_squares(rng, 16, 20)
    batch["label"][:3] = 255
    batch["weight"] = np.float32(rng.uniform(size=batch["label"].shape))

    def build(axis_name):
        return unet(TINY(norm=BatchNorm, axis_name=axis_name))

    check_devices(build, batch)


def test_bfloat16_is_near(rng):
    check_bfloat16(unet(TINY()), bright_squares(rng, 4, 20))


def test_another_loss(rng):
    batch = bright_squares(rng, 4, 20)
    method = unet(TINY(), loss=soft_dice)
    params, state = method.init(jax.random.key(0), batch)
    value, _ = method.loss(params, state, batch, jax.random.key(1))
    assert 0 < value < 1
