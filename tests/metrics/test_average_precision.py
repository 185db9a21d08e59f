"""COCO's numbers against loops over detections, and the rules one by one."""

import numpy as np
import pytest

from jaxml.metrics import coco_average_precision
from tests.metrics.detection_scenes import draw_scene

NAMES = ["AP", "AP_50", "AP_75", "AP_small", "AP_medium", "AP_large"]
NAMES += ["AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large"]
RANGES = [(0, 1e10), (0, 32**2), (32**2, 96**2), (96**2, 1e10)]
BOX = [10.0, 10.0, 60.0, 60.0]  # of medium area


def iou_loop(found, real, is_crowd):
    width = min(found[2], real[2]) - max(found[0], real[0])
    height = min(found[3], real[3]) - max(found[1], real[1])
    inter = max(width, 0) * max(height, 0)
    area = lambda b: (b[2] - b[0]) * (b[3] - b[1])
    return inter / (area(found) if is_crowd else area(found) + area(real) - inter)


def match_loop(found, truth, label, low, high, threshold):
    """What becomes of the detections of a class in an image: (score, rank, fate)."""
    mine = [i for i, own in enumerate(found["labels"]) if own == label]
    mine = sorted(mine, key=lambda i: -found["scores"][i])[:100]
    real = [j for j, own in enumerate(truth["labels"]) if own == label]
    skip = {
        j: truth["is_crowd"][j]
        or truth["is_ignored"][j]
        or not low <= truth["area"][j] <= high
        for j in real
    }
    taken, fates = set(), []
    for rank, i in enumerate(mine):
        best = None
        for wanted in (False, True):  # objects that count first
            for j in real:
                if best is None or skip[best] == wanted:
                    if skip[j] != wanted or (j in taken and not truth["is_crowd"][j]):
                        continue
                    args = found["boxes"][i], truth["boxes"]
                    iou = iou_loop(args[0], args[1][j], truth["is_crowd"][j])
                    if iou < threshold:
                        continue
                    if best is not None:
                        last = iou_loop(args[0], args[1][best], truth["is_crowd"][best])
                        if iou < last:
                            continue
                    best = j
        box = found["boxes"][i]
        area = (box[2] - box[0]) * (box[3] - box[1])
        if best is None:
            fate = "false" if low <= area <= high else "ignored"
        else:
            fate = "ignored" if skip[best] else "true"
            taken.add(best)
        fates.append((found["scores"][i], rank, fate))
    return fates, sum(not s for s in skip.values())


def coco_loop(detections, truths, classes):
    """Precision [threshold, recall, class, area], recall [threshold, class, area, 3]."""
    precision = np.full((10, 101, classes, 4), np.nan)
    recall = np.full((10, classes, 4, 3), np.nan)
    for t, c, a in np.ndindex(10, classes, 4):
        fates, objects = [], 0
        for found, truth in zip(detections, truths, strict=True):
            some, number = match_loop(found, truth, c, *RANGES[a], 0.5 + 0.05 * t)
            fates, objects = fates + some, objects + number
        if not objects:
            continue
        fates.sort(key=lambda fate: -fate[0])
        for m, most in enumerate((1, 10, 100)):
            hits = [f for _, rank, f in fates if f == "true" and rank < most]
            recall[t, c, a, m] = len(hits) / objects
        true = false = 0
        curve = []
        for *_, fate in fates:
            true, false = true + (fate == "true"), false + (fate == "false")
            if fate != "ignored":
                curve.append((true / objects, true / (true + false)))
        for r in range(101):
            above = [p for reached, p in curve if reached >= np.linspace(0, 1, 101)[r]]
            precision[t, r, c, a] = max(above, default=0)
    return precision, recall


def summary_loop(precision, recall):
    values = [precision[..., 0], precision[0, ..., 0], precision[5, ..., 0]]
    values += [precision[..., a] for a in (1, 2, 3)]
    values += [recall[..., 0, m] for m in range(3)]
    values += [recall[..., a, 2] for a in (1, 2, 3)]
    known = [value[~np.isnan(value)] for value in values]
    return [value.mean() if value.size else np.nan for value in known]


