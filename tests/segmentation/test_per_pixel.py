"""What the methods share: crops, labels, weights and masks reach the loss."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.losses import pixel_cross_entropy, soft_dice
from jaxml.segmentation import center_crop
from jaxml.segmentation.per_pixel import per_pixel


class Middle(nn.Module):
    """A linear map of the pixels, and only of those in the middle."""

    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(3)(x)[:, 1:-2, 2:-2]


@pytest.fixture
def batch(rng):
    label = rng.integers(0, 3, (4, 6, 7)).astype(np.uint8)
    label[0, 2:4] = 255
    return {
        "image": rng.normal(size=(4, 6, 7, 2)).astype(np.float32),
        "label": label,
        "weight": rng.uniform(size=(4, 6, 7)).astype(np.float32),
        "mask": np.array([True, True, False, True]),
    }


def run(batch, **options):
    method = per_pixel(Middle(), **options)
    params, state = method.init(jax.random.key(0), batch)
    value, (_, metrics) = method.loss(params, state, batch, jax.random.key(1))
    logits = Middle().apply({"params": params}, batch["image"], train=False)
    return method, params, value, metrics, logits


def test_the_loss_is_that_of_the_middle(batch):
    method, params, value, metrics, logits = run(batch)
    label = batch["label"][:, 1:4, 2:5].astype(np.int32)
    weight, mask = batch["weight"][:, 1:4, 2:5], batch["mask"]
    expected = pixel_cross_entropy(logits, label, weights=weight, mask=mask)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    keep = (label != 255) & mask[:, None, None]
    right = (np.argmax(logits, -1) == label)[keep].mean()
    np.testing.assert_allclose(metrics["accuracy"], right, rtol=1e-6)
    np.testing.assert_allclose(metrics["loss_at_chance"], np.log(3), rtol=1e-6)
    predicted = method.predict(params, {}, batch)
    np.testing.assert_array_equal(predicted, np.argmax(logits, -1))


def test_other_losses_and_masks_of_pixels(batch):
    batch = {k: v for k, v in batch.items() if k != "weight"}
    batch["mask"] = np.arange(4 * 6 * 7).reshape(4, 6, 7) % 3 > 0
    _, _, value, _, logits = run(batch, loss=soft_dice)
    label = batch["label"][:, 1:4, 2:5].astype(np.int32)
    expected = soft_dice(logits, label, mask=batch["mask"][:, 1:4, 2:5])
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_the_ignored_label_may_be_another(batch):
    batch["label"][batch["label"] == 255] = 2
    _, _, value, _, logits = run(batch, ignore_label=0)
    label = batch["label"][:, 1:4, 2:5].astype(np.int32)
    expected = pixel_cross_entropy(
        logits,
        label,
        weights=batch["weight"][:, 1:4, 2:5],
        mask=batch["mask"],
        ignore_label=0,
    )
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_crops_are_of_the_middle():
    x = jnp.arange(2 * 5 * 4).reshape(2, 5, 4)
    np.testing.assert_array_equal(center_crop(x, (3, 2)), x[:, 1:4, 1:3])
    np.testing.assert_array_equal(center_crop(x[..., None], (2, 4))[..., 0], x[:, 1:3])
    for size in ((6, 2), (2, 5)):
        with pytest.raises(ValueError, match="at least"):
            center_crop(x, size)
    with pytest.raises(ValueError, match="two axes of space"):
        center_crop(x[0], (1, 1))
