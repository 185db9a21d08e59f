"""Overlaps, codes, anchors and matches side by side with torchvision's Python."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.ops import boxes as ours
from jaxml.ops.anchors import pyramid_anchors
from jaxml.ops.matching import match_anchors

torch = pytest.importorskip("torch")
theirs = pytest.importorskip("torchvision.ops.boxes")
anchor_utils = pytest.importorskip("torchvision.models.detection.anchor_utils")
detection = pytest.importorskip("torchvision.models.detection._utils")

pytestmark = pytest.mark.oracle


def draw_boxes(rng, n, size=200.0):
    corner = rng.uniform(0, size, (n, 2))
    return np.float32(
        np.concatenate([corner, corner + rng.uniform(2, size, (n, 2))], 1)
    )


@pytest.mark.parametrize(
    "name", ["box_iou", "generalized_box_iou", "distance_box_iou", "complete_box_iou"]
)
def test_overlaps(rng, name):
    a, b = draw_boxes(rng, 30), draw_boxes(rng, 20)
    expected = getattr(theirs, name)(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    chex.assert_trees_all_close(getattr(ours, name)(a, b), expected, atol=2e-6)


def test_formats(rng):
    boxes = draw_boxes(rng, 9)
    for source in ours.FORMATS:
        for target in ours.FORMATS:
            expected = theirs.box_convert(torch.from_numpy(boxes), source, target)
            actual = ours.convert_boxes(boxes, source, target)
            chex.assert_trees_all_close(actual, expected.numpy(), atol=1e-4)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_codes(rng, weights):
    coder = detection.BoxCoder(weights)
    boxes, anchors = draw_boxes(rng, 40), draw_boxes(rng, 40)
    expected = coder.encode_single(torch.from_numpy(boxes), torch.from_numpy(anchors))
    actual = ours.encode_boxes(boxes, anchors, weights=weights)
    chex.assert_trees_all_close(actual, expected.numpy(), atol=1e-4)
    codes = np.float32(rng.normal(size=(40, 4))) * 8
    expected = coder.decode_single(torch.from_numpy(codes), torch.from_numpy(anchors))
    actual = ours.decode_boxes(codes, anchors, weights=weights)
    chex.assert_trees_all_close(actual, expected.numpy(), rtol=1e-4, atol=1e-2)


def test_anchors():
    sizes = ((32, 64), (128.5, 33))
    ratios = (0.5, 1.0, 2.0)
    generator = anchor_utils.AnchorGenerator(sizes, (ratios,) * 2)
    strides = [[8, 16], [32, 32]]
    grids = [(5, 3), (2, 4)]
    expected = generator.grid_anchors(grids, strides)
    actual = pyramid_anchors(
        grids,
        [tuple(s) for s in strides],
        sizes,
        aspect_ratios=ratios,
        offset=0,
        rounded=True,
    )
    for mine, other in zip(actual, expected, strict=True):
        chex.assert_trees_all_equal(mine, jnp.asarray(other.numpy()))


@pytest.mark.parametrize("low_quality", [False, True])
@pytest.mark.parametrize("high, low", [(0.7, 0.3), (0.5, 0.5)])
def test_matches(rng, high, low, low_quality):
    matcher = detection.Matcher(high, low, low_quality)
    boxes = draw_boxes(rng, 6)
    anchors = np.concatenate(
        [boxes[rng.integers(0, 6, 50)] + rng.normal(size=(50, 4)) * 15, boxes + 9]
    )
    anchors[:, 2:] = np.maximum(anchors[:, 2:], anchors[:, :2] + 1)
    anchors = np.float32(anchors)
    quality = theirs.box_iou(torch.from_numpy(boxes), torch.from_numpy(anchors))
    expected = matcher(quality).numpy()
    found = match_anchors(
        anchors,
        boxes,
        np.ones(6, bool),
        positive=high,
        negative=low,
        low_quality=low_quality,
    )
    between = ~(found.is_positive | found.is_negative)
    actual = np.where(found.is_negative, -1, np.where(between, -2, found.indices))
    np.testing.assert_array_equal(actual, expected)
    assert len(set(np.sign(expected))) > 1