@pytest.mark.parametrize("seed", range(3))
def test_the_numbers_match_the_loops(seed):
    classes = 1 + seed % 3
    scene = draw_scene(np.random.default_rng(seed), classes=classes)
    precision, recall = coco_loop(*scene, classes)
    actual = coco_average_precision(*scene, num_classes=classes)
    np.testing.assert_allclose(actual.precision, precision, atol=1e-12)
    np.testing.assert_allclose(actual.recall, recall, atol=1e-12)
    assert list(actual.summary) == NAMES
    expected = summary_loop(precision, recall)
    np.testing.assert_allclose(list(actual.summary.values()), expected, atol=1e-12)
    for c in range(classes):
        mine = precision[:, :, c, 0]
        np.testing.assert_allclose(actual.per_class[c], mine.mean(), atol=1e-12)


def found(boxes, scores=None, labels=None):
    n = len(boxes)
    scores = np.linspace(0.9, 0.1, n) if scores is None else scores
    labels = np.zeros(n, int) if labels is None else labels
    return {"boxes": np.reshape(boxes, (n, 4)), "scores": scores, "labels": labels}


def objects(boxes, **extra):
    labels = extra.pop("labels", np.zeros(len(boxes), int))
    return {"boxes": np.reshape(boxes, (len(boxes), 4)), "labels": labels, **extra}


def summary(detections, truth):
    return coco_average_precision([detections], [truth]).summary


def test_all_found_none_found_nothing_to_find():
    everything = summary(found([BOX]), objects([BOX]))
    assert everything["AP"] == everything["AR_1"] == everything["AP_medium"] == 1
    assert np.isnan([everything["AP_small"], everything["AR_large"]]).all()
    nothing = summary(found([]), objects([BOX]))
    assert nothing["AP"] == nothing["AR_100"] == 0
    assert np.isnan(list(summary(found([BOX]), objects([])).values())).all()
    assert np.isnan(list(coco_average_precision([], []).summary.values())).all()


def test_an_object_is_found_once():
    twice = summary(found([BOX, BOX]), objects([BOX]))
    assert twice["AP"] == 1  # the second comes after all recall is reached
    late = summary(
        found([BOX, BOX], scores=[0.5, 0.5]), objects([BOX, [200, 0, 230, 30]])
    )
    assert late["AR_10"] == 0.5
    # One true, one false, one object more: precision 1 up to recall 1/2.
    np.testing.assert_allclose(late["AP"], 51 / 101)


def test_crowds_take_any_number_and_count_for_nothing():
    crowd = objects([BOX, [0, 0, 200, 200]], is_crowd=[False, True])
    inside = [[100, 100, 120, 120], [130, 130, 170, 150]]
    alone = summary(found([*inside, BOX]), crowd)
    assert alone["AP"] == 1
    without = summary(found([*inside, BOX]), objects([BOX]))
    np.testing.assert_allclose(without["AP"], 1 / 3)
    # Not a crowd but ignored: it takes one, and by IoU.
    ignored = objects([BOX, inside[0]], is_ignored=[False, True])
    both = summary(found([inside[0], inside[0], BOX]), ignored)
    np.testing.assert_allclose(both["AP"], 1 / 2)


def test_a_counted_object_goes_before_an_ignored_one_that_fits_better():
    near = np.add(BOX, [0, 0, 4, 0])
    truth = objects([BOX, near], is_ignored=[False, True])
    assert summary(found([near]), truth)["AP_50"] == 1


def test_of_equal_overlaps_the_last_object_is_taken():
    left, middle, right = [0, 0, 40, 40], [6, 0, 46, 40], [12, 0, 52, 40]
    detections = found([middle, left])
    one = summary(detections, objects([left, right]))
    assert one["AR_100"] > summary(detections, objects([right, left]))["AR_100"]


def test_small_false_detections_do_not_hurt_large_objects():
    large = [0, 0, 200, 200]
    values = summary(found([BOX, large]), objects([large]))
    assert values["AP_large"] == 1
    np.testing.assert_allclose(values["AP"], 1 / 2)


def test_an_area_on_the_border_is_of_both_ranges():
    side = [0, 0, 32, 32]
    values = summary(found([side]), objects([side]))
    assert values["AP_small"] == values["AP_medium"] == 1
    assert np.isnan(values["AP_large"])


def test_classes_are_apart():
    detections = found([BOX, BOX], labels=[1, 0])
    values = coco_average_precision([detections], [objects([BOX], labels=[0])])
    assert values.summary["AP"] == 1
    np.testing.assert_array_equal(values.per_class, [1, np.nan])


