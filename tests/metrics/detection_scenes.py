"""Small scenes of detections and objects, with all that evaluators have rules for."""

import numpy as np


def draw_scene(rng, images=6, classes=2, objects=4, found=12):
    """Detections and truths; quarters of pixels, so that float32 and float64 agree.

    There are ties of scores and of overlaps, crowds, ignored objects, areas that are not
    those of the boxes, images and classes without objects or without detections.
    """
    detections, truths = [], []
    for image in range(images):
        n = 0 if image == 1 else int(rng.integers(1, objects + 1))
        m = 0 if image == 2 else found
        corner = rng.integers(0, 400, (n, 2)) / 4
        side = np.exp(rng.uniform(np.log(16), np.log(150), (n, 2)))
        real = np.round(4 * np.concatenate([corner, corner + side], 1)) / 4
        if n > 2:
            real[1] = real[0]
        labels = rng.integers(0, classes, n)
        of = rng.integers(0, max(n, 1), m)
        boxes = np.tile([[3.0, 3, 40, 50]], (m, 1)) if n == 0 else real[of]
        size = boxes[:, 2:] - boxes[:, :2]
        noise = rng.normal(size=(m, 4)) * rng.choice([0.0, 0.04, 0.15], (m, 1))
        boxes = np.round(4 * (boxes + noise * np.tile(size, 2))) / 4
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        own = rng.integers(0, classes, m) if n == 0 else labels[of]
        other = rng.random(m) < 0.2
        scores = np.round(rng.random(m) * 8) / 8
        detections.append(
            {
                "boxes": boxes,
                "scores": scores,
                "labels": np.where(other, (own + 1) % classes, own),
            }
        )
        area = np.prod(real[:, 2:] - real[:, :2], axis=1)
        truths.append(
            {
                "boxes": real,
                "labels": labels,
                "is_crowd": rng.random(n) < 0.2,
                "is_ignored": rng.random(n) < 0.1,
                "area": np.round(area * rng.uniform(0.5, 1, n)),
            }
        )
    return detections, truths
