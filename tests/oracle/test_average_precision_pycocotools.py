"""Average precision of boxes and of masks side by side with COCO's own program."""

import contextlib
import io

import numpy as np
import pytest

from jaxml.metrics import coco_average_precision
from tests.metrics.detection_scenes import draw_scene

coco = pytest.importorskip("pycocotools.coco")
cocoeval = pytest.importorskip("pycocotools.cocoeval")
mask_tools = pytest.importorskip("pycocotools.mask")

pytestmark = pytest.mark.oracle


def annotations(rows, use_masks):
    found = []
    for image, row in enumerate(rows):
        for i, (x1, y1, x2, y2) in enumerate(row["boxes"]):
            entry = {
                "id": len(found) + 1,
                "image_id": image,
                "category_id": int(row["labels"][i]),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
            }
            if use_masks:
                pixels = np.asfortranarray(row["masks"][i].astype(np.uint8))
                entry["segmentation"] = mask_tools.encode(pixels)
                del entry["bbox"]
            if "scores" in row:
                entry["score"] = float(row["scores"][i])
            else:
                entry["iscrowd"] = int(row["is_crowd"][i])
                entry["area"] = float(row["area"][i])
            found.append(entry)
    return found


def evaluated(detections, truths, classes, use_masks=False):
    """COCO's evaluation, with NaN in place of -1."""
    with contextlib.redirect_stdout(io.StringIO()):
        real = coco.COCO()
        real.dataset = {
            "info": {},
            "images": [
                {"id": i, "height": 120, "width": 130} for i in range(len(truths))
            ],
            "categories": [{"id": c} for c in range(classes)],
            "annotations": annotations(truths, use_masks),
        }
        real.createIndex()
        found = real.loadRes(annotations(detections, use_masks))
        run = cocoeval.COCOeval(real, found, "segm" if use_masks else "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    arrays = run.stats, run.eval["precision"][..., -1], run.eval["recall"]
    return [np.where(x < 0, np.nan, x) for x in arrays]


def assert_equal(actual, expected):
    for mine, theirs in zip(
        (list(actual.summary.values()), actual.precision, actual.recall),
        expected,
        strict=True,
    ):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-9)


def scene(seed, **sizes):
    detections, truths = draw_scene(np.random.default_rng(seed), **sizes)
    for truth in truths:  # which COCO's program does not know
        truth["is_ignored"] = np.zeros(len(truth["labels"]), bool)
    return detections, truths


@pytest.mark.parametrize("seed", range(6))
def test_boxes(seed):
    classes = 1 + seed % 4
    rows = scene(
        seed, images=20, classes=classes, objects=9, found=60 + 60 * (seed % 2)
    )
    actual = coco_average_precision(*rows, num_classes=classes)
    assert_equal(actual, evaluated(*rows, classes))


@pytest.mark.parametrize("seed", range(2))
def test_masks(seed):
    rng = np.random.default_rng(seed)
    rows = scene(seed)
    y, x = np.mgrid[:120, :130]
    for row in (*rows[0], *rows[1]):
        left, top, right, bottom = np.moveaxis(row["boxes"][:, None, None], 3, 0)
        inside = (x - (left + right) / 2) ** 2 / ((right - left) / 2) ** 2
        inside = inside + (y - (top + bottom) / 2) ** 2 / ((bottom - top) / 2) ** 2
        row["masks"] = (inside < 1) & (rng.random(inside.shape) < 0.95)
    actual = coco_average_precision(*rows, num_classes=2, use_masks=True)
    assert_equal(actual, evaluated(*rows, 2, use_masks=True))
