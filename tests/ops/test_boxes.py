"""Overlaps and codes of boxes against float64 loops, and what padding must not do."""

import itertools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxml.ops.boxes import (
    MAX_LOG_SCALE,
    box_area,
    box_ioa,
    box_iou,
    clip_boxes,
    complete_box_iou,
    convert_boxes,
    decode_boxes,
    distance_box_iou,
    encode_boxes,
    generalized_box_iou,
    has_size,
)
from tests.numerical import gradients

OVERLAPS = [
    box_iou,
    box_ioa,
    generalized_box_iou,
    distance_box_iou,
    complete_box_iou,
]
SPECIAL = np.array(
    [
        [0, 0, 0, 0],  # padding
        [3, 4, 3, 4],  # a point
        [2, 2, 8, 2],  # a line
        [2, 2, 2, 9],
        [8, 8, 4, 4],  # inverted
        [0, 0, 10, 10],
        [0, 0, 10, 10],
        [10, 0, 20, 10],  # touches
        [2, 3, 4, 5],  # inside
        [500, 400, 700, 480],
    ],
    np.float32,
)


def draw_boxes(rng, n, size=100.0):
    corner = rng.uniform(0, size, (n, 2))
    return np.float32(
        np.concatenate([corner, corner + rng.uniform(size / 99, size, (n, 2))], 1)
    )


def overlap_loop(name, a, b, alpha=None):
    """One pair in float64, from the papers' equations."""
    area = lambda x: max(x[2] - x[0], 0) * max(x[3] - x[1], 0)
    quotient = lambda x, y: x / y if y > 1e-12 else 0.0
    inter = area([*np.maximum(a[:2], b[:2]), *np.minimum(a[2:], b[2:])])
    if name == "box_ioa":
        return quotient(inter, area(a))
    union = area(a) + area(b) - inter
    iou = quotient(inter, union)
    if name == "box_iou":
        return iou
    low, high = np.minimum(a[:2], b[:2]), np.maximum(a[2:], b[2:])
    hull = (high[0] - low[0]) * (high[1] - low[1])
    if name == "generalized_box_iou":
        return iou - quotient(hull - union, hull)
    centers = (np.add(a[:2], a[2:]) - np.add(b[:2], b[2:])) / 2
    diou = iou - quotient(np.sum(centers**2), np.sum((high - low) ** 2))
    if name == "distance_box_iou":
        return diou
    sides = [np.maximum(x[2:] - x[:2], 0) for x in (a, b)]
    slant_a, slant_b = (math.atan2(*s) if s.any() else 0.0 for s in sides)
    v = (2 / math.pi * (slant_a - slant_b)) ** 2
    if alpha is None:
        alpha = quotient(v, 1 - iou + v)
    return diou - alpha * v


def pairs_loop(name, a, b):
    a, b = np.float64(a), np.float64(b)
    return np.array([[overlap_loop(name, x, y) for y in b] for x in a])


@pytest.mark.parametrize("f", OVERLAPS)
@pytest.mark.parametrize("n, m", [(1, 1), (7, 5)])
@pytest.mark.parametrize("size", [1e-2, 1.0, 3e3])
def test_overlaps_match_float64(rng, f, n, m, size):
    a, b = draw_boxes(rng, n, size), draw_boxes(rng, m, size)
    actual = jax.jit(f)(a, b)
    assert actual.dtype == jnp.float32
    chex.assert_trees_all_close(actual, pairs_loop(f.__name__, a, b), atol=3e-6)


@pytest.mark.parametrize("f", OVERLAPS)
def test_overlaps_of_special_boxes(f):
    expected = pairs_loop(f.__name__, SPECIAL, SPECIAL)
    chex.assert_trees_all_close(f(SPECIAL, SPECIAL), expected, atol=1e-6)
    # Padding overlaps nothing, not even itself.
    if f in (box_iou, box_ioa):
        assert not f(SPECIAL[:5], SPECIAL).any()
        assert not f(SPECIAL, SPECIAL[:5]).any()


@pytest.mark.parametrize("f", OVERLAPS)
def test_gradients_are_finite_for_every_pair(f):
    a, b = map(np.stack, zip(*itertools.product(SPECIAL, SPECIAL), strict=True))
    grads = jax.grad(lambda a, b: f(a, b, paired=True).sum(), (0, 1))(a, b)
    chex.assert_tree_all_finite(grads)
    assert max(float(abs(g).max()) for g in grads) < 1e3


