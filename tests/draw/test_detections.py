"""Pictures of detections, read back pixel by pixel."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxml.draw import save_detections
from jaxml.draw.photograph import class_colour, ink_on

GREY = np.full((200, 300, 3), 0.5, np.float32)
BOX = np.float32([[40, 60, 140, 160]])
LABEL = np.array([1])


def pixels(picture, colour):
    return (np.asarray(picture) == np.array(colour)).all(axis=2)


def test_a_box_is_outlined_in_the_colour_of_its_class(tmp_path):
    path = tmp_path / "found.png"
    picture = save_detections(path, GREY, BOX, LABEL, np.float32([0.9]), scale=1)
    assert picture.size == (300, 200)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), np.asarray(picture))
    mine = pixels(picture, class_colour(1))
    assert mine[60, 40:140].all()
    assert mine[159, 40:140].all()
    assert mine[60:160, 40].all()
    assert mine[60:160, 139].all()
    assert not mine[70:150, 140:].any()
    assert not mine[70:150, 50:130].any()
    assert not pixels(picture, class_colour(2)).any()
    below = np.asarray(picture)[165:]
    assert (below == 128).all()  # nothing but the box and its name above it


def test_the_best_has_the_first_choice_of_places():
    twice, labels = BOX.repeat(2, axis=0), np.array([1, 2])
    scores = np.float32([0.9, 0.8])
    alone = save_detections(None, GREY, BOX, LABEL, scores[:1], scale=1)
    both = save_detections(None, GREY, twice, labels, scores, scale=1)
    above = np.s_[:58]  # where the name goes
    np.testing.assert_array_equal(np.asarray(both)[above], np.asarray(alone)[above])


def test_boxes_follow_the_scale():
    image = np.zeros((50, 60, 1), np.uint8)
    box = np.float32([[10, 20, 30, 40]])
    picture = save_detections(None, image, box, LABEL, scale=4)
    assert picture.size == (240, 200)
    mine = pixels(picture, class_colour(1))
    assert mine[80, 40:120].all()
    assert mine[159, 40:120].all()
    assert save_detections(None, image, box, LABEL).size == (360, 300)


def test_padding_low_scores_and_nan_are_left_out():
    boxes = np.repeat(BOX, 4, axis=0)
    boxes[3] = np.nan
    labels = np.array([0, 1, -5, 3])
    scores = np.float32([0.5, 0.2, 0.9, 0.9])
    mask = np.array([True, True, False, True])
    args = {"mask": mask, "min_score": 0.5, "scale": 1}
    picture = save_detections(None, GREY, boxes, labels, scores, **args)
    alone = save_detections(None, GREY, BOX, labels[:1], scores[:1], scale=1)
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(alone))
    empty = save_detections(None, GREY, boxes[:0], labels[:0], scores[:0], scale=1)
    assert (np.asarray(empty) == 128).all()


def test_the_best_box_is_on_top():
    boxes, labels = np.repeat(BOX, 2, axis=0), np.array([0, 1])
    for scores, top in (([0.9, 0.1], 0), ([0.1, 0.9], 1)):
        scores = jnp.array(scores, jnp.bfloat16)
        picture = save_detections(None, GREY, boxes, labels, scores, scale=1)
        assert pixels(picture, class_colour(top))[159, 40:140].all()


def test_names_do_not_cover_each_other():
    boxes, labels = np.repeat(BOX, 4, axis=0), np.arange(4)
    picture = save_detections(
        None, GREY, boxes, labels, class_names=["ab"] * 4, scale=1
    )
    areas = [pixels(picture, class_colour(i)).sum() for i in range(3)]
    assert max(areas) < 1.1 * min(areas)  # only the last one's outline is seen
    assert min(areas) > 150


def test_a_box_at_the_border_keeps_its_name_in_the_picture():
    for box in ([-20, -20, 40, 30], [280, 180, 330, 240], [0, 0, 300, 200]):
        picture = save_detections(None, GREY, np.float32([box]), LABEL, scale=1)
        assert pixels(picture, class_colour(1)).sum() > 100
        ink = (0, 0, 0) if ink_on(class_colour(1)) == "black" else (255,) * 3
        assert pixels(picture, ink).any()


def test_masks_are_tinted():
    masks = np.zeros((1, 200, 300), bool)
    masks[0, 80:120, 70:100] = True
    picture = save_detections(None, GREY, BOX, LABEL, masks=masks, scale=1)
    tint = np.round(0.45 * 128 + 0.55 * np.array(class_colour(1)))
    assert np.abs(np.asarray(picture)[80:120, 70:100] - tint).max() <= 1
    assert (np.asarray(picture)[80:120, 110] == 128).all()


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"labels must be in \[0, 1\).*got 1"):
        save_detections(None, GREY, BOX, LABEL, class_names=["cat"])
    with pytest.raises(ValueError, match="labels must not be negative, got -1"):
        save_detections(None, GREY, BOX, np.array([-1]))
    with pytest.raises(ValueError, match=r"masks must have shape \(1, 200, 300\)"):
        save_detections(None, GREY, BOX, LABEL, masks=np.zeros((1, 2, 3), bool))
    with pytest.raises(ValueError, match=r"must have shape \[height, width\]"):
        save_detections(None, GREY[None], BOX, LABEL)
    with pytest.raises(ValueError, match=r"lie in \[0, 1\], got 128 to 128"):
        save_detections(None, 256 * GREY, BOX, LABEL)
    with pytest.raises(ValueError, match="floats or uint8, got int64"):
        save_detections(None, np.zeros((4, 4), int), BOX, LABEL)
    with pytest.raises(ValueError, match="scale must be at least 1, got 0"):
        save_detections(None, GREY, BOX, LABEL, scale=0)
    with pytest.raises(ValueError, match=r"must be \.png"):
        save_detections("found.jpg", GREY, BOX, LABEL)
