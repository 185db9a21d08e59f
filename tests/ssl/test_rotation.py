"""Rotation: exact turns, all four in a batch, the loss, and what it learns."""

import chex
import jax
import numpy as np
import pytest

from jaxml.nn import ConvNet
from jaxml.ssl import Rotation, quarter_turns, rotation
from tests.ssl.trials import TinyBackbone, check_all_moved, check_devices, train


def make_batch(rng, size=8):
    """Bright at the top, so that up can be told."""
    image = (
        rng.uniform(size=(size, 6, 6, 1)) * np.linspace(1, 0, 6)[None, :, None, None]
    )
    return {"image": np.float32(image), "view": np.float32(image)}


def test_turns_are_exact(rng):
    images = rng.normal(size=(3, 5, 5, 2)).astype(np.float32)
    turned = quarter_turns(images)
    for r in range(4):
        for i, image in enumerate(images):
            chex.assert_trees_all_equal(turned[3 * r + i], np.rot90(image, r))
    # Not one value is new: nothing is interpolated.
    assert (np.sort(turned, axis=None) == np.sort(np.tile(images, 4), axis=None)).all()


def test_loss_is_the_mean_over_images_and_turns(rng):
    method, batch = rotation(Rotation(TinyBackbone())), make_batch(rng, 3)
    params, state = method.init(jax.random.key(0), batch)
    losses, right = [], []
    for r in range(4):
        for image in batch["view"]:
            x = np.float64(np.rot90(image, r)).reshape(-1)
            h = x @ np.float64(params["backbone"]["Dense_0"]["kernel"])
            h += params["backbone"]["Dense_0"]["bias"]
            logits = h @ np.float64(params["turns"]["kernel"]) + params["turns"]["bias"]
            losses.append(np.log(np.exp(logits).sum()) - logits[r])
            right.append(logits.argmax() == r)
    value, (_, metrics) = method.loss(params, state, batch, jax.random.key(0))
    np.testing.assert_allclose(value, np.mean(losses), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], np.mean(right), rtol=1e-6)


def test_it_learns_and_touches_every_parameter(rng):
    start, state, history = train(
        rotation(Rotation(ConvNet((4, 8)))), make_batch(rng), 60
    )
    check_all_moved(start, state)
    assert history[-1]["accuracy"] > 0.9


def test_what_has_no_up_teaches_nothing(rng):
    """Constant images: the loss stays ln 4 and the monitor says so."""
    from jaxml.metrics import diagnose

    batch = {"view": np.float32(np.ones((4, 6, 6, 1)) * rng.uniform(size=(4, 1, 1, 1)))}
    *_, history = train(rotation(Rotation(TinyBackbone())), batch, 40)
    assert history[-1]["loss"] > 0.99 * np.log(4)
    found = diagnose({"loss": history[-1]["loss"]}, num_outputs=4)
    assert [finding.name for finding in found] == ["uniform output"]


def test_many_devices_take_the_same_steps_as_one(rng):
    def build(axis_name):
        return rotation(Rotation(ConvNet((4,), axis_name=axis_name), axis_name))

    check_devices(build, make_batch(rng, 16), 8)


def test_images_must_be_square():
    with pytest.raises((ValueError, TypeError), match=r"square|side"):
        quarter_turns(np.ones((1, 2, 3, 1), np.float32))