@pytest.mark.parametrize("f", OVERLAPS)
def test_gradients_match_differences(f):
    """Away from kinks; the weight alpha of CIoU stands still."""
    for a, b in (
        ([1.0, 2.0, 7.0, 9.0], [3.0, 1.5, 10.0, 8.0]),
        ([1.0, 2.0, 7.0, 9.0], [8.5, 11.0, 12.0, 17.0]),
    ):
        a, b = np.array(a), np.array(b)
        name = f.__name__
        iou = overlap_loop("box_iou", a, b)
        v = (2 / math.pi * (math.atan2(6, 7) - math.atan2(*(b[2:] - b[:2])))) ** 2
        loop = lambda a, b: overlap_loop(name, a, b, alpha=v / (1 - iou + v))
        one = lambda a, b: f(a[None], b[None])[0, 0]
        actual = jax.grad(one, (0, 1))(jnp.float32(a), jnp.float32(b))
        chex.assert_trees_all_close(actual, gradients(loop, a, b), atol=1e-5)
        assert name in ("box_iou", "box_ioa") or max(abs(actual[0])) > 1e-3


def test_bounds_and_symmetry(rng):
    a, b = draw_boxes(rng, 40), draw_boxes(rng, 30)
    bounds = {
        box_iou: (0, 1),
        generalized_box_iou: (-1, 1),
        distance_box_iou: (-1, 1),
        complete_box_iou: (-2, 1),
    }
    for f, (low, high) in bounds.items():
        values = f(a, b)
        assert low <= values.min() <= values.max() <= high
        chex.assert_trees_all_close(values, f(b, a).T, atol=1e-6)
        chex.assert_trees_all_close(jnp.diagonal(f(a, a)), jnp.ones(40), atol=1e-6)
    assert (generalized_box_iou(a, b) <= box_iou(a, b) + 1e-6).all()
    assert (complete_box_iou(a, b) <= distance_box_iou(a, b) + 1e-6).all()


def test_only_giou_and_its_like_see_how_far_apart_boxes_are():
    a = jnp.array([[0.0, 0, 10, 10]])
    near, far = a + 11, a + 50
    for f in (generalized_box_iou, distance_box_iou, complete_box_iou):
        assert f(a, far) < f(a, near) < 0
    assert box_iou(a, far) == box_iou(a, near) == 0


@pytest.mark.parametrize("f", OVERLAPS)
def test_pairs_batches_and_vmap(rng, f):
    a = np.stack([draw_boxes(rng, 6) for _ in range(3)])
    b = np.stack([draw_boxes(rng, 6) for _ in range(3)])
    whole = f(a, b)
    chex.assert_shape(whole, (3, 6, 6))
    chex.assert_trees_all_close(whole, jax.vmap(f)(a, b), atol=1e-6)
    diagonal = jnp.diagonal(whole, axis1=1, axis2=2)
    chex.assert_trees_all_close(f(a, b, paired=True), diagonal, atol=1e-6)
    chex.assert_shape(f(a[0], b[0, :0]), (6, 0))


def test_half_precision_is_widened_before_anything_is_computed(rng):
    half = jnp.asarray(draw_boxes(rng, 5, 500), jnp.bfloat16)
    wide = half.astype(jnp.float32)
    for f in OVERLAPS:
        chex.assert_trees_all_equal(f(half, half), f(wide, wide))
    for f in (box_area, lambda x: encode_boxes(x, wide), lambda x: clip_boxes(x, 9, 9)):
        chex.assert_trees_all_equal(f(half), f(wide))
        assert f(half).dtype == jnp.float32


def test_paired_boxes_must_be_pairs(rng):
    for f in OVERLAPS:
        with pytest.raises(ValueError, match=r"must have one shape, got \(3, 4\) and"):
            f(draw_boxes(rng, 3), draw_boxes(rng, 1), paired=True)


def test_boxes_have_four_numbers():
    with pytest.raises((TypeError, ValueError)):
        box_iou(jnp.ones((3, 5)), jnp.ones((3, 5)))


def test_area(rng):
    boxes = draw_boxes(rng, 9)
    expected = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in np.float64(boxes)]
    chex.assert_trees_all_close(box_area(boxes), np.array(expected), rtol=1e-5)
    assert box_area(SPECIAL).tolist() == [0, 0, 0, 0, 0, 100, 100, 100, 4, 16000]


# Codes.


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 2.5)])
def test_codes_match_the_equation(rng, weights):
    boxes, anchors = draw_boxes(rng, 20), draw_boxes(rng, 20)
    expected = []
    for (x1, y1, x2, y2), (u1, v1, u2, v2) in zip(
        np.float64(boxes), np.float64(anchors), strict=True
    ):
        wa, ha = u2 - u1, v2 - v1
        move = ((x1 + x2 - u1 - u2) / 2 / wa, (y1 + y2 - v1 - v2) / 2 / ha)
        scale = (math.log((x2 - x1) / wa), math.log((y2 - y1) / ha))
        expected.append(np.multiply(weights, [*move, *scale]))
    actual = jax.jit(lambda b, a: encode_boxes(b, a, weights=weights))(boxes, anchors)
    chex.assert_trees_all_close(actual, np.array(expected), rtol=1e-4, atol=1e-5)
    back = decode_boxes(actual, anchors, weights=weights)
    chex.assert_trees_all_close(back, boxes, atol=1e-3)


