"""Box voting against weighted means, box by box."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxml.ops.box_voting import box_voting
from tests.ops.test_nms import iou_numpy, nms_loop, scene


def test_voting_matches_the_loop(rng):
    boxes, scores = scene(rng, 60, objects=4)
    mask = rng.random(60) < 0.8
    boxes[7], scores[8], mask[7:9] = np.nan, np.nan, True
    kept = nms_loop(boxes, scores, 0.5, mask=mask)
    expected = []
    for i in kept:
        near = [
            j
            for j in range(60)
            if mask[j] and j not in (7, 8) and iou_numpy(boxes[i], boxes[[j]])[0] >= 0.5
        ]
        assert len(near) > 0
        expected.append(np.average(boxes[near], axis=0, weights=scores[near]))
    moved = jax.jit(box_voting)(boxes[kept], boxes, scores, mask=mask)
    chex.assert_trees_all_close(moved, np.float32(expected), atol=1e-4)


def test_a_box_without_votes_stays():
    kept = jnp.array([[0.0, 0, 4, 4], [0, 0, 0, 0]])
    moved = box_voting(kept, kept + 50, jnp.ones(2))
    chex.assert_trees_all_equal(moved, kept)
    moved = box_voting(kept, kept, jnp.ones(2), mask=jnp.zeros(2, bool))
    chex.assert_trees_all_equal(moved, kept)
