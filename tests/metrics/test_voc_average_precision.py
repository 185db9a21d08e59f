"""VOC's numbers against loops over detections."""

import numpy as np
import pytest

from jaxml.metrics import voc_average_precision
from tests.metrics.detection_scenes import draw_scene
from tests.metrics.test_average_precision import BOX, found, iou_loop, objects


def voc_loop(detections, truths, label, threshold, style):
    """One class, as the development kit goes about it."""
    lines = [
        (found["scores"][i], image, found["boxes"][i])
        for image, found in enumerate(detections)
        for i in range(len(found["labels"]))
        if found["labels"][i] == label
    ]
    lines.sort(key=lambda line: -line[0])
    real = [np.flatnonzero(truth["labels"] == label) for truth in truths]
    easy = sum(
        (~truth["is_difficult"][mine]).sum()
        for truth, mine in zip(truths, real, strict=True)
    )
    if not easy:
        return np.nan
    taken, true, false, curve = set(), 0, 0, []
    for _, image, box in lines:
        overlaps = [
            iou_loop(box, truths[image]["boxes"][j], False) for j in real[image]
        ]
        j = real[image][np.argmax(overlaps)] if overlaps else None
        if overlaps and max(overlaps) >= threshold:
            if truths[image]["is_difficult"][j]:
                continue
            is_new = (image, j) not in taken
            taken.add((image, j))
        else:
            is_new = False
        true, false = true + is_new, false + (not is_new)
        curve.append((true / easy, true / (true + false)))
    if style == "2007":
        best = [max([p for r, p in curve if r >= t / 10], default=0) for t in range(11)]
        return np.mean(best)
    area = reached = 0
    for recall, _ in curve:
        best = max(p for r, p in curve if r >= recall)
        area, reached = area + (recall - reached) * best, recall
    return area


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("style", ["2007", "2012"])
@pytest.mark.parametrize("threshold", [0.5, 0.7])
def test_the_numbers_match_the_loops(seed, style, threshold):
    detections, truths = draw_scene(np.random.default_rng(seed), images=8, classes=3)
    for truth in truths:
        truth["is_difficult"] = truth["is_crowd"] | truth["is_ignored"]
        del truth["is_crowd"], truth["is_ignored"]  # unknown to VOC
    args = {"iou_threshold": threshold, "style": style, "num_classes": 4}
    mean, per_class = voc_average_precision(detections, truths, **args)
    loops = [voc_loop(detections, truths, c, threshold, style) for c in range(4)]
    np.testing.assert_allclose(per_class, loops, atol=1e-12)
    np.testing.assert_allclose(mean, np.nanmean(loops), atol=1e-12)


def test_a_claim_on_a_taken_object_is_false_though_another_would_be_free():
    near = np.add(BOX, [0, 0, 4, 0])
    truth = objects([BOX, near])
    value = voc_average_precision([found([BOX, BOX])], [truth]).mean
    np.testing.assert_allclose(value, 0.5)
    assert voc_average_precision([found([BOX, near])], [truth]).mean == 1


def test_difficult_objects_need_not_be_found():
    far = [100, 0, 130, 30]
    truth = objects([BOX, far], is_difficult=[False, True])
    for boxes in ([BOX], [far, BOX], [far, far, BOX]):
        assert voc_average_precision([found(boxes)], [truth]).mean == 1
    assert np.isnan(voc_average_precision([found([BOX])], [objects([])]).mean)


def test_three_tenths_reach_the_recall_of_three_tenths():
    boxes = [[40 * i, 0, 40 * i + 30, 30] for i in range(10)]
    value = voc_average_precision([found(boxes[:3])], [objects(boxes)], style="2007")
    np.testing.assert_allclose(value.mean, 4 / 11)


def test_an_overlap_of_just_the_threshold_is_right():
    half = [BOX[0], BOX[1], BOX[2], 35.0]
    assert voc_average_precision([found([half])], [objects([BOX])]).mean == 1


def test_bad_input_is_named():
    args = [found([BOX])], [objects([BOX])]
    with pytest.raises(ValueError, match="style must be '2007' or '2012', got '2010'"):
        voc_average_precision(*args, style="2010")
    with pytest.raises(ValueError, match=r"iou_threshold must be in \(0, 1\], got 0"):
        voc_average_precision(*args, iou_threshold=0.0)
    with pytest.raises(ValueError, match="one entry for each image, got 1 and 2"):
        voc_average_precision(args[0], args[1] * 2)
