"""The metric on the device against the same numbers on the host."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxml.metrics import box_average_precision, coco_average_precision
from jaxml.parallel import data_mesh
from tests.metrics.detection_scenes import draw_scene

IMAGES, CLASSES, FOUND, OBJECTS = 6, 2, 15, 5


def padded(rows, size, extra=()):
    """Arrays [images, size, ...] with rubbish where there is nothing."""
    arrays = {}
    for name in ("boxes", "labels", *extra):
        parts = [row[name] for row in rows]
        whole = np.full((len(rows), size, *parts[0].shape[1:]), 3, parts[0].dtype)
        for i, part in enumerate(parts):
            whole[i, : len(part)] = part
        arrays[name] = whole.astype(np.float32) if whole.dtype == float else whole
    count = np.array([len(row["labels"]) for row in rows])
    return arrays, np.arange(size)[None] < count[:, None]


def split(rng):
    """A scene as outputs and a batch of the whole split."""
    detections, truths = draw_scene(rng, IMAGES, CLASSES)
    found, valid = padded(detections, FOUND, ("scores",))
    found["scores"] = np.where(valid, found["scores"], np.nan)
    outputs = found["boxes"], found["scores"], found["labels"], valid
    batch, mask = padded(truths, OBJECTS, ("is_crowd", "is_ignored", "area"))
    batch |= {"boxes_mask": mask, "index": np.arange(IMAGES, dtype=np.int32)}
    return detections, truths, outputs, batch


def parts(tree, index):
    return jax.tree.map(lambda x: x[index], tree)


def test_it_gives_the_numbers_of_the_host_in_any_batches():
    metric = box_average_precision(IMAGES, CLASSES)
    chex.clear_trace_counter()
    update = jax.jit(chex.assert_max_traces(metric.update, n=1))
    for seed in range(5):
        detections, truths, outputs, batch = split(np.random.default_rng(seed))
        expected = coco_average_precision(detections, truths, num_classes=CLASSES)
        total = metric.init()
        for index in ([4, 0, 2, 2], [1, 3, 5, 0]):  # the last one is padding
            mask = np.arange(4) < 3
            some = {**parts(batch, index), "mask": mask}
            total = update(total, parts(outputs, index), some)
        actual = metric.compute(total)
        assert actual == pytest.approx(expected.summary, abs=1e-9, nan_ok=True)


def test_accumulators_add_up_over_devices(rng):
    detections, truths, outputs, batch = split(rng)
    metric = box_average_precision(IMAGES, CLASSES)
    mesh = data_mesh()
    index = np.arange(mesh.size) % IMAGES
    batch = {**parts(batch, index), "mask": np.arange(mesh.size) < IMAGES}

    def add(outputs, batch):
        return jax.lax.psum(metric.update(metric.init(), outputs, batch), "data")

    spec = P("data")
    add = jax.jit(jax.shard_map(add, mesh=mesh, in_specs=(spec, spec), out_specs=P()))
    actual = metric.compute(add(parts(outputs, index), batch))
    expected = coco_average_precision(detections, truths, num_classes=CLASSES)
    assert actual == pytest.approx(expected.summary, abs=1e-9, nan_ok=True)


def test_what_may_be_left_out_and_the_best_are_taken(rng):
    """Without areas and crowds; half precision; few detections of an image."""
    detections, truths, outputs, batch = split(rng)
    metric = box_average_precision(
        IMAGES, CLASSES, max_detections=5, detections=lambda out: out["found"]
    )
    for name in ("is_crowd", "is_ignored", "area"):
        del batch[name]
    batch["boxes"] = np.round(batch["boxes"] / 4) * 4
    half = jnp.asarray(np.round(outputs[0] / 4) * 4, jnp.bfloat16)
    total = jax.jit(metric.update)(
        metric.init(), {"found": (half, *outputs[1:])}, batch
    )
    for image, truth in zip(detections, truths, strict=True):
        best = np.argsort(-image["scores"], kind="stable")[:5]
        for name in image:
            image[name] = image[name][best]
        image["boxes"] = np.round(image["boxes"] / 4) * 4
        truth["boxes"] = np.round(np.float32(truth["boxes"]) / 4) * 4
        for name in ("is_crowd", "is_ignored", "area"):
            del truth[name]
    expected = coco_average_precision(detections, truths, num_classes=CLASSES).summary
    assert metric.compute(total) == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_a_hundred_of_a_class_count(rng):
    n = 130
    far = np.float32([[300, 300, 400, 400]])
    boxes = np.concatenate([np.tile(far, (n - 1, 1)), [[0, 0, 50, 50]]]).astype("f")
    scores = np.linspace(1, 0, n, dtype=np.float32)
    truth = {"boxes": boxes[-1:], "labels": np.zeros(1, np.int32)}
    found = {"boxes": boxes, "scores": scores, "labels": np.zeros(n, np.int32)}
    batch = {**{k: v[None] for k, v in truth.items()}, "index": np.zeros(1, np.int32)}
    batch["boxes_mask"] = np.ones((1, 1), bool)
    outputs = (
        *(found[k][None] for k in ("boxes", "scores", "labels")),
        np.ones((1, n), bool),
    )
    metric = box_average_precision(1, 1, max_detections=n)
    actual = metric.compute(jax.jit(metric.update)(metric.init(), outputs, batch))
    expected = coco_average_precision([found], [truth]).summary
    assert actual == pytest.approx(expected, nan_ok=True)
    assert actual["AR_100"] == 0


def test_no_object_at_all(rng):
    *_, outputs, batch = split(rng)
    metric = box_average_precision(IMAGES, CLASSES)
    batch["boxes_mask"] = np.zeros_like(batch["boxes_mask"])
    total = jax.jit(metric.update)(metric.init(), outputs, batch)
    assert np.isnan(list(metric.compute(total).values())).all()


def test_bad_use_is_named(rng):
    *_, outputs, batch = split(rng)
    metric = box_average_precision(IMAGES, CLASSES)
    with pytest.raises(ValueError, match="counted once, got one that was counted 0"):
        metric.compute(metric.init())
    total = jax.jit(metric.update)(metric.init(), outputs, batch)
    with pytest.raises(ValueError, match="counted once, got one that was counted 2"):
        metric.compute(jax.tree.map(jnp.add, total, total))
    del batch["index"]
    with pytest.raises(ValueError, match="must hold the index of every image"):
        metric.update(metric.init(), outputs, batch)
    for bad in ({"num_images": 0}, {"num_classes": -1}, {"max_detections": 0}):
        args = {"num_images": 3, "num_classes": 3, **bad}
        with pytest.raises(ValueError, match=f"{next(iter(bad))} must be at least 1"):
            box_average_precision(**args)
