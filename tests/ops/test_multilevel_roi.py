"""RoIAlign on a pyramid against torchvision's, and level by level."""

from functools import partial
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.ops.multilevel_roi import multilevel_roi_align, pyramid_level
from jaxml.ops.roi import roi_align


@pytest.fixture(scope="module")
def golden():
    return np.load(Path(__file__).parent / "golden" / "roi.npz")


@pytest.mark.parametrize("form", ["gather", "matmul"])
def test_torchvision(golden, form):
    pyramid = [golden[f"pyramid_{level}"] for level in (2, 3, 4)]
    pool = partial(
        multilevel_roi_align,
        output_size=2,
        aligned=False,
        canonical_size=32,
        canonical_level=3,
        form=form,
    )
    actual = jax.jit(pool)(pyramid, golden["pyramid_boxes"])
    chex.assert_trees_all_close(actual, golden["pyramid_out"], atol=1e-5)


@pytest.mark.parametrize("ratio", [2, 0])
def test_every_box_is_pooled_on_its_own_level(golden, ratio):
    pyramid = [jnp.asarray(golden[f"pyramid_{level}"]) for level in (2, 3, 4)]
    large = jnp.array([[1.0, 2, 70, 80]])
    boxes = jnp.concatenate([golden["pyramid_boxes"], large])
    options = {"canonical_size": 32.0, "canonical_level": 3}
    level = pyramid_level(boxes, 2, 4, **options)
    assert set(np.asarray(level)) == {2, 3, 4}

    def at_once(pyramid):
        return multilevel_roi_align(pyramid, boxes, 2, sampling_ratio=ratio, **options)

    def one_by_one(pyramid):
        total = 0
        for i, features in enumerate(pyramid):
            scale = 2.0 ** -(i + 2)
            out = roi_align(
                features, boxes, 2, spatial_scale=scale, sampling_ratio=ratio
            )
            total += jnp.where((level == i + 2)[:, None, None, None], out, 0)
        return total

    chex.assert_trees_all_close(at_once(pyramid), one_by_one(pyramid), atol=1e-5)
    gradients = (
        jax.jit(jax.grad(lambda p, f=f: jnp.sum(f(p) ** 2)))(pyramid)
        for f in (at_once, one_by_one)
    )
    chex.assert_trees_all_close(*gradients, atol=1e-4)


def test_levels_of_boxes_without_area_and_back_to_front():
    boxes = jnp.array([[5.0, 5, 5, 5], [9, 9, 3, 3], [9, 3, 3, 9], [0, 0, 1e6, 1e6]])
    assert pyramid_level(boxes).tolist() == [2, 2, 2, 5]


def test_bad_input_is_refused():
    boxes = jnp.zeros((2, 4))
    with pytest.raises((ValueError, TypeError), match=r"pyramid"):
        multilevel_roi_align([jnp.zeros((4, 5, 2)), jnp.zeros((2, 3, 3))], boxes, 2)
    with pytest.raises(ValueError, match=r"levels of as many channels, got \[\]"):
        multilevel_roi_align([], boxes, 2)