def test_a_code_grows_a_box_no_further_than_the_clamp():
    anchor = jnp.array([[0.0, 0.0, 16.0, 32.0]])
    codes = jnp.array([[0.0, 0.0, 9.0, 9.0]])
    left, top, right, bottom = decode_boxes(codes, anchor)[0]
    chex.assert_trees_all_close(right - left, 1000.0, rtol=1e-5)
    chex.assert_trees_all_close(bottom - top, 2000.0, rtol=1e-5)
    # The clamp is of the scale, not of the weighted code.
    weighted = decode_boxes(codes, anchor, weights=(10.0, 10.0, 5.0, 5.0))[0]
    chex.assert_trees_all_close(
        weighted[2] - weighted[0], 16 * math.exp(1.8), rtol=1e-5
    )
    smaller = decode_boxes(codes, anchor, max_log_scale=0)
    chex.assert_trees_all_close(smaller, anchor)
    assert math.log(62.5) == MAX_LOG_SCALE
    grad = jax.grad(lambda c: decode_boxes(c, anchor).sum())(codes * 1e3)
    chex.assert_tree_all_finite(grad)


def test_codes_per_class_share_an_anchor(rng):
    anchors = draw_boxes(rng, 5)
    codes = np.float32(rng.normal(size=(5, 3, 4)))
    actual = decode_boxes(codes, anchors[:, None])
    for c in range(3):
        chex.assert_trees_all_close(actual[:, c], decode_boxes(codes[:, c], anchors))


def test_padding_has_finite_codes_and_gradients():
    for boxes, anchors in itertools.product((SPECIAL, SPECIAL[5:6]), repeat=2):
        if len(boxes) == len(anchors) or 1 in (len(boxes), len(anchors)):
            f = lambda b, a: encode_boxes(b, a).sum()
            value, grads = jax.value_and_grad(f, (0, 1))(boxes, anchors)
            chex.assert_tree_all_finite((value, grads))


def test_gradients_of_codes(rng):
    boxes, anchors = draw_boxes(rng, 3, 10), draw_boxes(rng, 3, 10)
    f = lambda b: encode_boxes(b, anchors)[:, 2:].sum() + encode_boxes(b, anchors)[0, 0]
    chex.assert_numerical_grads(f, (jnp.asarray(boxes),), order=1, eps=1e-2, atol=2e-2)


# Formats, images.


def test_formats():
    same = {
        "xyxy": [1.0, 2.0, 5.0, 10.0],
        "xywh": [1.0, 2.0, 4.0, 8.0],
        "cxcywh": [3.0, 6.0, 4.0, 8.0],
    }
    for source, target in itertools.product(same, same):
        actual = convert_boxes(jnp.array([[same[source]]]), source, target)
        assert actual.tolist() == [[same[target]]], (source, target)


def test_an_unknown_format_is_refused():
    for source, target in (("xyxy", "yxyx"), ("xxyy", "xyxy")):
        with pytest.raises(ValueError, match=r"formats must be among .*, got 'x"):
            convert_boxes(jnp.zeros((1, 4)), source, target)


def test_clipping():
    boxes = jnp.array([[-5.0, 2, 30, 8], [25, 1, 40, 4], [1, 2, 3, 4], [-9, -9, -1, 5]])
    clipped = clip_boxes(boxes, 6, 20)
    expected = [[0, 2, 20, 6], [20, 1, 20, 4], [1, 2, 3, 4], [0, 0, 0, 5]]
    assert clipped.tolist() == expected
    assert has_size(clipped).tolist() == [True, False, True, False]
    assert has_size(clipped, 3.0).tolist() == [True, False, False, False]
    traced = jax.jit(clip_boxes)(boxes, jnp.int32(6), jnp.float32(20))
    assert traced.tolist() == expected


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(*[st.integers(-20, 20)] * 4), min_size=1, max_size=6))
def test_whole_numbers_are_counted_pixels(boxes):
    """The area of a box with whole coordinates is the number of its pixels."""
    boxes = np.array(boxes + [(-20, -20, 20, 20)] * (6 - len(boxes)), np.float32)
    y, x = np.mgrid[-20:20, -20:20]
    masks = [(x >= a) & (x < c) & (y >= b) & (y < d) for a, b, c, d in boxes]
    both = np.array([[(p & q).sum() for q in masks] for p in masks])
    either = np.array([[(p | q).sum() for q in masks] for p in masks])
    expected = both / np.maximum(either, 1)
    chex.assert_trees_all_close(box_iou(boxes, boxes), expected, atol=1e-6)
    assert box_area(boxes).tolist() == [mask.sum() for mask in masks]
