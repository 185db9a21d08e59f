"""Anchors against loops over places, ratios, sizes and scales."""

import math

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.ops.anchors import OCTAVE, cell_anchors, grid_centers, pyramid_anchors
from jaxml.ops.boxes import box_area, convert_boxes


def anchors_loop(grid, stride, sizes, ratios, scales, offset, rounded):
    anchors = []
    for y in range(grid[0]):
        for x in range(grid[1]):
            for ratio in ratios:
                for size in sizes:
                    for scale in scales:
                        w = size * scale / math.sqrt(ratio) / 2
                        h = size * scale * math.sqrt(ratio) / 2
                        if rounded:
                            w, h = round(w), round(h)
                        cx, cy = (x + offset) * stride[1], (y + offset) * stride[0]
                        anchors.append([cx - w, cy - h, cx + w, cy + h])
    return np.array(anchors)


@pytest.mark.parametrize("offset, rounded", [(0.5, False), (0, True)])
def test_anchors_match_the_loops(offset, rounded):
    grids, strides = [(3, 5), (2, 1)], [8, (16, 32)]
    sizes, ratios, scales = [[31, 70], [100.5]], (0.5, 1, 2.5), OCTAVE
    options = {"offset": offset, "rounded": rounded}
    levels = pyramid_anchors(
        grids, strides, sizes, aspect_ratios=ratios, scales=scales, **options
    )
    for i, stride in enumerate([(8, 8), (16, 32)]):
        expected = anchors_loop(
            grids[i], stride, sizes[i], ratios, scales, offset, rounded
        )
        assert levels[i].dtype == jnp.float32
        chex.assert_trees_all_close(levels[i], expected, atol=1e-4)


def test_anchors_have_their_area_and_shape():
    cell = cell_anchors([32, 64], aspect_ratios=(0.5, 2), scales=(1, 2))
    areas = np.array([32, 64, 64, 128] * 2) ** 2
    chex.assert_trees_all_close(box_area(cell), areas, rtol=1e-5)
    center, size = np.split(convert_boxes(cell, "xyxy", "cxcywh"), 2, axis=1)
    assert not center.any()
    ratios = np.repeat([0.5, 2], 4)
    chex.assert_trees_all_close(size[:, 1] / size[:, 0], ratios, rtol=1e-5)


def test_places_tile_the_image():
    centers = grid_centers((2, 3), (10, 20))
    expected = [[10, 5], [30, 5], [50, 5], [10, 15], [30, 15], [50, 15]]
    assert centers.tolist() == expected
    assert grid_centers((1, 2), 4, offset=0).tolist() == [[0, 0], [4, 0]]
    chex.assert_shape(grid_centers((0, 3), 4), (0, 2))


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="one entry for each level, got 1, 1 and 2"):
        pyramid_anchors([(2, 2)], [4], [[32], [64]])
    for bad in ({"sizes": []}, {"aspect_ratios": (0,)}, {"scales": (1, -1)}):
        args = {"sizes": [32], **bad}
        with pytest.raises(ValueError, match=f"{next(iter(bad))} must be positive"):
            cell_anchors(**args)
    with pytest.raises(ValueError, match="stride must be positive, got 0"):
        grid_centers((2, 2), 0)