def test_the_order_of_boxes_and_images_does_not_matter(rng):
    detections, truths = draw_scene(rng)
    for truth in truths:  # equal overlaps go by the order
        truth["boxes"] = truth["boxes"] + rng.uniform(0, 1, truth["boxes"].shape)
    for image in detections:
        image["scores"] = rng.random(len(image["scores"]))
    expected = coco_average_precision(detections, truths).summary
    order = rng.permutation(len(truths))
    shuffled = []
    for rows in (detections, truths):
        rows = [rows[i] for i in order]
        places = [rng.permutation(len(row["labels"])) for row in rows]
        shuffled.append(
            [
                {k: v[p] for k, v in row.items()}
                for row, p in zip(rows, places, strict=True)
            ]
        )
    assert coco_average_precision(*shuffled).summary == pytest.approx(
        expected, abs=1e-12, nan_ok=True
    )
    for image in detections:
        image["scores"] = 100 * np.exp(image["scores"])
    again = coco_average_precision(detections, truths).summary
    assert again == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_padding_is_left_out(rng):
    detections, truths = draw_scene(rng)
    expected = coco_average_precision(detections, truths, num_classes=2)
    padded = []
    for rows in (detections, truths):
        some = []
        for row in rows:
            n = len(row["labels"])
            more = {
                k: np.concatenate([v, np.ones_like(v[:1], shape=(3, *v.shape[1:]))])
                for k, v in row.items()
            }
            more["labels"][n:] = -7
            more["boxes"][n:] = np.nan
            some.append({**more, "mask": np.arange(n + 3) < n})
        padded.append(some)
    actual = coco_average_precision(*padded, num_classes=2)
    np.testing.assert_array_equal(actual.precision, expected.precision)
    np.testing.assert_array_equal(actual.recall, expected.recall)


def test_masks_of_boxes_are_boxes(rng):
    detections, truths = draw_scene(rng)
    y, x = np.mgrid[:160, :160]
    for row in (*detections, *truths):
        row["boxes"] = np.clip(np.round(row["boxes"]), 0, 160)
        sides = [b[None, None] for b in np.moveaxis(row["boxes"][:, None, None], 3, 0)]
        left, top, right, bottom = (side[0, 0] for side in sides)
        row["masks"] = (x >= left) & (x < right) & (y >= top) & (y < bottom)
        row.pop("area", None)
    expected = coco_average_precision(detections, truths)
    for row in (*detections, *truths):
        del row["boxes"]
    actual = coco_average_precision(detections, truths, use_masks=True)
    np.testing.assert_array_equal(actual.precision, expected.precision)
    np.testing.assert_array_equal(actual.recall, expected.recall)


def test_masks_are_compared_by_their_pixels():
    checks = np.indices((8, 8)).sum(0) % 2 == 0
    truth = {"masks": checks[None], "labels": [0]}
    for mask, value in ((checks, 1), (~checks, 0)):
        guess = {"masks": mask[None], "labels": [0], "scores": [0.5]}
        result = coco_average_precision([guess], [truth], use_masks=True)
        assert result.summary["AP_50"] == value


BAD = {
    "one entry for each image, got 1 and 0": (found([BOX]), None, {}),
    "detections must have scores, image 0 has none": (
        {"boxes": [BOX], "labels": [0]},
        objects([BOX]),
        {},
    ),
    r"scores of image 0 of detections must be of 1 boxes.*got shape \(2,\)": (
        found([BOX], scores=[1, 2]),
        objects([BOX]),
        {},
    ),
    r"boxes of image 0 of truths must be .* got shape \(2, 4\)": (
        found([BOX]),
        {"boxes": [BOX, BOX], "labels": [0]},
        {},
    ),
    r"labels must be in \[0, 2\), got 0 to 3": (
        found([BOX], labels=[3]),
        objects([BOX]),
        {"num_classes": 2},
    ),
    r"labels must be in \[0, 1\), got -1 to 0": (
        found([BOX], labels=[-1]),
        objects([BOX]),
        {},
    ),
    "scores of detections must be finite": (
        found([BOX], scores=[np.nan]),
        objects([BOX]),
        {},
    ),
    "boxes of truths must be finite": (found([BOX]), objects([[0, 0, np.inf, 1]]), {}),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message):
    detections, truth, options = BAD[message]
    with pytest.raises(ValueError, match=message):
        coco_average_precision([detections], [truth] if truth else [], **options)


def test_masks_must_have_one_size():
    guess = {"masks": np.ones((1, 4, 4), bool), "labels": [0], "scores": [0.5]}
    truth = {"masks": np.ones((1, 4, 5), bool), "labels": [0]}
    with pytest.raises(ValueError, match="masks of image 0 must have one size"):
        coco_average_precision([guess], [truth], use_masks=True)
